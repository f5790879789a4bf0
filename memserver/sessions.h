// SPDX-License-Identifier: GPL-2.0-or-later
// The sessions of a server, and the capacity they have reserved.
//
// The sum of reservations never exceeds the arena's capacity, so a page within its session's
// capacity always has a slot. A reservation is given back when the last slot of an ended session
// is free, not before. Thread-safe.
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
};

class Sessions {
 public:
  // Takes over what the arena's file holds. The arena outlives the sessions.
  [[nodiscard]] static Result<std::unique_ptr<Sessions>> create(
      Arena* arena, const SessionLimits& limits,
      Clock clock = [] { return std::chrono::steady_clock::now(); });

  struct Opened {
    BindAnswer answer;
    std::shared_ptr<Session> session;  // with kOk
  };
  // `request` is what the wire carried: nothing in it is trusted.
  Opened open(const wire::OpenRequest& request);
  // Null when there is none.
  [[nodiscard]] std::shared_ptr<Session> find(const wire::SessionId& id);
  // Gives back all that an ended session holds: slots, memory, reservation. Once per session; can
  // take seconds for a big one.
  void reclaim(const std::shared_ptr<Session>& session);
  // Ends and reclaims orphans: see SessionLimits. Returns how many.
  std::size_t expire();

  [[nodiscard]] std::vector<std::shared_ptr<Session>> list();
  [[nodiscard]] PageCount capacity() const { return arena_->capacity(); }
  [[nodiscard]] PageCount reserved();
  [[nodiscard]] Arena& arena() { return *arena_; }
  [[nodiscard]] TimePoint now() const { return clock_(); }
  [[nodiscard]] const SessionLimits& limits() const { return limits_; }

 private:
  Sessions(Arena* arena, const SessionLimits& limits, Clock clock);
  Result<void> recover();

  Arena* const arena_;
  const SessionLimits limits_;
  const Clock clock_;
  std::mutex mutex_;
  std::map<wire::SessionId, std::shared_ptr<Session>> sessions_;
  std::vector<bool> record_in_use_;  // until reclaimed
  std::uint64_t reserved_pages_ = 0;
};

}  // namespace kintsugi::memserver
