// SPDX-License-Identifier: GPL-2.0-or-later
// One VM's memory on this server: which slot holds which page, who may speak for it, how much it
// may hold.
//
// Ownership. Every request carries the epoch of its connection's binding, and is checked by the
// rules of handover/record.h under the session's lock at the instant it takes effect. A Put
// therefore never touches a slot that the session names: its payload goes to free slots while
// nobody looks, and publish() makes them the session's, or refuses because a Claim came in between.
// The same lock makes a Get's copy whole.
//
// Thread-safe. Sessions are shared: the table holds one reference, each bound connection another.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "handover/record.h"
#include "memserver/arena.h"
#include "wire/protocol.h"

namespace kintsugi::memserver {

using TimePoint = std::chrono::steady_clock::time_point;

// Seconds since the machine booted, suspension included: what tombstones are dated by, as the arena
// outlives the process but not the boot.
[[nodiscard]] std::uint64_t boot_time_s();

// An array of u32 that begins as zeros and takes memory only where it is written.
class LazyArray {
 public:
  explicit LazyArray(std::uint64_t length);
  ~LazyArray();
  LazyArray(const LazyArray&) = delete;
  LazyArray& operator=(const LazyArray&) = delete;
  [[nodiscard]] bool ok() const { return data_ != nullptr; }
  std::uint32_t& operator[](std::uint64_t i) { return data_[i]; }

 private:
  std::uint32_t* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// What a request to bind is answered. Epoch and figures count with kOk only.
struct BindAnswer {
  wire::Status status = wire::Status::kOk;
  std::uint64_t epoch = 0;
  wire::SessionReply figures{};
};

class Session {
 public:
  // Of a live record of the arena, which outlives the session. `now`: when it was last in use.
  Session(Arena* arena, std::uint32_t record, TimePoint now);
  // False when there are no addresses for its page table.
  [[nodiscard]] bool ok() const { return table_.ok(); }

  // Binding: counts one more connection when the status is kOk.
  BindAnswer open(const wire::Ticket& ticket);
  BindAnswer attach(std::uint64_t epoch);
  BindAnswer claim(std::uint64_t epoch, const wire::Ticket& ticket);
  BindAnswer reclaim(std::uint64_t epoch);
  // A bound connection has closed.
  void unbind(TimePoint now);

  // kOk, or why a request in this epoch gets nothing: one that reads, one that writes.
  [[nodiscard]] wire::Status check_read(std::uint64_t epoch);
  [[nodiscard]] wire::Status check_write(std::uint64_t epoch);
  // What Stat answers.
  BindAnswer stat(std::uint64_t epoch);
  wire::Status offer(std::uint64_t epoch, const wire::Ticket& ticket);
  wire::Status commit(std::uint64_t epoch);

  // `pages`, slots.size() of them and within vm_pages, become what the slots hold. Afterwards the
  // first `unused` of `slots` are slots to be freed by the caller: replaced or not taken.
  struct Published {
    wire::Status status;
    std::size_t unused;
  };
  Published publish(std::uint64_t epoch, wire::PutPages pages, std::uint64_t version,
                    std::span<SlotIndex> slots);
  // The same for pages that had to be received elsewhere; `tags` may be null without tags.
  wire::Status publish_copy(std::uint64_t epoch, wire::PutPages pages, std::uint64_t version,
                            std::uint32_t count, const std::uint8_t* content,
                            const std::uint8_t* tags, AllocationHint* hint);

  // Writes a Get's payload to `out`, which has room for get_payload_bound(count), and its length
  // to `bytes`; `version` gets the lowest one found, `found` the number of pages.
  struct GetAnswer {
    wire::Status status = wire::Status::kOk;
    std::size_t bytes = 0;
    std::uint64_t version = 0;
    std::uint32_t found = 0;
  };
  GetAnswer get(std::uint64_t epoch, std::uint64_t page, std::uint32_t count, std::uint8_t* out);
  [[nodiscard]] std::size_t get_payload_bound(std::uint32_t count) const {
    return wire::get_bitmap_bytes(count) + std::size_t{count} * (kPageSize + tag_bytes_);
  }
  // Forgets pages whose version is at most `version`; `discarded` gets their number.
  wire::Status discard(std::uint64_t epoch, std::uint64_t page, std::uint64_t count,
                       std::uint64_t version, std::uint64_t* discarded);

  // Ends the session: nothing is answered but kGone or kCommitted from here on, and the record is a
  // tombstone. The slots are still held: free_slots() gives them back, once, on any thread.
  struct Ended {
    wire::Status status;
    bool first;  // else it had ended before, and somebody else frees the slots
  };
  Ended end(std::uint64_t epoch);
  // For the operator. Without `force` only a session that no connection holds and nobody has
  // committed. False: refused, or ended already.
  bool end_by_operator(bool force);
  // Whether it has had no connection since before `limit`, and may then die of that: by itself, or
  // after the arbiter was asked.
  [[nodiscard]] handover::Record::Age orphan(TimePoint limit);
  // Not before the time-out has passed again.
  void postpone(TimePoint now);
  // Ends it if orphan() still says `age`.
  bool end_if_orphan(TimePoint limit, handover::Record::Age age);
  void free_slots();

  // Recovery: the slot that must go when `slot` is to hold its page, kNoSlot when none must.
  SlotIndex adopt(SlotIndex slot, const SlotMeta& meta);

  [[nodiscard]] const wire::SessionId& id() const { return id_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  // URI of the server that decides who owns the VM; empty: this one.
  [[nodiscard]] const std::string& arbiter() const { return arbiter_; }
  [[nodiscard]] std::uint64_t vm_pages() const { return vm_pages_; }
  [[nodiscard]] std::uint64_t capacity_pages() const { return capacity_pages_; }
  // What its page table can take: a page of it for each page stored, or the whole of it.
  [[nodiscard]] static std::uint64_t max_table_pages(std::uint64_t vm_pages,
                                                     std::uint64_t capacity_pages) {
    return std::min(vm_pages / kBlockPages + 1, capacity_pages);
  }
  [[nodiscard]] std::uint64_t max_table_pages() const {
    return max_table_pages(vm_pages_, capacity_pages_);
  }
  [[nodiscard]] std::uint32_t tag_bytes() const { return tag_bytes_; }
  [[nodiscard]] std::uint32_t record() const { return record_; }
  struct Figures {
    std::uint64_t epoch = 0;
    std::uint64_t used_pages = 0;
    std::uint32_t connections = 0;
    bool committed = false;
    bool ended = false;
  };
  [[nodiscard]] Figures figures();

 private:
  // Pages that one lock hold may copy: others wait no longer than that.
  static constexpr std::uint32_t kPagesPerHold = 16;
  // Page table entries in 4 KiB, which share one bit of touched_.
  static constexpr std::uint64_t kBlockPages = 1024;

  [[nodiscard]] wire::Status check_read_locked(std::uint64_t epoch) const;
  [[nodiscard]] wire::Status check_write_locked(std::uint64_t epoch) const;
  // What a Claim or Reclaim, a binding request, is answered.
  BindAnswer bind_locked(const handover::Answer& answer);
  BindAnswer ended_locked(std::uint64_t epoch) const;
  [[nodiscard]] handover::Record::Age orphan_locked(TimePoint limit) const;
  [[nodiscard]] wire::SessionReply figures_locked() const;
  void end_locked();
  // Makes `slot` hold `page`; returns the slot that is unused now, kNoSlot when none is.
  SlotIndex store_locked(std::uint64_t page, std::uint64_t version, SlotIndex slot);
  // The next page from `page` on, below `end`, that may have an entry.
  [[nodiscard]] std::uint64_t skip_untouched(std::uint64_t page, std::uint64_t end) const;

  Arena* const arena_;
  const std::uint32_t record_;
  const wire::SessionId id_;
  const std::string name_;
  const std::string arbiter_;
  const std::uint64_t vm_pages_;
  const std::uint64_t capacity_pages_;
  const std::uint32_t tag_bytes_;

  std::mutex mutex_;
  handover::Record ownership_;
  bool ended_ = false;
  std::uint64_t used_pages_ = 0;
  std::uint32_t connections_ = 0;
  TimePoint last_used_;
  LazyArray table_;                     // slot + 1, 0: not stored
  std::vector<std::uint64_t> touched_;  // a bit per kBlockPages entries
};

}  // namespace kintsugi::memserver
