// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/slot_allocator.h"

#include <bit>
#include <cassert>
#include <utility>

namespace kintsugi::memserver {

SlotAllocator::SlotAllocator(std::uint32_t extents, std::function<bool(std::uint32_t)> populate,
                             std::function<void(std::uint32_t)> release)
    : populate_(std::move(populate)),
      release_(std::move(release)),
      extents_(extents),
      free_slots_(std::uint64_t{extents} * kExtentSlots) {
  heads_.fill(kEnd);
  // From the back, so that the list starts with the first.
  for (std::uint32_t i = extents; i-- > 0;) {
    extents_[i].free_bits.fill(~std::uint64_t{0});
    file(i);
  }
}

void SlotAllocator::unlink(std::uint32_t index) {
  Extent& extent = extents_[index];
  if (extent.list == kNone) return;
  if (extent.previous != kEnd) {
    extents_[extent.previous].next = extent.next;
  } else {
    heads_[extent.list] = extent.next;
  }
  if (extent.next != kEnd) extents_[extent.next].previous = extent.previous;
  extent.next = extent.previous = kEnd;
  extent.list = kNone;
}

void SlotAllocator::file(std::uint32_t index) {
  Extent& extent = extents_[index];
  List wanted = kPartial;
  if (extent.free == 0) wanted = kNone;
  if (extent.free == kExtentSlots) wanted = extent.populated ? kEmptyPopulated : kEmptyBare;
  if (extent.list == wanted) return;
  unlink(index);
  if (wanted == kNone) return;
  extent.list = wanted;
  extent.next = heads_[wanted];
  if (extent.next != kEnd) extents_[extent.next].previous = index;
  heads_[wanted] = index;
}

// An extent of one's own keeps slots adjacent; sharing a partly used one is the last resort.
bool SlotAllocator::choose(AllocationHint* hint) {
  if (hint->extent < extents_.size() && extents_[hint->extent].free > 0 &&
      extents_[hint->extent].populated) {
    return true;
  }
  if (heads_[kEmptyPopulated] != kEnd) {
    hint->extent = heads_[kEmptyPopulated];
    return true;
  }
  if (const std::uint32_t bare = heads_[kEmptyBare]; bare != kEnd && populate_(bare)) {
    extents_[bare].populated = true;
    populated_extents_++;
    hint->extent = bare;
    return true;
  }
  hint->extent = heads_[kPartial];
  return hint->extent != kEnd;
}

std::uint32_t SlotAllocator::allocate(std::span<SlotIndex> out, AllocationHint* hint) {
  const std::lock_guard lock(mutex_);
  std::uint32_t got = 0;
  while (got < out.size() && choose(hint)) {
    Extent& extent = extents_[hint->extent];
    for (std::uint32_t word = 0; word < extent.free_bits.size(); word++) {
      std::uint64_t& bits = extent.free_bits[word];
      while (bits != 0 && got < out.size()) {
        const auto bit = static_cast<std::uint32_t>(std::countr_zero(bits));
        bits &= bits - 1;
        out[got++] = hint->extent * kExtentSlots + word * 64 + bit;
        extent.free--;
        free_slots_--;
      }
    }
    file(hint->extent);
  }
  return got;
}

void SlotAllocator::free(std::span<const SlotIndex> slots) {
  const std::lock_guard lock(mutex_);
  for (const SlotIndex slot : slots) {
    const std::uint32_t index = slot / kExtentSlots;
    Extent& extent = extents_[index];
    std::uint64_t& bits = extent.free_bits[slot % kExtentSlots / 64];
    const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
    assert((bits & bit) == 0 && "slot freed twice");
    bits |= bit;
    extent.free++;
    free_slots_++;
    if (extent.free == 1 || extent.free == kExtentSlots) file(index);
  }
}

std::uint32_t SlotAllocator::trim(std::uint64_t keep) {
  std::uint32_t trimmed = 0;
  // One extent a turn: others get at the lock in between, and lack no more than one extent.
  for (std::size_t turn = 0; turn < extents_.size(); turn++) {
    const std::lock_guard lock(mutex_);
    const std::uint32_t index = heads_[kEmptyPopulated];
    if (index == kEnd || free_slots_ < keep + kExtentSlots) break;
    release_(index);
    extents_[index].populated = false;
    populated_extents_--;
    file(index);
    trimmed++;
  }
  return trimmed;
}

void SlotAllocator::take(SlotIndex slot) {
  const std::uint32_t index = slot / kExtentSlots;
  Extent& extent = extents_[index];
  extent.free_bits[slot % kExtentSlots / 64] &= ~(std::uint64_t{1} << (slot % 64));
  extent.free--;
  free_slots_--;
  if (!extent.populated) {
    extent.populated = true;
    populated_extents_++;
  }
  file(index);
}

std::uint64_t SlotAllocator::free_slots() const {
  const std::lock_guard lock(mutex_);
  return free_slots_;
}

std::uint64_t SlotAllocator::populated_extents() const {
  const std::lock_guard lock(mutex_);
  return populated_extents_;
}

}  // namespace kintsugi::memserver
