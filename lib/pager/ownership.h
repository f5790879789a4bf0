// SPDX-License-Identifier: GPL-2.0-or-later
// The pager's part in the ownership protocol: handover::Destination for the threads that have to do
// with it, which are the one that hands over and the servers' keepers.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "base/result.h"
#include "handover/destination.h"

namespace kintsugi {

// Thread-safe.
class Ownership {
 public:
  Ownership(const handover::Ticket& ticket, const std::vector<Epoch>& epochs)
      : destination_(ticket, epochs) {}

  // See handover::Destination. wanted() counts as asked: whoever calls it sends the request.
  [[nodiscard]] std::optional<handover::Request> wanted(std::size_t server);
  void answered(std::size_t server, const handover::Request& request,
                const handover::Answer& answer);
  [[nodiscard]] handover::Destination::Phase phase() const;
  [[nodiscard]] bool may_run() const;
  [[nodiscard]] bool give_up();

  // Begins to commit, calls `poke`, and waits until the arbiter has answered, or cancel().
  [[nodiscard]] Result<void> commit(const std::function<void()>& poke);
  void cancel();

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  handover::Destination destination_;
  bool cancelled_ = false;
};

}  // namespace kintsugi
