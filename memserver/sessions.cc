// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/sessions.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "memserver/text.h"

namespace kintsugi::memserver {

using wire::Status;

Sessions::Sessions(Arena* arena, const SessionLimits& limits, Clock clock)
    : arena_(arena),
      limits_(limits),
      clock_(std::move(clock)),
      record_in_use_(arena->max_sessions()) {}

Result<std::unique_ptr<Sessions>> Sessions::create(Arena* arena, const SessionLimits& limits,
                                                   Clock clock) {
  std::unique_ptr<Sessions> sessions(new Sessions(arena, limits, std::move(clock)));
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
  if (sessions_.contains(request.session)) return {{Status::kExists}, nullptr};
  if (request.capacity_pages > limits_.quota.value) return {{Status::kQuota}, nullptr};
  if (request.capacity_pages > arena_->capacity().value - reserved_pages_) {
    return {{Status::kFull}, nullptr};
  }
  const auto free_record = std::find(record_in_use_.begin(), record_in_use_.end(), false);
  if (free_record == record_in_use_.end()) return {{Status::kTooMany}, nullptr};
  const auto index = static_cast<std::uint32_t>(free_record - record_in_use_.begin());
  SessionRecord& record = arena_->record(index);
  record.generation++;
  record.id = request.session;
  record.epoch = 1;
  record.vm_pages = request.vm_pages;
  record.capacity_pages = request.capacity_pages;
  record.tag_bytes = request.tag_bytes;
  record.committed = 0;
  std::memcpy(record.name, request.name, sizeof(record.name));
  record.name[sizeof(record.name) - 1] = '\0';
  auto session = std::make_shared<Session>(arena_, index, clock_());
  if (!session->ok()) {
    spdlog::error("no addresses for the page table of a VM of {}",
                  size_text(to_bytes(PageCount{request.vm_pages})));
    return {{Status::kInternal}, nullptr};
  }
  std::atomic_ref(record.state).store(kRecordLive, std::memory_order_release);
  record_in_use_[index] = true;
  reserved_pages_ += request.capacity_pages;
  sessions_[request.session] = session;
  return {session->open(), session};
}

std::shared_ptr<Session> Sessions::find(const wire::SessionId& id) {
  const std::lock_guard lock(mutex_);
  const auto at = sessions_.find(id);
  return at == sessions_.end() ? nullptr : at->second;
}

void Sessions::reclaim(const std::shared_ptr<Session>& session) {
  session->free_slots();
  arena_->trim();
  const std::lock_guard lock(mutex_);
  reserved_pages_ -= session->capacity_pages();
  record_in_use_[session->record()] = false;
  if (const auto at = sessions_.find(session->id());
      at != sessions_.end() && at->second == session) {
    sessions_.erase(at);
  }
}

std::size_t Sessions::expire() {
  const TimePoint limit = clock_() - limits_.orphan_timeout;
  std::size_t ended = 0;
  for (const std::shared_ptr<Session>& session : list()) {
    if (!session->end_if_orphan(limit)) continue;
    spdlog::warn(
        "session {} of VM '{}' was never committed and has had no connection for {} s: "
        "dropped",
        id_text(session->id()), session->name(),
        std::chrono::duration_cast<std::chrono::seconds>(limits_.orphan_timeout).count());
    reclaim(session);
    ended++;
  }
  return ended;
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
