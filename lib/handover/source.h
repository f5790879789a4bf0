// SPDX-License-Identifier: GPL-2.0-or-later
// The owner of a VM that hands it over: the source's third of the ownership protocol
// (docs/ownership.md). It knows no network and no clock. Whoever drives it asks wanted() what each
// server is to be asked now, sends that, and tells it what was answered; a request that was not
// answered is simply wanted again. The same object serves a first split, where the sessions are
// opened for the purpose, and every later handover.
//
//            offered            may_end()              end_sent()
//  kOffering ------> kReady ---------------> (END) ---------------> kEnding
//     | cancel          | cancel                   told committed /    | stream broke
//     v                 v                                kDone <-------+-----> kAsking (the
//     arbiter)
//  kTaking (VM runs) <---------------------------- granted, gone, given up ------+
//     |  each server: Reclaim, then Drop of what this attempt opened
//     v
//  kOwner
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/types.h"
#include "handover/record.h"
#include "wire/protocol.h"

namespace kintsugi::handover {

struct Request {
  wire::Op op = wire::Op::kOpen;
  Epoch epoch;
  Ticket ticket{};
};

class Source {
 public:
  struct Server {
    bool fresh = false;  // this attempt opens the session; else it is owned, in `epoch`
    Epoch epoch;
  };
  enum class Phase : std::uint8_t {
    kOffering,  // the VM runs; servers are told the ticket
    kReady,     // every server has answered: tickets may leave
    kEnding,    // END may be on the wire; the VM is stopped
    kAsking,    // in doubt: only the arbiter can tell
    kTaking,    // the VM is this side's; what was offered is taken back
    kOwner,     // as before the attempt
    kDone,      // the VM is the destination's: never run it again
  };

  // `servers`: by number, the first is the arbiter of this handover.
  Source(const Ticket& ticket, const std::vector<Server>& servers);

  [[nodiscard]] Phase phase() const { return phase_; }
  [[nodiscard]] const Ticket& ticket() const { return ticket_; }
  [[nodiscard]] std::size_t servers() const { return servers_.size(); }
  // Of the session there, as far as it is known.
  [[nodiscard]] Epoch epoch(std::size_t server) const { return servers_[server].epoch; }
  // I1: whether the VM may run on this side now.
  [[nodiscard]] bool may_run() const;
  // Whether pages may be stored on and forgotten by the server.
  [[nodiscard]] bool may_write(std::size_t server) const;

  // What the server is to be asked now.
  [[nodiscard]] std::optional<Request> wanted(std::size_t server) const;
  // The request is about to be sent. From here on it may have an effect at any time.
  void asked(std::size_t server, const Request& request);
  // Answers that nobody waits for any more are ignored. A refusal that ends the attempt shows in
  // phase().
  void answered(std::size_t server, const Request& request, const Answer& answer);

  // Before END is sent: the migration failed or was cancelled.
  void withdraw();
  // Every Put is answered, the evictor stands still, Discards are held back. False: the attempt has
  // ended meanwhile; END must not be sent.
  [[nodiscard]] bool end_sent();
  // After END: the stream broke, was cancelled, or the destination is silent.
  void broke();
  // The destination's word on the return path: it has committed, or it never will.
  void told_committed();
  void told_given_up();

  // kAsking only: the arbiter knows no such session, so that nobody can tell any more. The VM stays
  // stopped; asking goes on, in case the arbiter finds its pages again.
  [[nodiscard]] bool arbiter_forgot() const { return arbiter_forgot_; }

 private:
  struct State {
    bool fresh = false;
    bool opened = false;     // there may be a session
    bool reclaimed = false;  // in kTaking
    bool done = false;       // in this phase
    Epoch epoch;
  };

  void enter(Phase phase);
  void take();
  void go_on();
  [[nodiscard]] bool all_done() const;
  void answered_offer(State& server, const Answer& answer);
  void answered_reclaim(State& server, const Answer& answer);

  const Ticket ticket_;
  std::vector<State> servers_;
  Phase phase_ = Phase::kOffering;
  bool arbiter_forgot_ = false;
};

}  // namespace kintsugi::handover
