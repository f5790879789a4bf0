// SPDX-License-Identifier: GPL-2.0-or-later
// The sessions of a server, and the capacity they have reserved.
//
// The sum of reservations never exceeds the arena's capacity, so a page within its session's
// capacity always has a slot. A reservation is given back when the last slot of an ended session
// is free, not before. So it is with the memory of page tables (Arena::max_table_pages()).
// Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "memserver/session.h"

namespace kintsugi::memserver {

using Clock = std::function<TimePoint()>;

struct SessionLimits {
  PageCount quota{UINT64_MAX};  // that one VM may reserve
  std::chrono::milliseconds orphan_timeout{std::chrono::seconds(120)};
  // For so long it is remembered whether an ended session was ever committed; less if new sessions
  // need the records.
  std::chrono::seconds tombstone_timeout{std::chrono::hours(24)};
  // Connections that sessions may have, all together, that nobody has committed: the rest is kept
  // for VMs that run.
  std::uint32_t uncommitted_connections = UINT32_MAX;
};

// Asks another server what it has of a session: the answer to a Reclaim in epoch 0, which changes
// nothing. Errors: it could not be asked. Blocks.
using AskArbiter =
    std::function<Result<handover::Answer>(const std::string& uri, const wire::SessionId& session)>;
[[nodiscard]] Result<handover::Answer> ask_arbiter(const std::string& uri,
                                                   const wire::SessionId& session);

class Sessions {
 public:
  // Takes over what the arena's file holds. The arena outlives the sessions.
  [[nodiscard]] static Result<std::unique_ptr<Sessions>> create(
      Arena* arena, const SessionLimits& limits,
      Clock clock = [] { return std::chrono::steady_clock::now(); }, AskArbiter ask = &ask_arbiter);

  struct Opened {
    BindAnswer answer;
    std::shared_ptr<Session> session;  // with kOk
  };
  // `request` is what the wire carried: nothing in it is trusted.
  Opened open(const wire::OpenRequest& request);
  // Null when there is none.
  [[nodiscard]] std::shared_ptr<Session> find(const wire::SessionId& id);
  // What a Reclaim, or anything else that binds, is answered where find() found nothing.
  [[nodiscard]] BindAnswer find_ended(const wire::SessionId& id, std::uint64_t epoch);
  // Gives back all that an ended session holds: slots, memory, reservation. Once per session; can
  // take seconds for a big one.
  void free_ended(const std::shared_ptr<Session>& session);
  // Ends and frees orphans, and forgets old tombstones: see SessionLimits. Asks arbiters, so it may
  // block. Returns how many sessions ended.
  std::size_t expire();

  // Whether a connection may be bound to `session`, or to a new one when that is null.
  [[nodiscard]] bool may_bind(Session* session);

  [[nodiscard]] std::vector<std::shared_ptr<Session>> list();
  [[nodiscard]] PageCount capacity() const { return arena_->capacity(); }
  [[nodiscard]] PageCount reserved();
  [[nodiscard]] Arena& arena() { return *arena_; }
  [[nodiscard]] TimePoint now() const { return clock_(); }
  [[nodiscard]] const SessionLimits& limits() const { return limits_; }

 private:
  Sessions(Arena* arena, const SessionLimits& limits, Clock clock, AskArbiter ask);
  Result<void> recover();
  // A record for a new session: a free one, else the oldest tombstone's.
  [[nodiscard]] std::optional<std::uint32_t> take_record_locked();
  void forget_tombstones();
  // The record of an ended session that is still remembered; null without.
  [[nodiscard]] SessionRecord* find_tombstone_locked(const wire::SessionId& id);
  [[nodiscard]] bool arbiter_has_ended(const Session& session);

  Arena* const arena_;
  const SessionLimits limits_;
  const Clock clock_;
  const AskArbiter ask_;
  std::mutex mutex_;
  std::map<wire::SessionId, std::shared_ptr<Session>> sessions_;
  std::vector<bool> record_in_use_;  // until freed; not by tombstones
  std::uint64_t reserved_pages_ = 0;
  std::uint64_t table_pages_ = 0;  // that the sessions' page tables may take
};

}  // namespace kintsugi::memserver
