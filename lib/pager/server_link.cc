// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/server_link.h"

#include <pthread.h>
#include <sys/socket.h>

#include <algorithm>
#include <utility>

namespace kintsugi {
namespace {

using Clock = std::chrono::steady_clock;

// A refusal says something about the session; anything else about the way to the server.
bool is_refusal(const Error& error) {
  return error.code == ESTALE || error.code == EALREADY || error.code == ENOENT;
}

}  // namespace

ServerLink::ServerLink(ServerLinkConfig config)
    : config_(std::move(config)), name_(config_.uri.text()), backoff_(config_.backoff_min) {}

ServerLink::~ServerLink() { stop(false); }

Result<wire::SessionInfo> ServerLink::claim(Epoch epoch) {
  const wire::ConnectOptions options{config_.connect_timeout, config_.io_timeout, &canceller_};
  Result<std::unique_ptr<wire::Connection>> control =
      wire::Connection::connect(config_.uri, options);
  if (!control) return control.error();
  Result<wire::SessionInfo> claimed = (*control)->claim(config_.session, epoch, true);
  if (!claimed) return claimed;
  if (claimed->figures.tag_bytes != 0) {
    return make_error(EPROTONOSUPPORT,
                      "memory server {} holds this VM's pages with {} bytes of tag each: sealed "
                      "pages need a newer Kintsugi on this host",
                      name_, claimed->figures.tag_bytes);
  }
  epoch_ = claimed->epoch;
  Connections connections;
  connections.control = std::move(*control);
  if (Result<void> attached = attach_lanes(&connections); !attached) return attached.error();
  publish(std::move(connections));
  return claimed;
}

Result<void> ServerLink::attach_lanes(Connections* connections) {
  const wire::ConnectOptions options{config_.connect_timeout, config_.io_timeout, &canceller_};
  for (std::shared_ptr<wire::Connection>& lane : connections->lanes) {
    Result<std::unique_ptr<wire::Connection>> connection =
        wire::Connection::connect(config_.uri, options);
    if (!connection) return connection.error();
    const Result<wire::SessionInfo> attached = (*connection)->attach(config_.session, epoch_);
    if (!attached) return attached.error();
    lane = std::move(*connection);
  }
  return {};
}

Result<ServerLink::Connections> ServerLink::attach_all() {
  const wire::ConnectOptions options{config_.connect_timeout, config_.io_timeout, &canceller_};
  Connections connections;
  Result<std::unique_ptr<wire::Connection>> control =
      wire::Connection::connect(config_.uri, options);
  if (!control) return control.error();
  const Result<wire::SessionInfo> attached = (*control)->attach(config_.session, epoch_);
  if (!attached) return attached.error();
  connections.control = std::move(*control);
  if (Result<void> lanes = attach_lanes(&connections); !lanes) return lanes.error();
  return connections;
}

void ServerLink::publish(Connections connections) {
  const std::lock_guard lock(mutex_);
  connections_ = std::move(connections);
  error_.clear();
  failed_ = false;
  up_since_ = Clock::now();
  generation_.fetch_add(1, std::memory_order_acq_rel);
  connected_.store(true, std::memory_order_release);
  wake_.notify_all();
}

void ServerLink::start() {
  keeper_ = std::thread([this] { keep(); });
  pthread_setname_np(keeper_.native_handle(),
                     fmt::format("ks-keep-{}", config_.server.value).c_str());
}

ServerLink::LaneConnection ServerLink::lane(Lane lane) const {
  const std::lock_guard lock(mutex_);
  if (failed_) return {nullptr, generation()};
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
      wake_.wait_for(lock, config_.ping_interval, [this] { return stopping_ || failed_; });
      if (stopping_) return;
      failed = failed_;
      why = error_;
    }
    if (!failed) {
      ping();
      continue;
    }
    if (config_.on_event) config_.on_event(true, why);
    if (config_.on_change) config_.on_change();
    reconnect();
  }
}

void ServerLink::ping() {
  const std::lock_guard control_lock(control_mutex_);
  std::shared_ptr<wire::Connection> control;
  std::uint64_t generation = 0;
  {
    const std::lock_guard lock(mutex_);
    if (failed_) return;
    control = connections_.control;
    generation = generation_.load(std::memory_order_relaxed);
  }
  const Result<wire::SessionInfo> answer = control->stat();
  Result<void> state = answer ? Result<void>{} : Result<void>{answer.error()};
  if (answer && answer->figures.committed == 0 && owned_.load(std::memory_order_acquire)) {
    state = control->commit();
  }
  if (!state && state.error().code != ECANCELED) fail(generation, state.error());
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
    Result<Connections> connections = attach_all();
    if (connections) {
      publish(std::move(*connections));
      break;
    }
    if (connections.error().code == ECANCELED) continue;
    const std::lock_guard lock(mutex_);
    error_ = connections.error().message;
  }
  reconnects_.fetch_add(1, std::memory_order_relaxed);
  if (config_.on_change) config_.on_change();
  if (config_.on_event) config_.on_event(false, "");
}

Result<void> ServerLink::commit(std::chrono::milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  Error last{ETIMEDOUT, "memory server " + name_ + " could not be asked"};
  for (;;) {
    const std::lock_guard control_lock(control_mutex_);
    std::shared_ptr<wire::Connection> control;
    std::uint64_t generation = 0;
    {
      std::unique_lock lock(mutex_);
      // A commit whose answer was lost may be asked for again: it is the same epoch's.
      const bool up = wake_.wait_until(lock, std::min(deadline, Clock::now() + config_.backoff_max),
                                       [this] { return !failed_ || stopping_; });
      if (stopping_) return make_error(ECANCELED, "cancelled while committing the handover");
      if (up) {
        control = connections_.control;
        generation = generation_.load(std::memory_order_relaxed);
      } else {
        last.message = error_;
      }
    }
    if (control) {
      Result<void> committed = control->commit();
      if (committed || is_refusal(committed.error())) return committed;
      last = committed.error();
      fail(generation, last);
    }
    if (Clock::now() >= deadline) return last;
  }
}

void ServerLink::stop(bool drop_session) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  if (drop_session && connected()) {
    const std::lock_guard control_lock(control_mutex_);
    std::shared_ptr<wire::Connection> control;
    {
      const std::lock_guard lock(mutex_);
      if (!failed_) control = connections_.control;
    }
    if (control) {
      [[maybe_unused]] const Result<void> dropped = control->drop();
    }
  }
  canceller_.cancel();
  if (keeper_.joinable()) keeper_.join();
  const std::lock_guard lock(mutex_);
  connections_ = {};
  connected_.store(false, std::memory_order_release);
}

}  // namespace kintsugi
