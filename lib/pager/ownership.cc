// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/ownership.h"

#include <cerrno>

namespace kintsugi {

using Phase = handover::Destination::Phase;

std::optional<handover::Request> Ownership::wanted(std::size_t server) {
  const std::lock_guard lock(mutex_);
  std::optional<handover::Request> request = destination_.wanted(server);
  if (request) destination_.asked(server, *request);
  return request;
}

void Ownership::answered(std::size_t server, const handover::Request& request,
                         const handover::Answer& answer) {
  const std::lock_guard lock(mutex_);
  destination_.answered(server, request, answer);
  changed_.notify_all();
}

Phase Ownership::phase() const {
  const std::lock_guard lock(mutex_);
  return destination_.phase();
}

bool Ownership::may_run() const {
  const std::lock_guard lock(mutex_);
  return destination_.may_run();
}

bool Ownership::give_up() {
  const std::lock_guard lock(mutex_);
  return destination_.give_up();
}

Result<void> Ownership::commit(const std::function<void()>& poke) {
  {
    const std::lock_guard lock(mutex_);
    if (!destination_.commit()) {
      return make_error(EINVAL, "the handover is committed before every server was claimed");
    }
  }
  poke();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return cancelled_ || destination_.phase() != Phase::kCommitting; });
  if (destination_.may_run()) return {};
  if (destination_.phase() == Phase::kCommitting) {
    return make_error(ECANCELED,
                      "cancelled while the arbiter's answer was awaited: it is not known here who "
                      "owns the VM");
  }
  return make_error(wire::status_errno(destination_.refusal()),
                    "the handover was refused: {}; the VM is the source's",
                    wire::status_text(destination_.refusal()));
}

void Ownership::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  changed_.notify_all();
}

}  // namespace kintsugi
