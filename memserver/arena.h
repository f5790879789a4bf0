// SPDX-License-Identifier: GPL-2.0-or-later
// All page memory of a server, in one mapping: anonymous, a file that a restarted server opens
// again, or a memfd that is handed to it.
//
// The file or memfd, in this order, each part aligned to kExtentBytes (or the file system's huge
// page):
//   superblock     what the file is and its geometry
//   records        one per session there can be
//   slot metadata  32 bytes a slot: whose page it holds, which version
//   tags           max_tag_bytes a slot
//   slots          4 KiB each
//
// A process may die at any instruction, and what it left must be consistent, because the kernel
// keeps the file's pages (tmpfs, hugetlbfs; others are refused). Hence one order everywhere: a page
// is written to a slot that nobody names, then the slot's metadata, then its valid flag; only then
// is the slot it replaces made invalid, and only then may that one be used again. Recovery finds at
// most both, and keeps the higher version. A session begins when its record's state says so, and
// ends when it no longer does; its slots carry the record's generation, so that none outlives it.
// The file is of one boot: after the next one it would hold an old state of VMs that died too.
//
// Lifetime: slots, records and tags live as long as the arena. Threads: allocate, free and trim
// may be called from any thread; slots and records belong to the session that holds them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/memory_limit.h"
#include "base/result.h"
#include "base/types.h"
#include "handover/record.h"
#include "memserver/slot_allocator.h"
#include "wire/protocol.h"

namespace kintsugi::memserver {

struct ArenaOptions {
  std::string path;                   // empty: memory without a name
  bool memfd = false;                 // without a name: a memfd, that can be handed on
  int fd = -1;                        // a memfd that was handed on; becomes the arena's
  std::optional<PageCount> capacity;  // what sessions can reserve; may be left out for a file
  std::uint32_t max_tag_bytes = wire::kMaxTagBytes;
  std::uint32_t max_sessions = 1024;
  bool prefault = false;  // take all memory at start
  Bytes other_memory;     // that the server may need besides, at most: for a warning
  std::string boot_id;    // of tests; empty: what is in boot_id_file
  std::string boot_id_file = "/proc/sys/kernel/random/boot_id";
  std::optional<MemoryLimit> limit;  // of tests; without: what memory_limit() says
};

// The system calls that can fail while a server runs, so that tests can make them fail.
class ArenaMemory {
 public:
  virtual ~ArenaMemory() = default;
  // 0 or an errno.
  virtual int populate(void* at, std::size_t bytes);
  virtual int release(void* at, std::size_t bytes, bool file);
};

// A session as the file keeps it. Plain values: the session's lock guards them.
struct SessionRecord {
  std::uint32_t state;  // one of kRecord...; last to be written when a session begins
  std::uint32_t generation;
  wire::SessionId id;
  handover::RecordData ownership;  // of a tombstone: what it says of the session
  std::uint64_t vm_pages;
  std::uint64_t capacity_pages;
  std::uint64_t last_version;  // the highest ever stored
  std::uint64_t ended_s;       // CLOCK_BOOTTIME; of a tombstone
  std::uint32_t tag_bytes;
  std::uint32_t unused0;
  char name[64];
  char arbiter[wire::kMaxArbiterBytes];  // empty: this server
  std::uint8_t unused[88];
};
static_assert(sizeof(SessionRecord) == 512);
// Bound on vm_pages: 64 TiB. The page table of such a VM takes 64 GiB of addresses.
inline constexpr std::uint64_t kMaxVmPages = std::uint64_t{1} << 34;
inline constexpr std::uint32_t kRecordFree = 0;
inline constexpr std::uint32_t kRecordLive = 1;
// The session has ended; what is left tells who asks whether it was ever committed.
inline constexpr std::uint32_t kRecordTombstone = 2;

struct SlotMeta {
  std::uint64_t page;
  std::uint64_t version;
  std::uint32_t session;     // index of the record
  std::uint32_t generation;  // of the record when the page was stored
  std::uint32_t valid;
  std::uint32_t unused;
};
static_assert(sizeof(SlotMeta) == 32);

class Arena {
 public:
  // Slots beyond what sessions can reserve: Puts are received into them.
  static constexpr std::uint32_t kSpareSlots = 4096;
  // Of these, never in flight: for publishing what had to be received elsewhere, a page a thread.
  static constexpr std::uint32_t kEmergencySlots = 128;
  static constexpr std::uint32_t kMaxInFlight = kSpareSlots - kEmergencySlots;
  static constexpr std::size_t kExtentBytes = SlotAllocator::kExtentSlots * kPageSize;
  static constexpr std::uint64_t kMaxCapacityPages = (std::uint64_t{1} << 32) - (1U << 20);

  // `memory` may be null and else outlives the arena.
  [[nodiscard]] static Result<std::unique_ptr<Arena>> open(const ArenaOptions& options,
                                                           ArenaMemory* memory = nullptr);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  [[nodiscard]] PageCount capacity() const { return capacity_; }
  // What the page tables of all sessions may take: enough for VMs of 32 times the capacity that
  // have pages here from all over.
  [[nodiscard]] PageCount max_table_pages() const {
    return PageCount{capacity_.value / 32 + (std::uint64_t{64} << 20 >> kPageShift)};
  }
  [[nodiscard]] const std::array<std::uint8_t, 16>& server_id() const;
  [[nodiscard]] std::uint32_t max_tag_bytes() const { return max_tag_bytes_; }
  [[nodiscard]] std::uint32_t max_sessions() const { return max_sessions_; }
  [[nodiscard]] SessionRecord& record(std::uint32_t index) { return records_[index]; }
  // The file or memfd; -1 without. To be handed on, not to be closed.
  [[nodiscard]] int fd() const { return fd_; }
  // Whether it is a file with a name, so that the pages outlive the process whoever started it.
  [[nodiscard]] bool in_file() const { return !path_.empty(); }
  // Whether it had been somebody else's before.
  [[nodiscard]] bool recovered() const { return recovered_; }
  // Bytes of page memory that the arena holds now.
  [[nodiscard]] Bytes populated() const;
  [[nodiscard]] std::uint64_t free_slots() const { return allocator_->free_slots(); }

  // Slots to receive a Put into, in flight from now on. No more are than there are spare ones, so
  // that a page for which capacity is reserved has a slot whatever others have in flight. False,
  // and none is taken, when too many are, or when the machine is out of memory.
  bool allocate_in_flight(std::span<SlotIndex> out, AllocationHint* hint);
  // As many are published by now, or free again.
  void landed(std::size_t slots) { in_flight_.fetch_sub(slots); }
  [[nodiscard]] std::uint64_t in_flight() const { return in_flight_.load(); }
  // For publishing: false only when the machine is out of memory.
  bool allocate_emergency(SlotIndex* out, AllocationHint* hint) {
    return allocator_->allocate({out, 1}, hint) == 1;
  }
  void free(std::span<const SlotIndex> slots) { allocator_->free(slots); }
  void trim() { allocator_->trim(kEmergencySlots); }

  [[nodiscard]] std::uint8_t* page(SlotIndex slot) const {
    return pages_ + std::size_t{slot} * kPageSize;
  }
  [[nodiscard]] std::uint8_t* tag(SlotIndex slot) const {
    return tags_ + std::size_t{slot} * max_tag_bytes_;
  }
  [[nodiscard]] std::uint64_t version(SlotIndex slot) const { return meta_[slot].version; }
  // The slot's content is complete: from now on it is what the session has for `page`.
  void publish(SlotIndex slot, std::uint32_t session, std::uint64_t page, std::uint64_t version);
  // The slot no longer holds anything.
  void retire(SlotIndex slot);

  // Recovery, before the arena is used: calls `keep` for every valid slot of a live session, which
  // says what the slot replaces: itself (drop it), another (drop that), or nothing.
  static constexpr SlotIndex kNoSlot = UINT32_MAX;
  void recover(const std::function<SlotIndex(SlotIndex, const SlotMeta&)>& keep);

 private:
  Arena() = default;
  Result<void> map(const ArenaOptions& options);
  Result<void> map_anonymous(const ArenaOptions& options);
  Result<void> map_handed_over(const ArenaOptions& options);
  [[nodiscard]] Result<void> check_limit(const ArenaOptions& options) const;
  Result<void> map_file(const ArenaOptions& options);
  Result<void> map_open_file(const ArenaOptions& options);
  Result<void> create_file(const ArenaOptions& options, std::uint64_t on_disk_bytes);
  Result<void> adopt_file(const ArenaOptions& options);
  void lay_out(PageCount capacity, std::uint32_t max_tag_bytes, std::uint32_t max_sessions,
               std::size_t alignment);
  Result<void> map_bytes(int fd);
  void write_superblock();
  Result<void> check_records() const;
  bool populate_extent(std::uint32_t extent);
  void release_extent(std::uint32_t extent);

  ArenaMemory* memory_ = nullptr;
  std::unique_ptr<ArenaMemory> own_memory_;
  std::string path_;
  std::string boot_id_;
  int fd_ = -1;
  bool recovered_ = false;  // the file was there before
  PageCount capacity_;
  std::uint32_t max_tag_bytes_ = 0;
  std::uint32_t max_sessions_ = 0;
  std::uint32_t extents_ = 0;
  std::size_t alignment_ = 0;
  std::size_t records_at_ = 0, meta_at_ = 0, tags_at_ = 0, pages_at_ = 0, bytes_ = 0;
  std::uint8_t* base_ = nullptr;
  SessionRecord* records_ = nullptr;
  SlotMeta* meta_ = nullptr;
  std::uint8_t* tags_ = nullptr;
  std::uint8_t* pages_ = nullptr;
  std::unique_ptr<SlotAllocator> allocator_;
  std::atomic<std::uint64_t> in_flight_{0};
};

}  // namespace kintsugi::memserver
