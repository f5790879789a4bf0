// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/session.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <ctime>

#include "memserver/text.h"

namespace kintsugi::memserver {

using wire::Status;

std::uint64_t boot_time_s() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec);
}

LazyArray::LazyArray(std::uint64_t length) : bytes_(length * sizeof(std::uint32_t)) {
  void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at != MAP_FAILED) data_ = static_cast<std::uint32_t*>(at);
}

LazyArray::~LazyArray() {
  if (data_) munmap(data_, bytes_);
}

Session::Session(Arena* arena, std::uint32_t record, TimePoint now)
    : arena_(arena),
      record_(record),
      id_(arena->record(record).id),
      name_(printable({arena->record(record).name,
                       strnlen(arena->record(record).name, sizeof(SessionRecord::name))})),
      arbiter_(arena->record(record).arbiter,
               strnlen(arena->record(record).arbiter, sizeof(SessionRecord::arbiter))),
      vm_pages_(arena->record(record).vm_pages),
      capacity_pages_(arena->record(record).capacity_pages),
      tag_bytes_(arena->record(record).tag_bytes),
      ownership_(&arena->record(record).ownership),
      last_used_(now),
      table_(vm_pages_),
      touched_((vm_pages_ / kBlockPages + 1 + 63) / 64) {
  ownership_.recover();
}

Status Session::check_read_locked(std::uint64_t epoch) const {
  if (ended_) return Status::kGone;
  return ownership_.may_read(Epoch{epoch}) ? Status::kOk : Status::kFenced;
}

Status Session::check_write_locked(std::uint64_t epoch) const {
  if (ended_) return Status::kGone;
  return ownership_.may_write(Epoch{epoch}) ? Status::kOk : Status::kFenced;
}

wire::SessionReply Session::figures_locked() const {
  wire::SessionReply reply;
  reply.capacity_pages = capacity_pages_;
  reply.used_pages = used_pages_;
  reply.vm_pages = vm_pages_;
  reply.tag_bytes = tag_bytes_;
  reply.committed = ownership_.committed() ? 1 : 0;
  reply.last_version = arena_->record(record_).last_version;
  return reply;
}

BindAnswer Session::bind_locked(const handover::Answer& answer) {
  if (answer.status == Status::kOk) connections_++;
  return {answer.status, answer.epoch.value, figures_locked()};
}

BindAnswer Session::ended_locked(std::uint64_t epoch) const {
  return {handover::Record::reclaim_tombstone(ownership_.committed_epoch(), Epoch{epoch}).status};
}

BindAnswer Session::open(const wire::Ticket& ticket) {
  const std::lock_guard lock(mutex_);
  if (ended_) return {Status::kExists};
  return bind_locked(ownership_.open(ticket));
}

BindAnswer Session::attach(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  return bind_locked({check_read_locked(epoch), Epoch{epoch}});
}

BindAnswer Session::claim(std::uint64_t epoch, const wire::Ticket& ticket) {
  const std::lock_guard lock(mutex_);
  if (ended_) return {Status::kGone};
  return bind_locked(ownership_.claim(Epoch{epoch}, ticket));
}

BindAnswer Session::reclaim(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (ended_) return ended_locked(epoch);
  return bind_locked(ownership_.reclaim(Epoch{epoch}));
}

void Session::unbind(TimePoint now) {
  const std::lock_guard lock(mutex_);
  connections_--;
  last_used_ = now;
}

Status Session::check_read(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  return check_read_locked(epoch);
}

Status Session::check_write(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  return check_write_locked(epoch);
}

BindAnswer Session::stat(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  return {check_read_locked(epoch), epoch, figures_locked()};
}

Status Session::offer(std::uint64_t epoch, const wire::Ticket& ticket) {
  const std::lock_guard lock(mutex_);
  if (ended_) return Status::kGone;
  return ownership_.offer(Epoch{epoch}, ticket).status;
}

Status Session::commit(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (ended_) return Status::kGone;
  return ownership_.commit(Epoch{epoch}).status;
}

SlotIndex Session::store_locked(std::uint64_t page, std::uint64_t version, SlotIndex slot) {
  std::uint32_t& entry = table_[page];
  if (entry == 0) {
    arena_->publish(slot, record_, page, version);
    entry = slot + 1;
    used_pages_++;
    const std::uint64_t block = page / kBlockPages;
    touched_[block / 64] |= std::uint64_t{1} << (block % 64);
    return Arena::kNoSlot;
  }
  const SlotIndex old = entry - 1;
  if (version < arena_->version(old)) return slot;
  arena_->publish(slot, record_, page, version);
  entry = slot + 1;
  arena_->retire(old);
  return old;
}

Session::Published Session::publish(std::uint64_t epoch, wire::PutPages pages,
                                    std::uint64_t version, std::span<SlotIndex> slots) {
  const std::lock_guard lock(mutex_);
  if (const Status status = check_write_locked(epoch); status != Status::kOk) {
    return {status, slots.size()};
  }
  std::uint64_t fresh = 0;
  wire::PutPages ahead = pages;
  for (std::size_t i = 0; i < slots.size(); i++) fresh += table_[ahead.next()] == 0 ? 1 : 0;
  if (fresh > capacity_pages_ - used_pages_) return {Status::kFull, slots.size()};
  std::uint64_t& last_version = arena_->record(record_).last_version;
  last_version = std::max(last_version, version);
  std::size_t unused = 0;
  for (std::size_t i = 0; i < slots.size(); i++) {
    const SlotIndex freed = store_locked(pages.next(), version, slots[i]);
    if (freed != Arena::kNoSlot) slots[unused++] = freed;
  }
  return {Status::kOk, unused};
}

Status Session::publish_copy(std::uint64_t epoch, wire::PutPages pages, std::uint64_t version,
                             std::uint32_t count, const std::uint8_t* content,
                             const std::uint8_t* tags, AllocationHint* hint) {
  // A page a turn, because one free slot is all that can be counted on; and so part of the pages
  // may be stored when the rest is refused, as when a connection breaks between two Puts.
  for (std::uint32_t i = 0; i < count; i++) {
    SlotIndex slot = 0;
    if (!arena_->allocate_emergency(&slot, hint)) return Status::kInternal;
    std::memcpy(arena_->page(slot), content + std::size_t{i} * kPageSize, kPageSize);
    if (tag_bytes_ > 0) {
      std::memcpy(arena_->tag(slot), tags + std::size_t{i} * tag_bytes_, tag_bytes_);
    }
    const Published published =
        publish(epoch, wire::PutPages(pages.next(), 0), version, {&slot, 1});
    if (published.unused > 0) arena_->free({&slot, 1});
    if (published.status != Status::kOk) return published.status;
  }
  return Status::kOk;
}

Session::GetAnswer Session::get(std::uint64_t epoch, std::uint64_t page, std::uint32_t count,
                                std::uint8_t* out) {
  GetAnswer answer;
  const std::uint32_t bitmap_bytes = wire::get_bitmap_bytes(count);
  std::memset(out, 0, bitmap_bytes);
  std::uint8_t* at = out + bitmap_bytes;
  answer.version = UINT64_MAX;
  // Tags follow all pages, and how many there are is known at the end.
  std::array<std::uint8_t, std::size_t{wire::kMaxPagesPerFrame} * wire::kMaxTagBytes> tags;
  std::size_t tags_bytes = 0;
  for (std::uint32_t i = 0; i < count;) {
    const std::lock_guard lock(mutex_);
    if (const Status status = check_read_locked(epoch); status != Status::kOk) return {status};
    const std::uint32_t end = std::min(count, i + kPagesPerHold);
    for (; i < end; i++) {
      const std::uint32_t entry = table_[page + i];
      if (entry == 0) continue;
      const SlotIndex slot = entry - 1;
      out[i / 8] |= static_cast<std::uint8_t>(1U << (i % 8));
      std::memcpy(at, arena_->page(slot), kPageSize);
      at += kPageSize;
      if (tag_bytes_ > 0) {
        std::memcpy(tags.data() + tags_bytes, arena_->tag(slot), tag_bytes_);
        tags_bytes += tag_bytes_;
      }
      answer.version = std::min(answer.version, arena_->version(slot));
      answer.found++;
    }
  }
  if (tags_bytes > 0) std::memcpy(at, tags.data(), tags_bytes);
  if (answer.found == 0) answer.version = 0;
  answer.bytes = static_cast<std::size_t>(at - out) + tags_bytes;
  return answer;
}

std::uint64_t Session::skip_untouched(std::uint64_t page, std::uint64_t end) const {
  while (page < end) {
    const std::uint64_t block = page / kBlockPages;
    const std::uint64_t bits = touched_[block / 64] >> (block % 64);
    if ((bits & 1) != 0) return page;
    const std::uint64_t skip =
        bits == 0 ? 64 - block % 64 : static_cast<std::uint64_t>(std::countr_zero(bits));
    page = (block + skip) * kBlockPages;
  }
  return end;
}

Status Session::discard(std::uint64_t epoch, std::uint64_t page, std::uint64_t count,
                        std::uint64_t version, std::uint64_t* discarded) {
  constexpr std::uint64_t kEntriesPerHold = 8192;
  std::array<SlotIndex, wire::kMaxPagesPerFrame> freed;
  const std::uint64_t end = page + count;
  while (page < end) {
    std::size_t n = 0;
    Status status = Status::kOk;
    {
      const std::lock_guard lock(mutex_);
      status = check_write_locked(epoch);
      const std::uint64_t from = skip_untouched(page, end);
      const std::uint64_t to = std::min(end, from + kEntriesPerHold);
      for (page = from; status == Status::kOk && page < to && n < freed.size(); page++) {
        std::uint32_t& entry = table_[page];
        if (entry == 0 || arena_->version(entry - 1) > version) continue;
        freed[n++] = entry - 1;
        arena_->retire(entry - 1);
        entry = 0;
        used_pages_--;
      }
    }
    arena_->free({freed.data(), n});
    *discarded += n;
    if (status != Status::kOk) return status;
  }
  return check_write(epoch);
}

void Session::end_locked() {
  ended_ = true;
  SessionRecord& record = arena_->record(record_);
  record.ended_s = boot_time_s();
  // One store ends it: slots of a record that is not live belong to nobody.
  std::atomic_ref(record.state).store(kRecordTombstone, std::memory_order_release);
}

Session::Ended Session::end(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (ended_) return {Status::kOk, false};
  if (const Status status = check_write_locked(epoch); status != Status::kOk) {
    return {status, false};
  }
  end_locked();
  return {Status::kOk, true};
}

bool Session::end_by_operator(bool force) {
  const std::lock_guard lock(mutex_);
  if (ended_ || (!force && (ownership_.committed() || connections_ > 0))) return false;
  end_locked();
  return true;
}

handover::Record::Age Session::orphan_locked(TimePoint limit) const {
  if (ended_ || connections_ > 0 || last_used_ > limit) return handover::Record::Age::kNever;
  return ownership_.age(arbiter_.empty());
}

handover::Record::Age Session::orphan(TimePoint limit) {
  const std::lock_guard lock(mutex_);
  return orphan_locked(limit);
}

void Session::postpone(TimePoint now) {
  const std::lock_guard lock(mutex_);
  last_used_ = now;
}

bool Session::end_if_orphan(TimePoint limit, handover::Record::Age age) {
  const std::lock_guard lock(mutex_);
  if (age == handover::Record::Age::kNever || orphan_locked(limit) != age) return false;
  end_locked();
  return true;
}

void Session::free_slots() {
  {
    // Whoever saw the session alive has let go of the lock; from here on the checks keep everyone
    // away from the table, and nobody waits for us.
    const std::lock_guard lock(mutex_);
    used_pages_ = 0;
  }
  std::array<SlotIndex, 512> freed;
  std::size_t n = 0;
  for (std::uint64_t page = skip_untouched(0, vm_pages_); page < vm_pages_;
       page = skip_untouched(page + 1, vm_pages_)) {
    std::uint32_t& entry = table_[page];
    if (entry == 0) continue;
    freed[n++] = entry - 1;
    entry = 0;
    if (n == freed.size()) {
      arena_->free(freed);
      n = 0;
    }
  }
  arena_->free({freed.data(), n});
}

SlotIndex Session::adopt(SlotIndex slot, const SlotMeta& meta) {
  const std::lock_guard lock(mutex_);
  std::uint32_t& entry = table_[meta.page];
  if (entry != 0 && arena_->version(entry - 1) >= meta.version) return slot;
  const SlotIndex old = entry == 0 ? Arena::kNoSlot : entry - 1;
  if (entry == 0) used_pages_++;
  entry = slot + 1;
  const std::uint64_t block = meta.page / kBlockPages;
  touched_[block / 64] |= std::uint64_t{1} << (block % 64);
  return old;
}

Session::Figures Session::figures() {
  const std::lock_guard lock(mutex_);
  return {ownership_.epoch().value, used_pages_, connections_, ownership_.committed(), ended_};
}

}  // namespace kintsugi::memserver
