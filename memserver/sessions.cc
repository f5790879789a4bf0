// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/sessions.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "memserver/text.h"
#include "wire/connection.h"
#include "wire/uri.h"

namespace kintsugi::memserver {

using wire::Status;

Result<handover::Answer> ask_arbiter(const std::string& uri, const wire::SessionId& session) {
  const Result<wire::Uri> parsed = wire::parse_uri(uri);
  if (!parsed) return parsed.error();
  constexpr std::chrono::milliseconds kPatience{2000};  // others wait behind this
  Result<std::unique_ptr<wire::Connection>> arbiter =
      wire::Connection::connect(*parsed, {kPatience, kPatience, nullptr});
  if (!arbiter) return arbiter.error();
  const Result<wire::OwnershipInfo> answer =
      (*arbiter)->ask_ownership(wire::Op::kReclaim, session, Epoch{}, {});
  if (!answer) return answer.error();
  return handover::Answer{answer->status, answer->epoch};
}

Sessions::Sessions(Arena* arena, const SessionLimits& limits, Clock clock, AskArbiter ask)
    : arena_(arena),
      limits_(limits),
      clock_(std::move(clock)),
      ask_(std::move(ask)),
      record_in_use_(arena->max_sessions()) {}

Result<std::unique_ptr<Sessions>> Sessions::create(Arena* arena, const SessionLimits& limits,
                                                   Clock clock, AskArbiter ask) {
  std::unique_ptr<Sessions> sessions(new Sessions(arena, limits, std::move(clock), std::move(ask)));
  if (Result<void> recovered = sessions->recover(); !recovered) return recovered.error();
  return sessions;
}

Result<void> Sessions::recover() {
  std::vector<Session*> by_record(arena_->max_sessions());
  for (std::uint32_t i = 0; i < arena_->max_sessions(); i++) {
    if (arena_->record(i).state != kRecordLive) continue;
    auto session = std::make_shared<Session>(arena_, i, clock_());
    if (!session->ok()) {
      return make_error(ENOMEM, "no addresses for the page table of VM '{}' of {}", session->name(),
                        size_text(to_bytes(PageCount{session->vm_pages()})));
    }
    by_record[i] = session.get();
    record_in_use_[i] = true;
    reserved_pages_ += session->capacity_pages();
    table_pages_ += session->max_table_pages();
    sessions_[session->id()] = std::move(session);
  }
  arena_->recover([&](SlotIndex slot, const SlotMeta& meta) {
    return by_record[meta.session]->adopt(slot, meta);
  });
  for (const auto& [id, session] : sessions_) {
    spdlog::info("session {} of VM '{}' is back with {} in epoch {}", id_text(id), session->name(),
                 size_text(to_bytes(PageCount{session->figures().used_pages})),
                 session->figures().epoch);
  }
  return {};
}

Sessions::Opened Sessions::open(const wire::OpenRequest& request) {
  if (request.vm_pages == 0 || request.vm_pages > kMaxVmPages || request.capacity_pages == 0 ||
      request.tag_bytes > arena_->max_tag_bytes() || request.reserved != 0) {
    return {{Status::kBadRequest}, nullptr};
  }
  const std::lock_guard lock(mutex_);
  if (const auto at = sessions_.find(request.session); at != sessions_.end()) {
    return {at->second->open(request.ticket), at->second};
  }
  if (find_tombstone_locked(request.session)) return {{Status::kExists}, nullptr};
  if (request.capacity_pages > limits_.quota.value) return {{Status::kQuota}, nullptr};
  if (request.capacity_pages > arena_->capacity().value - reserved_pages_) {
    return {{Status::kFull}, nullptr};
  }
  const std::uint64_t table_pages =
      Session::max_table_pages(request.vm_pages, request.capacity_pages);
  // Sessions of an arena that had another bound may be beyond it already.
  if (table_pages + table_pages_ > arena_->max_table_pages().value) {
    spdlog::warn(
        "the page table of a VM of {} may take {}, and all may take {}: VMs are too large for this "
        "capacity",
        size_text(to_bytes(PageCount{request.vm_pages})),
        size_text(to_bytes(PageCount{table_pages})),
        size_text(to_bytes(arena_->max_table_pages())));
    return {{Status::kFull}, nullptr};
  }
  const std::optional<std::uint32_t> index = take_record_locked();
  if (!index) return {{Status::kTooMany}, nullptr};
  SessionRecord& record = arena_->record(*index);
  record.generation++;
  record.id = request.session;
  handover::Record(&record.ownership).begin(request.ticket);
  record.vm_pages = request.vm_pages;
  record.capacity_pages = request.capacity_pages;
  record.tag_bytes = request.tag_bytes;
  record.last_version = 0;
  std::memcpy(record.name, request.name, sizeof(record.name));
  record.name[sizeof(record.name) - 1] = '\0';
  std::memcpy(record.arbiter, request.arbiter, sizeof(record.arbiter));
  record.arbiter[sizeof(record.arbiter) - 1] = '\0';
  auto session = std::make_shared<Session>(arena_, *index, clock_());
  if (!session->ok()) {
    spdlog::error("no addresses for the page table of a VM of {}",
                  size_text(to_bytes(PageCount{request.vm_pages})));
    return {{Status::kInternal}, nullptr};
  }
  sessions_[request.session] = session;  // first: there may be no memory for it
  std::atomic_ref(record.state).store(kRecordLive, std::memory_order_release);
  record_in_use_[*index] = true;
  reserved_pages_ += request.capacity_pages;
  table_pages_ += table_pages;
  return {session->open(request.ticket), session};
}

std::optional<std::uint32_t> Sessions::take_record_locked() {
  std::optional<std::uint32_t> oldest;
  for (std::uint32_t i = 0; i < record_in_use_.size(); i++) {
    if (record_in_use_[i]) continue;
    const SessionRecord& record = arena_->record(i);
    if (record.state == kRecordFree) return i;
    if (!oldest || record.ended_s < arena_->record(*oldest).ended_s) oldest = i;
  }
  if (oldest) {
    std::atomic_ref(arena_->record(*oldest).state).store(kRecordFree, std::memory_order_release);
  }
  return oldest;
}

std::shared_ptr<Session> Sessions::find(const wire::SessionId& id) {
  const std::lock_guard lock(mutex_);
  const auto at = sessions_.find(id);
  return at == sessions_.end() ? nullptr : at->second;
}

BindAnswer Sessions::find_ended(const wire::SessionId& id, std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  const SessionRecord* record = find_tombstone_locked(id);
  if (!record) return {Status::kNoSession};
  const Epoch committed{record->ownership.committed_epoch};
  return {handover::Record::reclaim_tombstone(committed, Epoch{epoch}).status};
}

void Sessions::free_ended(const std::shared_ptr<Session>& session) {
  session->free_slots();
  arena_->trim();
  const std::lock_guard lock(mutex_);
  reserved_pages_ -= session->capacity_pages();
  table_pages_ -= session->max_table_pages();
  record_in_use_[session->record()] = false;
  sessions_.erase(session->id());
}

// A session that a destination has claimed may belong to a running VM, whose host cannot reach us:
// the arbiter knows. What it once had and ended with nobody having committed, nobody can commit.
bool Sessions::arbiter_has_ended(const Session& session) {
  const Result<handover::Answer> answer = ask_(session.arbiter(), session.id());
  if (answer) return answer->status == Status::kGone;
  spdlog::info("session {} of VM '{}' may have been left behind, and its arbiter cannot tell: {}",
               id_text(session.id()), session.name(), answer.error().message);
  return false;
}

std::size_t Sessions::expire() {
  using Age = handover::Record::Age;
  const TimePoint limit = clock_() - limits_.orphan_timeout;
  std::size_t ended = 0;
  for (const std::shared_ptr<Session>& session : list()) {
    const Age age = session->orphan(limit);
    if (age == Age::kNever) continue;
    if (age == Age::kAskArbiter && !arbiter_has_ended(*session)) {
      session->postpone(clock_());
      continue;
    }
    if (!session->end_if_orphan(limit, age)) continue;
    spdlog::warn(
        "session {} of VM '{}' was never committed and has had no connection for {} s: "
        "dropped",
        id_text(session->id()), session->name(),
        std::chrono::duration_cast<std::chrono::seconds>(limits_.orphan_timeout).count());
    free_ended(session);
    ended++;
  }
  forget_tombstones();
  return ended;
}

void Sessions::forget_tombstones() {
  const std::uint64_t now_s = boot_time_s();
  const auto timeout_s = static_cast<std::uint64_t>(limits_.tombstone_timeout.count());
  const std::lock_guard lock(mutex_);
  for (std::uint32_t i = 0; i < record_in_use_.size(); i++) {
    SessionRecord& record = arena_->record(i);
    if (record_in_use_[i] || record.state != kRecordTombstone) continue;
    if (now_s < record.ended_s + timeout_s) continue;
    std::atomic_ref(record.state).store(kRecordFree, std::memory_order_release);
  }
}

SessionRecord* Sessions::find_tombstone_locked(const wire::SessionId& id) {
  for (std::uint32_t i = 0; i < record_in_use_.size(); i++) {
    SessionRecord& record = arena_->record(i);
    if (!record_in_use_[i] && record.state == kRecordTombstone && record.id == id) return &record;
  }
  return nullptr;
}

bool Sessions::may_bind(Session* session) {
  if (session && session->figures().committed) return true;
  const std::lock_guard lock(mutex_);
  std::uint32_t uncommitted = 0;
  for (const auto& [id, other] : sessions_) {
    const Session::Figures f = other->figures();
    if (!f.committed) uncommitted += f.connections;
  }
  return uncommitted < limits_.uncommitted_connections;
}

std::vector<std::shared_ptr<Session>> Sessions::list() {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Session>> all;
  all.reserve(sessions_.size());
  for (const auto& [id, session] : sessions_) all.push_back(session);
  return all;
}

PageCount Sessions::reserved() {
  const std::lock_guard lock(mutex_);
  return PageCount{reserved_pages_};
}

}  // namespace kintsugi::memserver
