// SPDX-License-Identifier: GPL-2.0-or-later
// The host that takes a VM over: the destination's third of the ownership protocol
// (docs/ownership.md). Driven as source.h is: wanted(), asked(), answered(); no network, no clock.
//
//             all claims granted          the arbiter granted      all granted
//  kClaiming  -----------------> kClaimed ....... kCommitting --------------> kOwning ------>
//  kOwner
//      | refused, give_up()         | commit()         | refused
//      +----------------------------+------------------+----> kGivenUp
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/types.h"
#include "handover/record.h"
#include "handover/source.h"
#include "wire/protocol.h"

namespace kintsugi::handover {

class Destination {
 public:
  enum class Phase : std::uint8_t {
    kClaiming,    // END has come
    kClaimed,     // pages can be read; the VM is still the source's
    kCommitting,  // everything is loaded; the arbiter is asked, until it answers
    kOwning,      // the VM is this side's; the other servers are asked, until they answer
    kOwner,
    kGivenUp,  // never run it
  };

  // `epochs`: the source's, by server, the first is the arbiter.
  Destination(const Ticket& ticket, const std::vector<Epoch>& epochs);

  [[nodiscard]] Phase phase() const { return phase_; }
  [[nodiscard]] Epoch epoch(std::size_t server) const { return servers_[server].epoch; }
  // I1: whether the VM may run on this side.
  [[nodiscard]] bool may_run() const { return phase_ == Phase::kOwning || phase_ == Phase::kOwner; }
  // Whether pages may be stored on and forgotten by the server: after its own answer to a Commit.
  [[nodiscard]] bool may_write(std::size_t server) const {
    return may_run() && servers_[server].committed;
  }
  // Whether the VM may be handed over again.
  [[nodiscard]] bool may_offer() const { return phase_ == Phase::kOwner; }

  [[nodiscard]] std::optional<Request> wanted(std::size_t server) const;
  void asked(std::size_t server, const Request& request);
  void answered(std::size_t server, const Request& request, const Answer& answer);

  // Everything is loaded. False unless every Claim has been granted.
  [[nodiscard]] bool commit();
  // True: this side will never run the VM, and may say so. False: a Commit may have taken effect,
  // so it has to go on asking.
  [[nodiscard]] bool give_up();
  // Why it was refused, in kGivenUp; kOk when it gave up by itself.
  [[nodiscard]] wire::Status refusal() const { return refusal_; }

 private:
  struct State {
    Epoch epoch;
    bool claimed = false;
    bool committed = false;
  };

  void refused(wire::Status status);

  const Ticket ticket_;
  std::vector<State> servers_;
  Phase phase_ = Phase::kClaiming;
  bool commit_sent_ = false;
  wire::Status refusal_ = wire::Status::kOk;
};

}  // namespace kintsugi::handover
