// SPDX-License-Identifier: GPL-2.0-or-later
// A small world for the ownership protocol: hosts with the real handover::Source and Destination,
// servers with the real Sessions over an arena that outlives their restarts, and between them a
// network that loses, repeats and delays as the seed says. One page of the VM lies on each server.
// After each step the invariants of docs/ownership.md are checked.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <list>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "handover/destination.h"
#include "handover/source.h"
#include "memserver/harness.h"

namespace kintsugi::handover::testing {

using memserver::testing::FakeClock;
using wire::Op;
using wire::Status;

// One rule broken, to see that the world notices.
enum class Mutant {
  kNone,
  kClaimInAnyEpoch,  // as before there were offers: whoever has the ticket may claim
  kReclaimRaisesNothing,
  kSourceDoesNotAsk,  // it resumes when the stream breaks
  kDestinationRunsOnClaim,
  kGivesUpUnanswered,  // after a Commit that was not answered
  kClaimedDiesOfAge,   // without asking the arbiter
  kDiscardWithoutVersion,
  kWritesBeforeCommit,
};

struct Plan {
  unsigned seed = 0;
  Mutant mutant = Mutant::kNone;
  int breaks = 3;    // requests or answers lost, late, connections broken
  int crashes = 1;   // of hosts
  int restarts = 1;  // of servers
};

class World {
 public:
  static constexpr std::size_t kServers = 2;
  static constexpr std::size_t kAttempts = 2;

  explicit World(const Plan& plan) : plan_(plan), random_(plan.seed), hosts_(kAttempts + 1) {
    for (std::size_t x = 0; x < kServers; x++) {
      servers_[x].path = "/dev/shm/ks-world-" + std::to_string(getpid()) + "-" + std::to_string(x);
      std::filesystem::remove(servers_[x].path);
      start_server(x);
    }
    hosts_[0].alive = true;
    for (std::size_t x = 0; x < kServers; x++) hosts_[0].local[x] = 0;
  }
  ~World() {
    for (Server& server : servers_) {
      server.sessions.reset();
      server.arena.reset();
      std::filesystem::remove(server.path);
    }
  }

  // Empty: every invariant held.
  std::string run() {
    for (int step = 0; step < kSteps && broken_.empty(); step++) chaos();
    // From here on everybody alive can talk.
    plan_.breaks = plan_.crashes = plan_.restarts = 0;
    for (int step = 0; step < kSteps && broken_.empty() && calm(); step++) {
    }
    while (broken_.empty() && !late_.empty()) serve_late(0);
    for (int i = 0; i < 3 && broken_.empty(); i++) age(false);
    if (broken_.empty()) check_end();
    return broken_;
  }
  [[nodiscard]] const std::string& history() const { return history_; }
  // What the schedule has come by, to see that the schedules are worth something.
  [[nodiscard]] const std::set<std::string>& seen() const { return seen_; }

 private:
  static constexpr int kSteps = 400;

  struct Server {
    std::string path;
    FakeClock clock;
    std::unique_ptr<memserver::Arena> arena;
    std::unique_ptr<memserver::Sessions> sessions;
  };
  struct Flight {  // a page on its way out
    std::uint64_t version = 0;
    std::uint64_t content = 0;
  };
  struct Host {
    bool alive = false;
    std::optional<Source> source;
    std::optional<Destination> destination;
    std::array<std::optional<std::uint64_t>, kServers> local;   // content of page x, if it is here
    std::array<std::optional<std::uint64_t>, kServers> stored;  // first split: acknowledged
    std::array<Flight, kServers> put;                           // version 0: none
    std::array<std::optional<Request>, kServers> asked;
    std::array<unsigned, kServers> bound{};
    std::uint64_t version = 0;
    bool resumed_unasked = false;  // a mutant
  };
  struct Attempt {
    std::size_t source = 0;
    bool broken = false;  // the stream
    bool end_sent = false, loaded = false, told = false;
    std::array<std::optional<std::uint64_t>, kServers> pages;  // that came in the stream
  };
  struct Late {
    std::size_t host, server;
    Request request;
    std::optional<Flight> put;
    std::optional<std::uint64_t> discard;
  };

  bool chance(unsigned percent) { return random_() % 100 < percent; }
  std::size_t any(std::size_t n) { return random_() % n; }
  void note(std::string what) { history_ += what + "\n"; }
  void seen(const char* what) { seen_.insert(what); }
  void fail(std::string what) {
    if (broken_.empty()) broken_ = std::move(what);
  }
  static wire::SessionId id() { return memserver::testing::session_id(1); }
  static Ticket ticket(std::size_t attempt) { return {static_cast<std::uint8_t>(attempt + 1)}; }

  // ---- Servers ----------------------------------------------------------------------------------

  void start_server(std::size_t x) {
    Server& server = servers_[x];
    server.sessions.reset();
    server.arena.reset();
    memserver::ArenaOptions options = memserver::testing::small_arena(64, server.path);
    server.arena = std::move(*memserver::Arena::open(options));
    const auto ask = [this](const std::string&, const wire::SessionId&) -> Result<Answer> {
      if (arbiter_cut_) return make_error(EHOSTUNREACH, "cut off");
      return answer(serve_bare(0, {Op::kReclaim, Epoch{}, {}}));
    };
    server.sessions =
        std::move(*memserver::Sessions::create(server.arena.get(), {}, server.clock.clock(), ask));
  }
  static Answer answer(const memserver::BindAnswer& a) { return {a.status, Epoch{a.epoch}}; }

  // What a channel does with it. A binding that was granted counts a connection.
  memserver::BindAnswer serve_bare(std::size_t x, const Request& request) {
    memserver::Sessions& sessions = *servers_[x].sessions;
    if (request.op == Op::kOpen) {
      wire::OpenRequest open = memserver::testing::open_request(1, 8, kServers);
      open.ticket = request.ticket;
      if (x != 0) open.arbiter[0] = 'A';
      return sessions.open(open).answer;
    }
    const std::shared_ptr<memserver::Session> session = sessions.find(id());
    const std::uint64_t e = request.epoch.value;
    if (!session) {
      memserver::BindAnswer gone = sessions.find_ended(id(), e);
      if (request.op == Op::kDrop && gone.status != Status::kNoSession) gone.status = Status::kOk;
      if (request.op != Op::kReclaim && gone.status == Status::kCommitted) {
        gone.status = Status::kGone;
      }
      return gone;
    }
    switch (request.op) {
      case Op::kClaim:
        if (plan_.mutant == Mutant::kClaimInAnyEpoch) {
          const std::uint64_t now = session->figures().epoch;
          (void)session->offer(now, request.ticket);
          return session->claim(now, request.ticket);
        }
        return session->claim(e, request.ticket);
      case Op::kReclaim:
        if (plan_.mutant == Mutant::kReclaimRaisesNothing && e != 0 &&
            !session->figures().committed) {
          session->attach(e);
          return {Status::kOk, e};
        }
        return session->reclaim(e);
      case Op::kOffer:
        return {session->offer(e, request.ticket), e};
      case Op::kCommit:
        return {session->commit(e), e};
      case Op::kDrop: {
        const memserver::Session::Ended ended = session->end(e);
        if (ended.first) sessions.free_ended(session);
        return {ended.status, e};
      }
      default:
        return {Status::kBadRequest};
    }
  }
  static bool binds(Op op) { return op == Op::kOpen || op == Op::kClaim || op == Op::kReclaim; }

  Answer serve(std::size_t h, std::size_t x, const Request& request, bool connected) {
    const memserver::BindAnswer served = serve_bare(x, request);
    if (served.status == Status::kOk && binds(request.op)) {
      if (connected) {
        hosts_[h].bound[x]++;
      } else if (const auto session = servers_[x].sessions->find(id())) {
        session->unbind(servers_[x].sessions->now());  // its connection is gone already
      }
    }
    note("server " + std::to_string(x) + " serves host " + std::to_string(h) + " op " +
         std::to_string(static_cast<int>(request.op)) + " epoch " +
         std::to_string(request.epoch.value) + ": " +
         std::to_string(static_cast<int>(served.status)) + " epoch " +
         std::to_string(served.epoch));
    return answer(served);
  }
  void disconnect(std::size_t h, std::size_t x) {
    const auto session = servers_[x].sessions->find(id());
    for (; hosts_[h].bound[x] > 0; hosts_[h].bound[x]--) {
      if (session) session->unbind(servers_[x].sessions->now());
    }
  }
  Status serve_put(std::size_t x, Epoch epoch, const Flight& put) {
    const auto session = servers_[x].sessions->find(id());
    if (!session) return Status::kGone;
    memserver::SlotIndex slot = 0;
    memserver::AllocationHint hint;
    if (!servers_[x].arena->allocate_emergency(&slot, &hint)) return Status::kInternal;
    std::memcpy(servers_[x].arena->page(slot), &put.content, sizeof(put.content));
    const auto published =
        session->publish(epoch.value, wire::PutPages(x, 0), put.version, {&slot, 1});
    if (published.unused > 0) servers_[x].arena->free({&slot, 1});
    return published.status;
  }
  void serve_discard(std::size_t x, Epoch epoch, std::uint64_t version) {
    std::uint64_t discarded = 0;
    if (plan_.mutant == Mutant::kDiscardWithoutVersion) version = UINT64_MAX;
    if (const auto session = servers_[x].sessions->find(id())) {
      (void)session->discard(epoch.value, x, 1, version, &discarded);
    }
  }
  // Content of page x as a Get in this epoch finds it.
  std::optional<std::uint64_t> read(std::size_t x, Epoch epoch) {
    const auto session = servers_[x].sessions->find(id());
    if (!session) return std::nullopt;
    std::vector<std::uint8_t> out(session->get_payload_bound(1));
    const auto got = session->get(epoch.value, x, 1, out.data());
    if (got.status != Status::kOk || got.found == 0) return std::nullopt;
    std::uint64_t content = 0;
    std::memcpy(&content, out.data() + wire::get_bitmap_bytes(1), sizeof(content));
    return content;
  }

  // ---- Hosts ------------------------------------------------------------------------------------

  [[nodiscard]] bool owns(const Host& host) const {  // by its own account
    if (host.resumed_unasked) return true;
    if (host.source) return host.source->may_run();
    if (!host.destination) return &host == &hosts_[0];
    return host.destination->may_run() ||
           (plan_.mutant == Mutant::kDestinationRunsOnClaim &&
            host.destination->phase() == Destination::Phase::kClaimed);
  }
  [[nodiscard]] bool runs(std::size_t h) const { return hosts_[h].alive && owns(hosts_[h]); }
  [[nodiscard]] Epoch epoch(const Host& host, std::size_t x) const {
    if (host.source) return host.source->epoch(x);
    return host.destination ? host.destination->epoch(x) : Epoch{};
  }
  [[nodiscard]] bool fresh(std::size_t h) const { return h == 0; }
  [[nodiscard]] bool may_write(std::size_t h, std::size_t x) const {
    const Host& host = hosts_[h];
    if (host.source) return host.source->may_write(x);
    if (!host.destination) return false;
    return host.destination->may_write(x) ||
           (plan_.mutant == Mutant::kWritesBeforeCommit && host.destination->may_run());
  }

  std::optional<Request> wanted(std::size_t h, std::size_t x) {
    Host& host = hosts_[h];
    if (!host.alive) return std::nullopt;
    if (host.destination) {
      // The claims begin when the end of remote-memory has come.
      if (host.destination->phase() == Destination::Phase::kClaiming &&
          !attempts_[h - 1].end_sent) {
        return std::nullopt;
      }
      if (auto request = host.destination->wanted(x)) return request;
    }
    return host.source ? host.source->wanted(x) : std::nullopt;
  }
  void tell_asked(Host& host, std::size_t x, const Request& request) {
    if (request.op == Op::kClaim || request.op == Op::kCommit) {
      host.destination->asked(x, request);
    } else {
      host.source->asked(x, request);
    }
  }
  void tell_answered(std::size_t h, std::size_t x, const Request& request, const Answer& a) {
    Host& host = hosts_[h];
    if (!host.alive) return;
    if (request.op == Op::kClaim || request.op == Op::kCommit) {
      host.destination->answered(x, request, a);
    } else {
      host.source->answered(x, request, a);
    }
  }

  // ---- Steps ------------------------------------------------------------------------------------

  // A host asks a server, and something comes of it.
  bool ask(std::size_t h, std::size_t x) {
    Host& host = hosts_[h];
    const std::optional<Request> request = wanted(h, x);
    if (!request) return false;
    tell_asked(host, x, *request);
    if (plan_.breaks > 0 && chance(25)) {
      plan_.breaks--;
      disconnect(h, x);
      switch (any(3)) {
        case 0:
          note("a request of host " + std::to_string(h) + " is lost");
          break;
        case 1:
          seen("an answer was lost");
          (void)serve(h, x, *request, false);
          break;
        default:
          note("a request of host " + std::to_string(h) + " will be late");
          late_.push_back({h, x, *request, {}, {}});
      }
      if (plan_.mutant == Mutant::kGivesUpUnanswered && request->op == Op::kCommit && x == 0) {
        give_up_by_force(h);
      }
      return true;
    }
    tell_answered(h, x, *request, serve(h, x, *request, true));
    return true;
  }

  void serve_late(std::size_t i) {
    const auto at = std::next(late_.begin(), static_cast<std::ptrdiff_t>(i));
    const Late late = *at;
    late_.erase(at);
    if (late.put) {
      (void)serve_put(late.server, late.request.epoch, *late.put);
      seen("a late Put");
    } else if (late.discard) {
      serve_discard(late.server, late.request.epoch, *late.discard);
      seen("a late Discard");
    } else {
      seen(late.request.op == Op::kClaim ? "a late Claim" : "a late request");
      (void)serve(late.host, late.server, late.request, false);
    }
    check();
  }

  void begin_attempt() {
    const std::size_t k = attempts_.size();
    if (k == kAttempts) return;
    for (std::size_t h = 0; h <= k; h++) {
      Host& host = hosts_[h];
      if (!runs(h) || host.put[0].version != 0 || host.put[1].version != 0) continue;
      const bool first = !host.destination && !host.source;
      const bool owner = host.source ? host.source->phase() == Source::Phase::kOwner && h != 0
                                     : host.destination && host.destination->may_offer();
      if (!first && !owner) continue;
      std::vector<Source::Server> servers;
      for (std::size_t x = 0; x < kServers; x++) servers.push_back({first, epoch(host, x)});
      host.source.emplace(ticket(k), servers);
      attempts_.push_back({h});
      note("host " + std::to_string(h) + " begins attempt " + std::to_string(k));
      return;
    }
  }

  // The plan has travelled, when every server has answered.
  void move_on(std::size_t k) {
    Attempt& attempt = attempts_[k];
    Host& from = hosts_[attempt.source];
    Host& to = hosts_[k + 1];
    if (!from.source) return;
    const Source::Phase phase = from.source->phase();
    if (attempt.broken || !from.alive) {
      if (from.alive && phase == Source::Phase::kEnding) {
        from.source->broke();
        seen("the stream broke after END");
        if (plan_.mutant == Mutant::kSourceDoesNotAsk) from.resumed_unasked = true;
      }
      if (from.alive) from.source->withdraw();
      if (!to.alive || !to.destination) return;
      if (!attempt.loaded && to.destination->give_up()) return;
      if (attempt.loaded) (void)to.destination->commit();
      return;
    }
    if (phase == Source::Phase::kTaking) {
      attempt.broken = true;  // refused, or withdrawn
    } else if (phase == Source::Phase::kReady && !to.destination) {
      std::vector<Epoch> epochs;
      for (std::size_t x = 0; x < kServers; x++) epochs.push_back(from.source->epoch(x));
      to.alive = true;
      to.destination.emplace(ticket(k), epochs);
      to.version = 0;
    } else if (phase == Source::Phase::kReady) {
      for (std::size_t x = 0; x < kServers; x++) {
        if (from.put[x].version != 0) return;  // not answered yet
        if (fresh(attempt.source) && from.stored[x] != from.local[x]) return;
      }
      if (!from.source->end_sent()) return;
      attempt.end_sent = true;
      for (std::size_t x = 0; x < kServers; x++) {
        to.local[x] = fresh(attempt.source) ? std::nullopt : from.local[x];
      }
      note("END of attempt " + std::to_string(k));
    } else if (phase == Source::Phase::kEnding && !attempt.loaded) {
      attempt.loaded = true;
    } else if (phase == Source::Phase::kEnding && to.alive) {
      (void)to.destination->commit();
      if (to.destination->may_run()) from.source->told_committed();
      if (to.destination->phase() == Destination::Phase::kGivenUp) from.source->told_given_up();
    }
  }

  void break_stream(std::size_t k) {
    if (attempts_[k].broken || plan_.breaks == 0) return;
    plan_.breaks--;
    attempts_[k].broken = true;
    note("the stream of attempt " + std::to_string(k) + " breaks");
  }

  void give_up_by_force(std::size_t h) {
    Attempt& attempt = attempts_[h - 1];
    hosts_[h].destination.reset();
    hosts_[h].alive = false;
    if (!attempt.broken && hosts_[attempt.source].alive) {
      hosts_[attempt.source].source->told_given_up();
    }
  }

  void crash(std::size_t h) {
    if (plan_.crashes == 0 || !hosts_[h].alive) return;
    plan_.crashes--;
    crashed_.insert(h);
    hosts_[h].alive = false;
    for (std::size_t x = 0; x < kServers; x++) disconnect(h, x);
    for (std::size_t k = 0; k < attempts_.size(); k++) {
      if (attempts_[k].source == h || k + 1 == h) attempts_[k].broken = true;
    }
    note("host " + std::to_string(h) + " crashes");
  }

  void restart(std::size_t x) {
    if (plan_.restarts == 0) return;
    plan_.restarts--;
    seen("a restart");
    for (Host& host : hosts_) host.bound[x] = 0;
    for (auto at = late_.begin(); at != late_.end();) {
      at = at->server == x ? late_.erase(at) : std::next(at);
    }
    start_server(x);
    note("server " + std::to_string(x) + " restarts");
  }

  void age(bool cut) {
    arbiter_cut_ = cut;
    for (std::size_t x = 0; x < kServers; x++) {
      Server& server = servers_[x];
      server.clock.advance(std::chrono::seconds(121));
      if (plan_.mutant == Mutant::kClaimedDiesOfAge) {
        const auto session = server.sessions->find(id());
        if (session && session->figures().connections == 0 && session->end_by_operator(false)) {
          server.sessions->free_ended(session);
        }
      }
      if (server.sessions->expire() > 0) seen("a session died of age");
    }
    arbiter_cut_ = false;
    check();
  }

  // The guest of a running host writes, and its pages come and go.
  void page(std::size_t h, std::size_t x) {
    Host& host = hosts_[h];
    if (!runs(h)) return;
    if (host.put[x].version != 0) {
      finish_put(h, x);
      return;
    }
    switch (any(4)) {
      case 0:  // a write
        if (host.local[x]) host.local[x] = truth_[x] = ++writes_;
        return;
      case 1:  // a page-in, and later the Discard of what was fetched
        if (host.local[x] || !host.destination) return;
        if (const auto content = read(x, epoch(host, x))) {
          host.local[x] = content;
          if (!may_write(h, x)) return;
          if (plan_.breaks > 0 && chance(30)) {
            plan_.breaks--;
            late_.push_back({h, x, {Op::kDiscard, epoch(host, x), {}}, {}, version(h, x)});
          } else {
            serve_discard(x, epoch(host, x), version(h, x));
          }
        }
        return;
      default:  // a page-out; in a first split, a copy
        if (host.local[x] && may_write(h, x)) {
          host.version++;
          host.put[x] = {version(h, x), *host.local[x]};
        }
    }
  }
  // One counter for the session, continued over epochs: the epoch is its upper half.
  [[nodiscard]] std::uint64_t version(std::size_t h, std::size_t x) const {
    return epoch(hosts_[h], x).value << 32 | hosts_[h].version;
  }
  void finish_put(std::size_t h, std::size_t x) {
    Host& host = hosts_[h];
    const Flight put = host.put[x];
    if (!may_write(h, x)) {  // withdrawn meanwhile: it is asked again, or not at all
      host.put[x] = {};
      return;
    }
    if (plan_.breaks > 0 && chance(20)) {
      plan_.breaks--;
      late_.push_back({h, x, {Op::kPut, epoch(host, x), {}}, put, {}});
      return;  // asked again
    }
    const Status status = serve_put(x, epoch(host, x), put);
    host.put[x] = {};
    if (status == Status::kOk && fresh(h)) host.stored[x] = put.content;
    if (status == Status::kOk && !fresh(h) && host.local[x] == put.content) host.local[x].reset();
    if (status != Status::kOk && fresh(h)) host.source->withdraw();
    if (status != Status::kOk && !fresh(h)) {
      fail("I2: host " + std::to_string(h) + " runs the VM and is shut out of server " +
           std::to_string(x));
    }
  }

  void chaos() {
    const std::size_t h = any(hosts_.size());
    const std::size_t x = any(kServers);
    switch (any(12)) {
      case 0:
      case 1:
      case 2:
        (void)ask(h, x);
        break;
      case 3:
      case 4:
        page(h, x);
        break;
      case 5:
        if (chance(40)) begin_attempt();
        break;
      case 6:
      case 7:
        if (!attempts_.empty()) move_on(any(attempts_.size()));
        break;
      case 8:
        if (!late_.empty()) serve_late(any(late_.size()));
        break;
      case 9:
        if (!attempts_.empty() && chance(8)) break_stream(any(attempts_.size()));
        break;
      case 10:
        if (chance(4)) crash(h);
        if (chance(10)) restart(x);
        if (chance(10)) age(chance(50));
        break;
      case 11:
        if (chance(5) && hosts_[h].source) hosts_[h].source->withdraw();
        if (chance(5) && h > 0 && hosts_[h].alive && hosts_[h].destination) {
          (void)hosts_[h].destination->give_up();
        }
        break;
    }
    check();
  }

  // Nothing fails any more; false when nothing is left to do.
  bool calm() {
    bool any_done = false;
    for (std::size_t h = 0; h < hosts_.size(); h++) {
      for (std::size_t x = 0; x < kServers; x++) {
        any_done = ask(h, x) || any_done;
        if (hosts_[h].alive && hosts_[h].put[x].version != 0) finish_put(h, x);
        if (hosts_[h].alive && fresh(h) && hosts_[h].source && may_write(h, x) && runs(h) &&
            hosts_[h].stored[x] != hosts_[h].local[x]) {
          hosts_[h].version++;
          hosts_[h].put[x] = {version(h, x), *hosts_[h].local[x]};
          any_done = true;
        }
      }
    }
    for (std::size_t k = 0; k < attempts_.size(); k++) move_on(k);
    check();
    return any_done || --patience_ > 0;
  }

  // ---- Invariants -------------------------------------------------------------------------------

  // `reads`: the running side can also read what it finds, which an unanswered Reclaim may keep it
  // from for a while.
  void check(bool reads = false) {
    std::size_t running = 0;
    for (std::size_t h = 0; h < hosts_.size(); h++) running += runs(h) ? 1 : 0;
    if (running > 1) fail("I1: " + std::to_string(running) + " sides run the VM");
    for (std::size_t h = 0; h < hosts_.size(); h++) {
      for (std::size_t x = 0; runs(h) && x < kServers; x++) {
        const auto session = servers_[x].sessions->find(id());
        const Epoch now{session ? session->figures().epoch : 0};
        const std::optional<std::uint64_t> found =
            hosts_[h].local[x] ? hosts_[h].local[x] : read(x, reads ? epoch(hosts_[h], x) : now);
        if (found != truth_[x]) {
          fail("I2: host " + std::to_string(h) + " does not find page " + std::to_string(x));
        }
      }
    }
  }
  void check_end() {
    check(true);
    bool anybody = false;
    for (std::size_t h = 0; h < hosts_.size(); h++) anybody = anybody || runs(h);
    if (anybody) seen("somebody runs the VM at the end");
    if (runs(1) || runs(2)) seen("it moved");
    if (runs(2)) seen("it moved twice");
    if (!anybody && crashed_.empty()) fail("I3: nobody runs the VM");
    // With a crash: the side that owned it, or the one that was taking it over, is gone. Of an
    // owner that died after its Commit the other servers keep what they have: not promised.
    const auto arbiter = servers_[0].sessions->find(id());
    if (arbiter && arbiter->figures().committed) return;
    for (std::size_t x = 0; x < kServers; x++) {
      const auto session = servers_[x].sessions->find(id());
      if (session && !session->figures().committed && session->figures().connections == 0) {
        fail("I4: an uncommitted session stays on server " + std::to_string(x));
      }
    }
  }

  Plan plan_;
  std::mt19937 random_;
  std::array<Server, kServers> servers_;
  std::vector<Host> hosts_;
  std::vector<Attempt> attempts_;
  std::list<Late> late_;
  std::array<std::uint64_t, kServers> truth_{};
  std::uint64_t writes_ = 0;
  bool arbiter_cut_ = false;
  int patience_ = 20;
  std::set<std::size_t> crashed_;
  std::string broken_;
  std::string history_;
  std::set<std::string> seen_;
};

}  // namespace kintsugi::handover::testing
