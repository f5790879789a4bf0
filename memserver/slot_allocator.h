// SPDX-License-Identifier: GPL-2.0-or-later
// Which slots of the arena are free.
//
// Slots are grouped in extents of 512 (2 MiB of pages). An extent gets memory when its first slot
// is handed out, as one step that can fail cleanly, and gives it back when it is empty and trim()
// is called. So lack of memory is an answer to a client, never a SIGBUS, and a dropped session's
// memory goes back in bulk.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

namespace kintsugi::memserver {

using SlotIndex = std::uint32_t;

// Where an allocating stream of Puts is at work: its slots come out adjacent, and a receive needs
// few iovecs. Belongs to one caller.
struct AllocationHint {
  std::uint32_t extent = UINT32_MAX;
};

// Thread-safe but for take(), which is for recovery.
class SlotAllocator {
 public:
  static constexpr std::uint32_t kExtentSlots = 512;

  // `populate(extent)` gives an extent memory, false when there is none; `release(extent)` takes
  // it back. Both run under the allocator's lock.
  SlotAllocator(std::uint32_t extents, std::function<bool(std::uint32_t)> populate,
                std::function<void(std::uint32_t)> release);

  // Fills `out` from the front with free slots and returns how many: fewer when fewer are free, or
  // when there is no memory for more.
  std::uint32_t allocate(std::span<SlotIndex> out, AllocationHint* hint);
  void free(std::span<const SlotIndex> slots);
  // Takes memory back from empty extents, until no more than `keep` slots would be left usable
  // meanwhile. Returns the number of extents.
  std::uint32_t trim(std::uint64_t keep);

  // Recovery, before anything else is called: this slot is in use, its extent has memory.
  void take(SlotIndex slot);

  [[nodiscard]] std::uint64_t free_slots() const;
  // Extents that have memory.
  [[nodiscard]] std::uint64_t populated_extents() const;

 private:
  enum List : std::uint8_t { kEmptyPopulated, kEmptyBare, kPartial, kLists, kNone = kLists };
  static constexpr std::uint32_t kEnd = UINT32_MAX;

  struct Extent {
    std::array<std::uint64_t, kExtentSlots / 64> free_bits;  // 1: free
    std::uint32_t free = kExtentSlots;
    std::uint32_t next = kEnd;
    std::uint32_t previous = kEnd;
    List list = kNone;
    bool populated = false;
  };

  void unlink(std::uint32_t index);
  // Puts an extent on the list that its state asks for.
  void file(std::uint32_t index);
  bool choose(AllocationHint* hint);

  const std::function<bool(std::uint32_t)> populate_;
  const std::function<void(std::uint32_t)> release_;
  mutable std::mutex mutex_;
  std::vector<Extent> extents_;
  std::array<std::uint32_t, kLists> heads_;
  std::uint64_t free_slots_;
  std::uint64_t populated_extents_ = 0;
};

}  // namespace kintsugi::memserver
