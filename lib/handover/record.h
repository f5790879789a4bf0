// SPDX-License-Identifier: GPL-2.0-or-later
// Who owns a VM, as one memory server keeps it for one session: the server's third of the
// ownership protocol. docs/ownership.md has the rules by name, and what must hold (I1 to I4);
// source.h and destination.h are the other two thirds.
//
// The owner's epoch o is epoch - claimed. A Claim raises the epoch, so that the source can write no
// more, but the VM stays the source's until the Commit: a Reclaim in epoch o raises it once more,
// and then the destination can never commit.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/types.h"
#include "wire/protocol.h"

namespace kintsugi::handover {

// Random, made by the source for one attempt to hand over; who shows it may claim.
using wire::Ticket;

// What a request about ownership is answered. `epoch`: of the session afterwards; with kStale, the
// owner's.
struct Answer {
  wire::Status status = wire::Status::kOk;
  Epoch epoch;
};

// As it lies in the arena. A process may die between any two stores, so `state` has epoch and
// claimed in one word, and an offer is valid only in the epoch that is stored last.
struct RecordData {
  std::uint64_t state;            // epoch << 1 | claimed
  std::uint64_t committed_epoch;  // c; 0: nobody has ever committed
  std::uint64_t offer_epoch;      // 0: no offer
  Ticket ticket;
};
static_assert(sizeof(RecordData) == 40);

// The rules, on data that outlives it. Each takes the epoch E of the request. One thread at a time:
// the session's lock.
class Record {
 public:
  explicit Record(RecordData* data) : data_(data) {}

  // Before the session is there for others: epoch 1, c 0, an offer.
  void begin(const Ticket& ticket);
  // After a restart: a Commit that was half done is done.
  void recover();

  // An Open for a session that is there: kOk if it is the same Open once more, else kExists.
  [[nodiscard]] Answer open(const Ticket& ticket) const;
  [[nodiscard]] Answer offer(Epoch e, const Ticket& ticket);
  [[nodiscard]] Answer claim(Epoch e, const Ticket& ticket);
  [[nodiscard]] Answer reclaim(Epoch e);
  [[nodiscard]] Answer commit(Epoch e);
  // A Reclaim that meets a tombstone, of which c is left.
  [[nodiscard]] static Answer reclaim_tombstone(Epoch c, Epoch e);

  // Put, Discard, Drop.
  [[nodiscard]] bool may_write(Epoch e) const { return e == epoch() && !claimed(); }
  // Get, Attach, Stat: the source still reads for its devices while the destination has claimed.
  [[nodiscard]] bool may_read(Epoch e) const { return e == epoch() || e == owner_epoch(); }
  // Whether it may die of age once it has no connection.
  enum class Age : std::uint8_t { kNever, kMay, kAskArbiter };
  [[nodiscard]] Age age(bool is_arbiter) const;

  [[nodiscard]] Epoch epoch() const { return Epoch{load() >> 1}; }
  [[nodiscard]] bool claimed() const { return (load() & 1) != 0; }
  [[nodiscard]] Epoch owner_epoch() const { return Epoch{epoch().value - (claimed() ? 1 : 0)}; }
  [[nodiscard]] Epoch committed_epoch() const { return Epoch{data_->committed_epoch}; }
  [[nodiscard]] bool committed() const { return data_->committed_epoch != 0; }

 private:
  [[nodiscard]] std::uint64_t load() const {
    return std::atomic_ref(data_->state).load(std::memory_order_acquire);
  }
  void store(Epoch epoch, bool claimed) {
    std::atomic_ref(data_->state)
        .store(epoch.value << 1 | (claimed ? 1 : 0), std::memory_order_release);
  }
  void store_offer(Epoch epoch, const Ticket& ticket);
  [[nodiscard]] bool offers(Epoch epoch, const Ticket& ticket) const {
    return data_->offer_epoch == epoch.value && data_->ticket == ticket;
  }

  RecordData* data_;
};

}  // namespace kintsugi::handover
