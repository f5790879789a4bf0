// SPDX-License-Identifier: GPL-2.0-or-later
#include "handover/record.h"

namespace kintsugi::handover {

using wire::Status;

namespace {

Epoch next(Epoch epoch) { return Epoch{epoch.value + 1}; }

}  // namespace

void Record::store_offer(Epoch epoch, const Ticket& ticket) {
  const auto set_epoch = [this](std::uint64_t value) {
    std::atomic_ref(data_->offer_epoch).store(value, std::memory_order_release);
  };
  set_epoch(0);
  data_->ticket = ticket;
  set_epoch(epoch.value);
}

void Record::begin(const Ticket& ticket) {
  data_->committed_epoch = 0;
  store(Epoch{1}, false);
  store_offer(Epoch{1}, ticket);
}

void Record::recover() {
  if (claimed() && committed_epoch() == epoch()) store(epoch(), false);
}

Answer Record::open(const Ticket& ticket) const {
  const bool repeat = epoch() == Epoch{1} && !claimed() && offers(Epoch{1}, ticket);
  return {repeat ? Status::kOk : Status::kExists, epoch()};
}

Answer Record::offer(Epoch e, const Ticket& ticket) {
  if (e != epoch() || claimed()) return {Status::kFenced, epoch()};
  if (!offers(e, ticket)) store_offer(e, ticket);
  return {Status::kOk, epoch()};
}

// A raised epoch closes the offer, since that is of the epoch before.
Answer Record::claim(Epoch e, const Ticket& ticket) {
  if (!offers(e, ticket)) return {Status::kFenced, epoch()};
  if (claimed() && epoch() == next(e)) return {Status::kOk, epoch()};  // a repeat
  if (claimed() || epoch() != e) return {Status::kFenced, epoch()};
  store(next(e), true);
  return {Status::kOk, epoch()};
}

Answer Record::reclaim(Epoch e) {
  if (committed_epoch() > e) return {Status::kCommitted, epoch()};
  if (e < owner_epoch()) return {Status::kStale, owner_epoch()};
  if (e > owner_epoch()) return {Status::kFenced, epoch()};
  store(next(epoch()), false);
  return {Status::kOk, epoch()};
}

Answer Record::commit(Epoch e) {
  if (e != epoch()) return {Status::kFenced, epoch()};
  if (committed_epoch() == e) return {Status::kOk, epoch()};  // a repeat
  if (!claimed()) return {Status::kFenced, epoch()};
  std::atomic_ref(data_->committed_epoch).store(e.value, std::memory_order_release);
  store(e, false);
  return {Status::kOk, epoch()};
}

Answer Record::reclaim_tombstone(Epoch c, Epoch e) {
  return {c > e ? Status::kCommitted : Status::kGone, Epoch{}};
}

Record::Age Record::age(bool is_arbiter) const {
  if (committed()) return Age::kNever;
  return is_arbiter || !claimed() ? Age::kMay : Age::kAskArbiter;
}

}  // namespace kintsugi::handover
