// SPDX-License-Identifier: GPL-2.0-or-later
#include "handover/destination.h"

#include <algorithm>

namespace kintsugi::handover {

using wire::Op;
using wire::Status;

namespace {

constexpr std::size_t kArbiter = 0;

}  // namespace

Destination::Destination(const Ticket& ticket, const std::vector<Epoch>& epochs) : ticket_(ticket) {
  for (const Epoch epoch : epochs) servers_.push_back({epoch, false, false});
}

std::optional<Request> Destination::wanted(std::size_t index) const {
  const State& server = servers_[index];
  switch (phase_) {
    case Phase::kClaiming:
      if (server.claimed) return std::nullopt;
      return Request{Op::kClaim, server.epoch, ticket_};
    case Phase::kCommitting:
      if (index != kArbiter) return std::nullopt;
      return Request{Op::kCommit, server.epoch, ticket_};
    case Phase::kOwning:
      if (server.committed) return std::nullopt;
      return Request{Op::kCommit, server.epoch, ticket_};
    default:
      return std::nullopt;
  }
}

void Destination::asked(std::size_t /*server*/, const Request& request) {
  if (request.op == Op::kCommit) commit_sent_ = true;
}

void Destination::refused(Status status) {
  phase_ = Phase::kGivenUp;
  refusal_ = status;
}

void Destination::answered(std::size_t index, const Request& request, const Answer& answer) {
  State& server = servers_[index];
  if (request.op == Op::kClaim && phase_ == Phase::kClaiming) {
    if (answer.status != Status::kOk) {
      refused(answer.status);
      return;
    }
    server.epoch = answer.epoch;
    server.claimed = true;
    if (std::all_of(servers_.begin(), servers_.end(), [](const State& s) { return s.claimed; })) {
      phase_ = Phase::kClaimed;
    }
  } else if (request.op == Op::kCommit && phase_ == Phase::kCommitting && index == kArbiter) {
    if (answer.status == Status::kNoSession) return;  // never "not committed": ask on
    if (answer.status != Status::kOk) {
      refused(answer.status);
      return;
    }
    phase_ = Phase::kOwning;
    server.committed = true;
  } else if (request.op == Op::kCommit && phase_ == Phase::kOwning) {
    // A refusal would be another owner's, which the protocol excludes, or lost pages: the pager
    // meets those when it attaches.
    server.committed = server.committed || answer.status == Status::kOk;
  }
  if (phase_ == Phase::kOwning &&
      std::all_of(servers_.begin(), servers_.end(), [](const State& s) { return s.committed; })) {
    phase_ = Phase::kOwner;
  }
}

bool Destination::commit() {
  if (phase_ == Phase::kClaimed) phase_ = Phase::kCommitting;
  return phase_ == Phase::kCommitting || may_run();
}

bool Destination::give_up() {
  if (phase_ == Phase::kGivenUp) return true;
  if (commit_sent_) return false;
  refused(Status::kOk);
  return true;
}

}  // namespace kintsugi::handover
