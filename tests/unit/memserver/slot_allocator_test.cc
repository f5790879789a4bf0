// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/slot_allocator.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace kintsugi::memserver {
namespace {

constexpr std::uint32_t kExtent = SlotAllocator::kExtentSlots;

struct Memory {
  std::set<std::uint32_t> populated;
  std::uint32_t limit = UINT32_MAX;
  SlotAllocator allocator;

  explicit Memory(std::uint32_t extents)
      : allocator(
            extents,
            [this](std::uint32_t e) {
              if (populated.size() >= limit) return false;
              return populated.insert(e).second;
            },
            [this](std::uint32_t e) { EXPECT_EQ(populated.erase(e), 1U); }) {}
};

TEST(SlotAllocator, GivesAdjacentSlotsOfAnExtentOfItsOwn) {
  Memory m(4);
  AllocationHint a, b;
  std::array<SlotIndex, 16> first{}, second{}, third{};
  EXPECT_EQ(m.allocator.allocate(first, &a), 16U);
  EXPECT_EQ(m.allocator.allocate(second, &b), 16U);
  EXPECT_EQ(m.allocator.allocate(third, &a), 16U);
  for (std::uint32_t i = 0; i < 16; i++) {
    EXPECT_EQ(first[i], i);
    EXPECT_EQ(third[i], 16 + i);
    EXPECT_EQ(second[i], kExtent + i);
  }
  EXPECT_EQ(m.populated.size(), 2U);
}

TEST(SlotAllocator, LackOfMemoryIsAnAnswerAndPartlyUsedExtentsAreTheLastResort) {
  Memory m(4);
  m.limit = 1;
  AllocationHint a, b;
  std::vector<SlotIndex> out(100);
  EXPECT_EQ(m.allocator.allocate(out, &a), 100U);
  // No second extent can be had: the other stream shares the first.
  EXPECT_EQ(m.allocator.allocate(out, &b), 100U);
  std::vector<SlotIndex> rest(kExtent);
  EXPECT_EQ(m.allocator.allocate(rest, &b), kExtent - 200);
  m.limit = 2;
  EXPECT_EQ(m.allocator.allocate(rest, &b), kExtent);
}

TEST(SlotAllocator, TrimGivesEmptyExtentsBackButLeavesTheReserve) {
  Memory m(3);
  AllocationHint hint;
  std::vector<SlotIndex> out(2 * kExtent);
  ASSERT_EQ(m.allocator.allocate(out, &hint), 2 * kExtent);
  EXPECT_EQ(m.allocator.trim(0), 0U);
  m.allocator.free(std::span(out).first(kExtent));
  EXPECT_EQ(m.allocator.trim(2 * kExtent), 0U);
  EXPECT_EQ(m.allocator.trim(0), 1U);
  EXPECT_EQ(m.populated, std::set<std::uint32_t>{out[kExtent] / kExtent});
  EXPECT_EQ(m.allocator.populated_extents(), 1U);
}

TEST(SlotAllocator, NoSlotIsHandedOutTwice) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  Memory m(6);
  std::set<SlotIndex> used;
  std::array<AllocationHint, 3> hints;
  for (int step = 0; step < 3000; step++) {
    if (random() % 2 == 0) {
      std::vector<SlotIndex> out(random() % 300 + 1);
      out.resize(m.allocator.allocate(out, &hints[random() % hints.size()]));
      for (const SlotIndex slot : out) ASSERT_TRUE(used.insert(slot).second) << slot;
    } else {
      std::vector<SlotIndex> freed;
      for (const SlotIndex slot : used) {
        if (random() % 3 == 0) freed.push_back(slot);
      }
      for (const SlotIndex slot : freed) used.erase(slot);
      m.allocator.free(freed);
      if (random() % 8 == 0) m.allocator.trim(0);
    }
    ASSERT_EQ(m.allocator.free_slots(), 6 * kExtent - used.size());
    for (const SlotIndex slot : used) ASSERT_TRUE(m.populated.contains(slot / kExtent));
  }
}

}  // namespace
}  // namespace kintsugi::memserver
