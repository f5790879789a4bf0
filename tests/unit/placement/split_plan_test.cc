// SPDX-License-Identifier: GPL-2.0-or-later
#include "placement/split_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "access/history.h"
#include "placement/split_plan_fuzz.h"

namespace kintsugi {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr std::uint64_t kGiB = (1ULL << 30) / kPageSize;  // in pages
constexpr std::uint64_t kMiB = (1ULL << 20) / kPageSize;

SplitRequest request(std::uint64_t pages, std::uint64_t chunk, std::uint64_t main,
                     const std::vector<std::uint64_t>& servers) {
  SplitRequest out{PageCount{pages}, PageCount{chunk}, PageCount{main}, {}};
  for (const std::uint64_t capacity : servers) out.server_capacities.emplace_back(capacity);
  return out;
}

RankSource fixed(std::vector<std::uint16_t> ranks) {
  return [ranks = std::move(ranks)](ChunkIndex first, std::span<std::uint16_t> out) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = first.value + i < ranks.size() ? ranks[first.value + i] : 0;
    }
  };
}

std::vector<int> owners(const SplitPlan& plan) {
  std::vector<int> out;
  for (std::uint64_t i = 0; i < plan.chunks(); ++i) out.push_back(plan.owner(ChunkIndex{i}).value);
  return out;
}

std::string error_of(const SplitRequest& request) {
  const auto plan = plan_split(request, {});
  return plan.ok() ? "no error" : plan.error().message;
}

TEST(SplitPlan, FillsTheMainHostWithTheHottestChunks) {
  const auto plan = plan_split(request(48, 8, 24, {24}), fixed({1, 9, 0, 3, 3, 2}));
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_THAT(owners(*plan), ElementsAre(1, 0, 1, 0, 0, 1));
  EXPECT_EQ(kMainHost, plan->owner(PageIndex{15}));
  EXPECT_EQ(ServerId{1}, plan->owner(PageIndex{16}));
  EXPECT_EQ(PageCount{24}, plan->pages_on(kMainHost));
  EXPECT_EQ(PageCount{24}, plan->pages_on(ServerId{1}));
}

TEST(SplitPlan, AmongEqualsTakesTheFirstSoThatRunsStayWhole) {
  const auto plan = plan_split(request(8, 1, 4, {4}), fixed({5, 5, 9, 5, 5, 5, 9, 0}));
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(owners(*plan), ElementsAre(0, 0, 0, 1, 1, 1, 0, 1));
}

TEST(SplitPlan, WithoutHistoryTakesTheFrontOfTheVm) {
  const auto plan = plan_split(request(4, 1, 2, {2}), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(owners(*plan), ElementsAre(0, 0, 1, 1));
}

// P1 4-4, chunk size 1, clock: pages with the bit first, then pages without while there is room.
TEST(SplitPlan, ClockWithChunksOfOnePage) {
  auto history = AccessHistory::create(
      {.pages = PageCount{8}, .chunk_pages = PageCount{1}, .policy = AccessPolicy::kClock});
  ASSERT_TRUE(history.ok());
  for (const std::uint64_t page : {3, 6}) (*history)->mark(PageIndex{page});
  const auto plan = plan_split(request(8, 1, 4, {4}), ranks_of(**history, PageCount{1}));
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(owners(*plan), ElementsAre(0, 0, 1, 0, 1, 1, 0, 1));
}

// P1 4-4: clock prefers many touched pages, aging the most recent one.
TEST(SplitPlan, ClockAndAgingDiffer) {
  std::vector<std::vector<int>> plans;
  for (const AccessPolicy policy : {AccessPolicy::kClock, AccessPolicy::kAging}) {
    auto history = AccessHistory::create({.pages = PageCount{32},
                                          .chunk_pages = PageCount{16},
                                          .policy = policy,
                                          .shift_period_ticks = 1,
                                          .clock_turn_ticks = 0});
    ASSERT_TRUE(history.ok());
    (*history)->mark_range(PageIndex{0}, PageCount{9});
    (*history)->tick();
    (*history)->mark(PageIndex{20});
    auto plan = plan_split(request(32, 16, 16, {16}), ranks_of(**history, PageCount{16}));
    ASSERT_TRUE(plan.ok());
    plans.push_back(owners(*plan));
  }
  EXPECT_THAT(plans[0], ElementsAre(0, 1));
  EXPECT_THAT(plans[1], ElementsAre(1, 0));
}

TEST(SplitPlan, CanPlanChunksOfAnotherSizeThanTheHistorys) {
  auto history = AccessHistory::create(
      {.pages = PageCount{64}, .chunk_pages = PageCount{1}, .policy = AccessPolicy::kClock});
  ASSERT_TRUE(history.ok());
  (*history)->mark(PageIndex{63});
  const auto plan = plan_split(request(64, 32, 32, {32}), ranks_of(**history, PageCount{32}));
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(owners(*plan), ElementsAre(1, 0));
}

TEST(SplitPlan, SpreadsTheRestInProportionAndInExtents) {
  // 4 GiB, 1 GiB here, the rest over 1 GiB and 3 GiB.
  const auto plan = plan_split(request(4 * kGiB, 16, kGiB, {kGiB, 3 * kGiB}), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(PageCount{kGiB}, plan->pages_on(kMainHost));
  EXPECT_EQ(PageCount{3 * kGiB / 4}, plan->pages_on(ServerId{1}));
  EXPECT_EQ(PageCount{9 * kGiB / 4}, plan->pages_on(ServerId{2}));
  plan->for_each_run([](ServerId owner, PageIndex, PageCount count) {
    if (owner != kMainHost) {
      EXPECT_EQ(0U, count.value % (64 * kMiB));
    }
  });
  // Any 256 MiB of the remote part are on both.
  for (std::uint64_t at = kGiB; at < 4 * kGiB; at += 256 * kMiB) {
    std::vector<int> seen(3);
    for (std::uint64_t page = at; page < at + 256 * kMiB; page += 16) {
      ++seen[plan->owner(PageIndex{page}).value];
    }
    EXPECT_GT(seen[1], 0) << at;
    EXPECT_GT(seen[2], 0) << at;
  }
}

TEST(SplitPlan, HoldsAVmThatFitsTheMainHostAlone) {
  const auto plan = plan_split(request(20, 8, 24, {}), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(0U, plan->servers());
  EXPECT_EQ(PageCount{20}, plan->pages_on(kMainHost));
}

TEST(SplitPlan, PutsAPartialLastChunkWhereOnlyOddPagesAreLeft) {
  // 2 chunks of 8 and 3 pages: 10 pages hold one chunk, 11 hold one and the 3 pages.
  const auto on_server = plan_split(request(19, 8, 10, {11}), fixed({1, 2, 9}));
  ASSERT_TRUE(on_server.ok()) << on_server.error().message;
  EXPECT_THAT(owners(*on_server), ElementsAre(1, 0, 1));
  EXPECT_EQ(PageCount{11}, on_server->pages_on(ServerId{1}));
  const auto on_main = plan_split(request(19, 8, 11, {10}), fixed({1, 2, 0}));
  ASSERT_TRUE(on_main.ok());
  EXPECT_THAT(owners(*on_main), ElementsAre(1, 0, 0));
  EXPECT_THAT(error_of(request(19, 8, 10, {10})), HasSubstr("whole chunks"));
}

TEST(SplitPlanError, CapacitiesDoNotAddUp) {
  EXPECT_EQ(
      "main host 1.0 GiB + sub-hosts 2.0 GiB hold 3.0 GiB, the VM has 4.0 GiB: raise the main "
      "host's or a sub-host's capacity by at least 1.0 GiB",
      error_of(request(4 * kGiB, 16, kGiB, {kGiB, kGiB})));
  EXPECT_EQ(
      "main host 2.0 GiB + sub-hosts 2.0 GiB hold 4194240 KiB, the VM has 4194304 KiB: raise the "
      "main host's or a sub-host's capacity by at least 64 KiB",
      error_of(request(4 * kGiB, 16, 2 * kGiB, {2 * kGiB - 16})));
  EXPECT_EQ(
      "main host 1.0 GiB hold 1.0 GiB, the VM has 4.0 GiB: raise the main host's capacity, or add "
      "a sub-host, by at least 3.0 GiB",
      error_of(request(4 * kGiB, 16, kGiB, {})));
  EXPECT_EQ(
      "main host 60 KiB + sub-hosts 60 KiB hold 2 whole chunks of 32 KiB, the VM has 3: make "
      "capacities multiples of the chunk size, or raise the main host's or a sub-host's capacity "
      "by at least 32 KiB",
      error_of(request(24, 8, 15, {15})));
  EXPECT_EQ(ENOSPC, plan_split(request(24, 8, 15, {15}), {}).error().code);
}

TEST(SplitPlanError, WhatIsMissingIsNeverRoundedDown) {
  // 1.04 GiB are missing: "1.0 GiB" would not do.
  EXPECT_THAT(error_of(request(4 * kGiB, 16, kGiB, {2 * kGiB - 40 * kMiB})),
              HasSubstr("by at least 1.1 GiB"));
}

TEST(SplitPlanError, NamesWhatToChange) {
  EXPECT_THAT(error_of(request(64, 24, 32, {32})), HasSubstr("not a power of two"));
  EXPECT_THAT(error_of(request(0, 8, 32, {32})), HasSubstr("has no memory"));
  EXPECT_THAT(error_of(request(64, 8, 0, {64})),
              HasSubstr("the main host has capacity 0: give it at least one chunk of 32 KiB"));
  EXPECT_THAT(error_of(request(64, 8, 7, {64})),
              HasSubstr("the main host has capacity 28 KiB, less than one chunk of 32 KiB"));
  EXPECT_THAT(error_of(request(64, 8, 32, {32, 0})),
              HasSubstr("sub-host 2 has capacity 0: give it at least one chunk of 32 KiB, or leave "
                        "the sub-host out"));
  EXPECT_THAT(error_of(request(640, 8, 64, std::vector<std::uint64_t>(64, 64))),
              HasSubstr("64 sub-hosts are too many: use at most 63"));
  EXPECT_THAT(error_of(request(1ULL << 35, 8, 64, {64})), HasSubstr("too large to split"));
  EXPECT_THAT(error_of(request(1ULL << 34, 1, 1ULL << 34, {64})), HasSubstr("use at least 64 KiB"));
}

TEST(SplitPlan, TakesCapacitiesOfAnySize) {
  const auto plan = plan_split(request(64, 8, 8, {~0ULL, ~0ULL, ~0ULL}), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(PageCount{8}, plan->pages_on(kMainHost));
}

struct Case {
  SplitRequest request;
  std::vector<std::uint16_t> ranks;
};

// A request that fits, sometimes exactly, and ranks with many equals.
Case random_case() {
  const std::uint64_t chunk = 1ULL << *rc::gen::inRange(0, 8);
  const std::uint64_t chunks = *rc::gen::inRange<std::uint64_t>(1, 400);
  const std::uint64_t pages = (chunks - 1) * chunk + *rc::gen::inRange<std::uint64_t>(1, chunk + 1);
  const unsigned servers = *rc::gen::inRange(1U, 9U);
  std::uint64_t left = chunks;
  const auto take = [&] {
    const std::uint64_t n = *rc::gen::inRange<std::uint64_t>(1, chunks + 1);
    left -= std::min(left, n);
    return n * chunk + *rc::gen::inRange<std::uint64_t>(0, chunk);
  };
  Case out;
  out.request.pages = PageCount{pages};
  out.request.chunk_pages = PageCount{chunk};
  out.request.main_capacity = PageCount{take()};
  for (unsigned i = 0; i < servers; ++i) out.request.server_capacities.emplace_back(take());
  out.request.server_capacities.back().value += left * chunk;
  const auto top = *rc::gen::element<unsigned>(1, 3, 256, 65536);
  out.ranks = *rc::gen::container<std::vector<std::uint16_t>>(
      chunks, rc::gen::map(rc::gen::inRange(0U, top),
                           [](unsigned rank) { return static_cast<std::uint16_t>(rank); }));
  return out;
}

RC_GTEST_PROP(SplitPlanProperty, KeepsToCapacitiesAndPutsTheHottestFirst, ()) {
  const Case c = random_case();
  const auto plan = plan_split(c.request, fixed(c.ranks));
  RC_ASSERT(plan.ok());
  RC_ASSERT(plan->chunks() == c.ranks.size());
  RC_ASSERT(plan->servers() == c.request.server_capacities.size());

  std::vector<std::uint64_t> pages(plan->servers() + 1);
  for (std::uint64_t page = 0; page < c.request.pages.value; ++page) {
    const unsigned owner = plan->owner(PageIndex{page}).value;
    RC_ASSERT(owner <= plan->servers());
    ++pages[owner];
  }
  for (unsigned i = 0; i <= plan->servers(); ++i) {
    RC_ASSERT(plan->pages_on(ServerId{static_cast<std::uint8_t>(i)}).value == pages[i]);
    RC_ASSERT(pages[i] <=
              (i == 0 ? c.request.main_capacity.value : c.request.server_capacities[i - 1].value));
  }

  // Hottest first, first among equals: the main host's chunks are a prefix of this order.
  std::vector<std::uint64_t> order(c.ranks.size());
  for (std::uint64_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return c.ranks[a] > c.ranks[b]; });
  bool main_full = false;
  for (const std::uint64_t chunk : order) {
    const bool on_main = plan->owner(ChunkIndex{chunk}) == kMainHost;
    RC_ASSERT(!(main_full && on_main));
    main_full = main_full || !on_main;
  }
  // And it is full: what is away would not fit.
  if (main_full) {
    RC_ASSERT(pages[0] + c.request.chunk_pages.value >
              c.request.main_capacity.value -
                  c.request.main_capacity.value % c.request.chunk_pages.value);
  }
}

RC_GTEST_PROP(SplitPlanProperty, SharesAreInProportion, ()) {
  const Case c = random_case();
  const auto plan = plan_split(c.request, fixed(c.ranks));
  RC_ASSERT(plan.ok());
  const double chunk = c.request.chunk_pages.value;
  double room = 0;
  std::vector<double> rooms;
  for (const PageCount capacity : c.request.server_capacities) {
    const std::uint64_t whole = capacity.value / c.request.chunk_pages.value;
    rooms.push_back(static_cast<double>(std::min(whole, plan->chunks())));
    room += rooms.back();
  }
  const double away = (c.request.pages - plan->pages_on(kMainHost)).value / chunk;
  for (unsigned i = 0; i < rooms.size(); ++i) {
    const double share = plan->pages_on(ServerId{static_cast<std::uint8_t>(i + 1)}).value / chunk;
    RC_ASSERT(std::abs(share - away * rooms[i] / room) <= 2.0);
  }
}

RC_GTEST_PROP(SplitPlanProperty, EncodesAndDecodes, ()) {
  const Case c = random_case();
  const auto plan = plan_split(c.request, fixed(c.ranks));
  RC_ASSERT(plan.ok());
  std::vector<std::uint8_t> bytes = {1, 2, 3};  // encode() appends
  plan->encode(bytes);
  RC_ASSERT(bytes.size() <= 3 + 16 + plan->chunks());
  const std::span<const std::uint8_t> encoded = std::span(bytes).subspan(3);
  const auto again = SplitPlan::decode(encoded);
  RC_ASSERT(again.ok());
  RC_ASSERT(*again == *plan);
  RC_ASSERT(split_plan_bytes_are_handled(encoded));
  // A plan for more than the receiver has is refused, and so is any cut.
  RC_ASSERT(!SplitPlan::decode(encoded, c.request.pages - PageCount{1}).ok());
  const auto cut = *rc::gen::inRange<std::size_t>(0, encoded.size());
  RC_ASSERT(!SplitPlan::decode(encoded.first(cut)).ok());
  bytes.push_back(0);
  RC_ASSERT(!SplitPlan::decode(std::span(bytes).subspan(3)).ok());
}

RC_GTEST_PROP(SplitPlanProperty, DecodesMutatedBytesSafely, ()) {
  const Case c = random_case();
  const auto plan = plan_split(c.request, fixed(c.ranks));
  RC_ASSERT(plan.ok());
  std::vector<std::uint8_t> bytes;
  plan->encode(bytes);
  const int mutations = *rc::gen::inRange(1, 8);
  for (int i = 0; i < mutations; ++i) {
    const auto at = *rc::gen::inRange<std::size_t>(0, bytes.size());
    bytes[at] = *rc::gen::arbitrary<std::uint8_t>();
    RC_ASSERT(split_plan_bytes_are_handled(bytes));
  }
  const auto noise = *rc::gen::arbitrary<std::vector<std::uint8_t>>();
  RC_ASSERT(split_plan_bytes_are_handled(noise));
  bytes.resize(16);
  bytes.insert(bytes.end(), noise.begin(), noise.end());
  RC_ASSERT(split_plan_bytes_are_handled(bytes));
}

TEST(SplitPlanDecode, KnowsItsBytes) {
  const auto plan = plan_split(request(20 * 8 - 3, 8, 16, {64, 160}), fixed({0, 0, 0, 0, 5, 5}));
  ASSERT_TRUE(plan.ok());
  std::vector<std::uint8_t> bytes;
  plan->encode(bytes);
  // Four chunks to 1, two to the main host, one to 1, thirteen to 2.
  const std::vector<std::uint8_t> expected = {'K', 'S', 'P', 'L', 1, 0,    3, 2,    0x9d, 0,    0,
                                              0,   0,   0,   0,   0, 0xc1, 1, 0x40, 1,    0x82, 6};
  EXPECT_THAT(bytes, ElementsAreArray(expected));
}

TEST(SplitPlanDecode, SaysWhatIsWrong) {
  const auto plan = plan_split(request(64, 8, 32, {32}), {});
  ASSERT_TRUE(plan.ok());
  std::vector<std::uint8_t> good;
  plan->encode(good);
  ASSERT_EQ(18U + 2U, good.size());
  const auto error_with = [&](std::size_t at, std::vector<std::uint8_t> patch) {
    std::vector<std::uint8_t> bytes = good;
    std::copy(patch.begin(), patch.end(), bytes.begin() + at);
    const auto decoded = SplitPlan::decode(bytes);
    return decoded.ok() ? "no error" : decoded.error().message;
  };
  EXPECT_THAT(error_with(0, {'X'}), HasSubstr("does not begin like one"));
  EXPECT_THAT(error_with(4, {2}), HasSubstr("version 2, this host understands 1"));
  EXPECT_THAT(error_with(6, {16}), HasSubstr("chunks of 2^16 pages"));
  EXPECT_THAT(error_with(7, {64}), HasSubstr("64 sub-hosts"));
  EXPECT_THAT(error_with(7, {0}), HasSubstr("is on sub-host 1"));
  EXPECT_THAT(error_with(8, {0}), HasSubstr("it is for 0 pages"));
  EXPECT_THAT(error_with(15, {0x80}), HasSubstr("pages, 1 to"));
  EXPECT_THAT(error_with(8, {65}), HasSubstr("chunk 8 of 9 is not named properly"));
  EXPECT_THAT(error_with(8, {48}), HasSubstr("more than 6 chunks"));
}

// A few bytes that claim the largest VM must be refused before memory is taken for it.
TEST(SplitPlanDecode, AllocatesNothingForAFalseClaim) {
  const std::vector<std::uint8_t> bytes = {'K', 'S', 'P', 'L', 1, 0, 4, 1, 0,
                                           0,   0,   0,   4,   0, 0, 0, 0};
  const auto decoded = SplitPlan::decode(bytes);
  ASSERT_FALSE(decoded.ok());
  EXPECT_THAT(decoded.error().message, HasSubstr("chunk 1 of 1073741824 is not named properly"));
}

}  // namespace
}  // namespace kintsugi
