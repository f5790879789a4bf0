// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/arena.h"

#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "memserver/text.h"

// Older C libraries lack it; the kernel has it since 5.14.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace kintsugi::memserver {

int ArenaMemory::populate(void* at, std::size_t bytes) {
  while (madvise(at, bytes, MADV_POPULATE_WRITE) != 0) {
    if (errno == EINVAL) return 0;  // before Linux 5.14: memory comes with the first touch
    if (errno != EINTR && errno != EAGAIN) return errno;
  }
  return 0;
}

int ArenaMemory::release(void* at, std::size_t bytes, bool file) {
  return madvise(at, bytes, file ? MADV_REMOVE : MADV_DONTNEED) == 0 ? 0 : errno;
}

Arena::~Arena() {
  if (base_) munmap(base_, bytes_);
  if (fd_ >= 0) close(fd_);
}

Bytes Arena::populated() const { return Bytes{allocator_->populated_extents() * kExtentBytes}; }

bool Arena::populate_extent(std::uint32_t extent) {
  const std::size_t first = std::size_t{extent} * SlotAllocator::kExtentSlots;
  int code = memory_->populate(pages_ + first * kPageSize, kExtentBytes);
  if (code == 0) {
    code = memory_->populate(reinterpret_cast<std::uint8_t*>(meta_ + first),
                             SlotAllocator::kExtentSlots * sizeof(SlotMeta));
  }
  if (code == 0 && max_tag_bytes_ > 0) {
    const std::size_t at = first * max_tag_bytes_ / kPageSize * kPageSize;
    const std::size_t end =
        round_up((first + SlotAllocator::kExtentSlots) * max_tag_bytes_, kPageSize);
    code = memory_->populate(tags_ + at, end - at);
  }
  if (code == 0) return true;
  spdlog::error("no memory for more pages ({}): free some on this machine{}", errno_text(code),
                path_.empty() ? "" : ", or enlarge the arena's file system");
  return false;
}

void Arena::release_extent(std::uint32_t extent) {
  // Part of a huge page cannot be given back.
  if (alignment_ > kExtentBytes) return;
  const int code =
      memory_->release(pages_ + std::size_t{extent} * kExtentBytes, kExtentBytes, fd_ >= 0);
  if (code != 0) spdlog::debug("cannot give memory back: {}", errno_text(code));
}

bool Arena::allocate_in_flight(std::span<SlotIndex> out, AllocationHint* hint) {
  if (in_flight_.fetch_add(out.size()) + out.size() <= kMaxInFlight) {
    const std::uint32_t got = allocator_->allocate(out, hint);
    if (got == out.size()) return true;
    free(out.first(got));
  }
  landed(out.size());
  return false;
}

void Arena::publish(SlotIndex slot, std::uint32_t session, std::uint64_t page,
                    std::uint64_t version) {
  SlotMeta& meta = meta_[slot];
  meta.page = page;
  meta.version = version;
  meta.session = session;
  meta.generation = records_[session].generation;
  // The fence orders the page's bytes and the metadata before the flag, as a killed process
  // leaves them.
  std::atomic_ref(meta.valid).store(1, std::memory_order_release);
}

void Arena::retire(SlotIndex slot) {
  std::atomic_ref(meta_[slot].valid).store(0, std::memory_order_release);
  // Nothing that is written to the slot from now on may come before.
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

void Arena::recover(const std::function<SlotIndex(SlotIndex, const SlotMeta&)>& keep) {
  if (!recovered_) return;
  const std::uint64_t slots = std::uint64_t{extents_} * SlotAllocator::kExtentSlots;
  const auto scan = [&](std::uint64_t first, std::uint64_t end) {
    for (std::uint64_t i = first; i < end; i++) {
      const auto slot = static_cast<SlotIndex>(i);
      SlotMeta& meta = meta_[slot];
      if (meta.valid == 0) continue;
      const bool known = meta.valid == 1 && meta.session < max_sessions_ &&
                         records_[meta.session].state == kRecordLive &&
                         records_[meta.session].generation == meta.generation &&
                         meta.page < records_[meta.session].vm_pages;
      const SlotIndex dropped = known ? keep(slot, meta) : slot;
      if (dropped != slot) allocator_->take(slot);
      if (dropped != kNoSlot) {
        retire(dropped);
        if (dropped != slot) allocator_->free({&dropped, 1});
      }
    }
  };
  // Reading a hole of a tmpfs file would give it memory: only what was ever written is scanned.
  off_t at = static_cast<off_t>(meta_at_);
  const auto end = static_cast<off_t>(meta_at_ + slots * sizeof(SlotMeta));
  while (at < end) {
    const off_t data = lseek(fd_, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    if (data >= end) break;
    const off_t hole = data < 0 ? -1 : lseek(fd_, data, SEEK_HOLE);
    const off_t from = data < 0 ? at : data;
    const off_t to = hole < 0 ? end : std::min(hole, end);
    scan(static_cast<std::uint64_t>(from - static_cast<off_t>(meta_at_)) / sizeof(SlotMeta),
         static_cast<std::uint64_t>(to - static_cast<off_t>(meta_at_)) / sizeof(SlotMeta));
    at = to;
  }
}

}  // namespace kintsugi::memserver
