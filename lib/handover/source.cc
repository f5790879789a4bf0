// SPDX-License-Identifier: GPL-2.0-or-later
#include "handover/source.h"

#include <algorithm>

namespace kintsugi::handover {

using wire::Op;
using wire::Status;

namespace {

constexpr std::size_t kArbiter = 0;

}  // namespace

Source::Source(const Ticket& ticket, const std::vector<Server>& servers) : ticket_(ticket) {
  for (const Server& server : servers) {
    servers_.push_back({server.fresh, !server.fresh, false, false, server.epoch});
  }
}

bool Source::may_run() const {
  return phase_ != Phase::kEnding && phase_ != Phase::kAsking && phase_ != Phase::kDone;
}

bool Source::may_write(std::size_t server) const {
  switch (phase_) {
    case Phase::kOffering:
    case Phase::kReady:
      return !servers_[server].fresh || servers_[server].done;
    case Phase::kTaking:
    case Phase::kOwner:
      return servers_[server].done && !servers_[server].fresh;
    default:
      return false;
  }
}

bool Source::all_done() const {
  return std::all_of(servers_.begin(), servers_.end(), [](const State& s) { return s.done; });
}

void Source::enter(Phase phase) {
  phase_ = phase;
  for (State& server : servers_) server.done = false;
}

std::optional<Request> Source::wanted(std::size_t index) const {
  const State& server = servers_[index];
  if (server.done) return std::nullopt;
  switch (phase_) {
    case Phase::kOffering:
      if (server.fresh) return Request{Op::kOpen, Epoch{}, ticket_};
      return Request{Op::kOffer, server.epoch, ticket_};
    case Phase::kAsking:
      // The arbiter first: elsewhere nothing is asked or written before it has answered.
      if (index != kArbiter) return std::nullopt;
      return Request{Op::kReclaim, server.epoch, ticket_};
    case Phase::kTaking:
      return Request{server.reclaimed ? Op::kDrop : Op::kReclaim, server.epoch, ticket_};
    default:
      return std::nullopt;
  }
}

void Source::asked(std::size_t index, const Request& request) {
  State& server = servers_[index];
  if (request.op != Op::kOpen) return;
  server.opened = true;
  server.epoch = Epoch{1};
}

void Source::answered(std::size_t index, const Request& request, const Answer& answer) {
  State& server = servers_[index];
  switch (request.op) {
    case Op::kOpen:
    case Op::kOffer:
      if (phase_ == Phase::kOffering) answered_offer(server, answer);
      break;
    case Op::kReclaim:
      if (phase_ == Phase::kAsking || phase_ == Phase::kTaking) answered_reclaim(server, answer);
      break;
    case Op::kDrop:
      // Refused or not: what is left is uncommitted and dies of age.
      if (phase_ == Phase::kTaking && server.reclaimed) server.done = true;
      break;
    default:
      break;
  }
  go_on();
}

void Source::answered_offer(State& server, const Answer& answer) {
  if (answer.status != Status::kOk) {
    take();
    return;
  }
  server.epoch = answer.epoch;
  server.done = true;
}

void Source::answered_reclaim(State& server, const Answer& answer) {
  if (server.reclaimed) return;
  switch (answer.status) {
    case Status::kOk:
      server.epoch = answer.epoch;
      break;
    case Status::kStale:  // an earlier Reclaim of ours took effect unanswered: ask again
      server.epoch = answer.epoch;
      return;
    case Status::kCommitted:
      if (phase_ == Phase::kAsking) enter(Phase::kDone);
      return;
    case Status::kNoSession:
      // Never "not committed"; but once the arbiter has granted, there is just nothing here.
      arbiter_forgot_ = phase_ == Phase::kAsking;
      if (arbiter_forgot_) return;
      server.epoch = Epoch{};
      break;
    case Status::kGone:  // nobody has committed it, and nobody can
      server.epoch = Epoch{};
      break;
    default:
      return;
  }
  if (phase_ == Phase::kAsking) take();
  server.reclaimed = true;
  // A session of ours stays; one that this attempt opened is to be dropped, if it is there.
  server.done = !server.fresh || server.epoch == Epoch{};
}

void Source::take() {
  enter(Phase::kTaking);
  arbiter_forgot_ = false;
  for (State& server : servers_) {
    server.reclaimed = false;
    server.done = !server.opened;  // what was never asked for has nothing to be taken back
  }
}

void Source::go_on() {
  if (!all_done()) return;
  if (phase_ == Phase::kOffering) phase_ = Phase::kReady;
  if (phase_ == Phase::kTaking) phase_ = Phase::kOwner;
}

void Source::withdraw() {
  if (phase_ == Phase::kOffering || phase_ == Phase::kReady) take();
  go_on();
}

bool Source::end_sent() {
  if (phase_ != Phase::kReady) return false;
  enter(Phase::kEnding);
  return true;
}

void Source::broke() {
  if (phase_ == Phase::kEnding) enter(Phase::kAsking);
}

void Source::told_committed() {
  if (phase_ == Phase::kEnding || phase_ == Phase::kAsking) enter(Phase::kDone);
}

void Source::told_given_up() {
  if (phase_ == Phase::kEnding || phase_ == Phase::kAsking) take();
  go_on();
}

}  // namespace kintsugi::handover
