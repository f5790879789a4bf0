// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/server_link.h"

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "base/thread.h"

namespace kintsugi {
namespace {

using Clock = std::chrono::steady_clock;

// Said by attach_all() alone, so that no way to connect can fail with it.
constexpr int kPagesLost = ENODATA;

}  // namespace

ServerLink::ServerLink(ServerLinkConfig config)
    : config_(std::move(config)), name_(config_.uri.text()), backoff_(config_.backoff_min) {}

ServerLink::~ServerLink() { stop(false); }

wire::ConnectOptions ServerLink::connect_options() {
  return {config_.connect_timeout, config_.io_timeout, &canceller_};
}

Result<void> ServerLink::check_server(const wire::Connection& connection) {
  if (!server_id_) server_id_ = connection.server().server_id;
  if (*server_id_ == connection.server().server_id) return {};
  return make_error(kPagesLost,
                    "another memory server answers at {}: it has not this VM's pages; start the "
                    "one that has them there again",
                    name_);
}

Result<std::shared_ptr<wire::Connection>> ServerLink::connect_one() {
  Result<std::unique_ptr<wire::Connection>> connection =
      wire::Connection::connect(config_.uri, connect_options());
  if (!connection) return connection.error();
  if (Result<void> same = check_server(**connection); !same) return same.error();
  return std::shared_ptr<wire::Connection>(std::move(*connection));
}

Result<void> ServerLink::check_tags(const wire::SessionReply& figures) const {
  if (figures.tag_bytes == 0) return {};
  return make_error(EPROTONOSUPPORT,
                    "memory server {} holds this VM's pages with {} bytes of tag each: sealed "
                    "pages need a newer Kintsugi on this host",
                    name_, figures.tag_bytes);
}

Result<void> ServerLink::check_pages(const wire::SessionReply& figures) const {
  const std::uint64_t stored = stored_version_.load(std::memory_order_relaxed);
  const std::uint64_t pages = config_.pages_there ? config_.pages_there() : 0;
  if (figures.last_version >= stored && figures.used_pages >= pages) return {};
  return make_error(kPagesLost,
                    "memory server {} has lost pages of this VM: it has {} of {}, the newest of "
                    "version {} of {}; has it been given an older arena?",
                    name_, figures.used_pages, pages, figures.last_version, stored);
}

// ---- The handover -------------------------------------------------------------------------------

Result<ServerLink::Connections> ServerLink::attach_all(Epoch epoch) {
  Connections connections;
  const auto attach = [&](std::shared_ptr<wire::Connection>* to) -> Result<wire::SessionInfo> {
    Result<std::shared_ptr<wire::Connection>> connection = connect_one();
    if (!connection) return connection.error();
    *to = std::move(*connection);
    Result<wire::SessionInfo> info = (*to)->attach(config_.session, epoch);
    if (info || (info.error().code != ENOENT && info.error().code != EIDRM)) return info;
    // The session is not there: whatever the VM has on this server is lost with it.
    return make_error(kPagesLost, "{}", info.error().message);
  };
  const Result<wire::SessionInfo> attached = attach(&connections.control);
  if (!attached) return attached.error();
  if (Result<void> tags = check_tags(attached->figures); !tags) return tags.error();
  if (Result<void> there = check_pages(attached->figures); !there) return there.error();
  for (std::shared_ptr<wire::Connection>& lane : connections.lanes) {
    if (const Result<wire::SessionInfo> info = attach(&lane); !info) return info.error();
  }
  return connections;
}

Result<void> ServerLink::connect(Epoch source_epoch) {
  Result<Connections> connections = attach_all(source_epoch);
  if (!connections) return connections.error();
  claiming_ = std::move(*connections);
  return {};
}

void ServerLink::send_claim(const handover::Request& request) {
  claim_sent_ = claiming_.control
                    ? claiming_.control->send_ownership(request.op, config_.session, request.epoch,
                                                        request.ticket)
                    : Result<void>(make_error(ENOTCONN, "not connected to {} yet", name_));
}

Result<wire::OwnershipInfo> ServerLink::receive_claim(const handover::Request& request) {
  if (claim_sent_) {
    Result<wire::OwnershipInfo> answer = claiming_.control->receive_ownership();
    if (answer || answer.error().code == ECANCELED) return answer;
  }
  // Once more on a new connection: if the first one took effect, this is a repeat.
  Result<std::shared_ptr<wire::Connection>> control = connect_one();
  if (!control) return control.error();
  claiming_.control = std::move(*control);
  return claiming_.control->ask_ownership(request.op, config_.session, request.epoch,
                                          request.ticket);
}

void ServerLink::send_attach(Epoch epoch) {
  epoch_ = epoch;
  attach_sent_ = {};
  for (const std::shared_ptr<wire::Connection>& lane : claiming_.lanes) {
    if (!lane) {
      attach_sent_ = make_error(ENOTCONN, "not connected to {} yet", name_);
    } else if (attach_sent_) {
      attach_sent_ = lane->send_attach(config_.session, epoch);
    }
  }
}

Result<void> ServerLink::receive_attach() {
  Result<void> attached = attach_sent_;
  for (const std::shared_ptr<wire::Connection>& lane : claiming_.lanes) {
    if (!attached) break;
    if (const Result<wire::SessionInfo> info = lane->receive_attach(); !info) {
      attached = info.error();
    }
  }
  if (!attached) {
    Result<Connections> again = attach_all(epoch_);
    if (!again) return again.error();
    claiming_ = std::move(*again);
  }
  publish(std::exchange(claiming_, {}));
  return {};
}

void ServerLink::publish(Connections connections) {
  const std::lock_guard lock(mutex_);
  connections_ = std::move(connections);
  error_.clear();
  failed_ = false;
  up_since_ = Clock::now();
  generation_.fetch_add(1, std::memory_order_acq_rel);
  pages_lost_.store(false, std::memory_order_relaxed);
  connected_.store(true, std::memory_order_release);
  wake_.notify_all();
}

// ---- Lanes --------------------------------------------------------------------------------------

ServerLink::LaneConnection ServerLink::lane(Lane lane) const {
  const std::lock_guard lock(mutex_);
  if (failed_ || (lane == Lane::kOut && !writable_.load(std::memory_order_relaxed))) {
    return {nullptr, generation()};
  }
  return {connections_.lanes[static_cast<unsigned>(lane)], generation()};
}

void ServerLink::fail(std::uint64_t generation, const Error& error) {
  const std::lock_guard lock(mutex_);
  if (failed_ || generation != generation_.load(std::memory_order_relaxed)) return;
  failed_ = true;
  error_ = error.message;
  connected_.store(false, std::memory_order_release);
  // The other lanes notice by this.
  for (const std::shared_ptr<wire::Connection>& lane : connections_.lanes) {
    if (lane) shutdown(lane->fd(), SHUT_RDWR);
  }
  if (connections_.control) shutdown(connections_.control->fd(), SHUT_RDWR);
  wake_.notify_all();
}

std::string ServerLink::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void ServerLink::poke() {
  const std::lock_guard lock(mutex_);
  poked_ = true;
  wake_.notify_all();
}

// ---- The keeper ---------------------------------------------------------------------------------

Result<void> ServerLink::start() {
  Result<std::thread> keeper =
      start_thread(fmt::format("ks-keep-{}", config_.server.value), [this] { keep(); });
  if (!keeper) return keeper.error();
  keeper_ = std::move(*keeper);
  return {};
}

bool ServerLink::pause(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, time, [this] { return stopping_; });
  return !stopping_;
}

void ServerLink::keep() {
  for (;;) {
    bool failed = false;
    std::string why;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, config_.ping_interval,
                     [this] { return stopping_ || failed_ || poked_; });
      if (stopping_) return;
      poked_ = false;
      failed = failed_;
      why = error_;
    }
    if (!failed) {
      tend();
      continue;
    }
    if (config_.on_event) config_.on_event(LinkState::kLost, why);
    if (config_.on_change) config_.on_change();
    reconnect();
  }
}

void ServerLink::tend() {
  std::shared_ptr<wire::Connection> control;
  std::uint64_t generation = 0;
  {
    const std::lock_guard lock(mutex_);
    if (failed_) return;
    control = connections_.control;
    generation = generation_.load(std::memory_order_relaxed);
  }
  Result<void> state = serve_ownership(*control);
  if (state) state = ping(*control);
  if (!state && state.error().code != ECANCELED) fail(generation, state.error());
}

// Asks what the protocol wants, and asks again after a new connection: a Commit whose answer was
// lost is the same epoch's.
Result<void> ServerLink::serve_ownership(wire::Connection& control) {
  if (!config_.wanted) return {};
  const std::optional<handover::Request> request = config_.wanted();
  if (!request) return {};
  const Result<wire::OwnershipInfo> info =
      control.ask_ownership(request->op, config_.session, request->epoch, request->ticket);
  if (!info) return info.error();
  if (request->op == wire::Op::kCommit && info->status == wire::Status::kOk) {
    writable_.store(true, std::memory_order_release);
    if (config_.on_change) config_.on_change();
  }
  config_.answered(*request, {info->status, info->epoch});
  return {};
}

Result<void> ServerLink::ping(wire::Connection& control) {
  const Result<wire::SessionInfo> answer = control.stat();
  if (!answer) return answer.error();
  return {};
}

void ServerLink::lose_pages(const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    error_ = why;
  }
  if (pages_lost_.exchange(true, std::memory_order_relaxed)) return;
  if (config_.on_event) config_.on_event(LinkState::kPagesLost, why);
}

void ServerLink::reconnect() {
  // Only a link that held for a while starts again from the shortest back-off: a server that
  // accepts and then breaks at once is not to be hammered.
  if (Clock::now() - up_since_ >= config_.backoff_max) backoff_ = config_.backoff_min;
  {
    const std::lock_guard lock(mutex_);
    connections_ = {};
  }
  for (;;) {
    if (!pause(backoff_)) return;
    backoff_ = std::min(backoff_ * 2, config_.backoff_max);
    Result<Connections> connections = attach_all(epoch_);
    if (connections) {
      publish(std::move(*connections));
      break;
    }
    if (connections.error().code == ECANCELED) continue;
    if (connections.error().code == kPagesLost) {
      lose_pages(connections.error().message);
      continue;
    }
    const std::lock_guard lock(mutex_);
    error_ = connections.error().message;
  }
  reconnects_.fetch_add(1, std::memory_order_relaxed);
  poke();
  if (config_.on_change) config_.on_change();
  if (config_.on_event) config_.on_event(LinkState::kConnected, "");
}

void ServerLink::stop(bool drop_session) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  // The keeper is at most a time-out away from the end of a call; a Drop needs its connection.
  if (!drop_session || !connected()) canceller_.cancel();
  if (keeper_.joinable()) keeper_.join();
  if (drop_session && connected()) {
    [[maybe_unused]] const Result<void> dropped = connections_.control->drop();
  }
  canceller_.cancel();
  const std::lock_guard lock(mutex_);
  connections_ = {};
  connected_.store(false, std::memory_order_release);
}

}  // namespace kintsugi
