// SPDX-License-Identifier: GPL-2.0-or-later
// The pager's connections to one memory server, and the thread that keeps them.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/result.h"
#include "base/types.h"
#include "wire/connection.h"
#include "wire/uri.h"

namespace kintsugi {

// Each lane is a connection of its own and belongs to one thread of the pager.
enum class Lane : unsigned {
  kUrgent = 0,  // the fault thread: one page that somebody waits for
  kBulk = 1,    // the prefetch thread: the rest of a chunk
  kOut = 2,     // the evictor: pages out, discards
};
inline constexpr unsigned kLanes = 3;

struct ServerLinkConfig {
  ServerId server;
  wire::Uri uri;
  wire::SessionId session{};
  std::chrono::milliseconds connect_timeout{5000};
  std::chrono::milliseconds io_timeout{5000};
  std::chrono::milliseconds ping_interval{1000};
  std::chrono::milliseconds backoff_min{100};
  std::chrono::milliseconds backoff_max{5000};
  // Both on the keeper's thread. on_change wakes the lanes' threads.
  std::function<void(bool lost, const std::string& error)> on_event;
  std::function<void()> on_change;
};

// The connections come and go together: when one fails, or the server does not answer a ping, all
// are shut down, and the keeper connects again with a capped back-off until it may attach to the
// same session. Each time that succeeds is a generation; a lane's thread that finds a new one takes
// the new connection and sends again what had not been answered.
class ServerLink {
 public:
  struct LaneConnection {
    std::shared_ptr<wire::Connection> connection;  // null while lost
    std::uint64_t generation = 0;
  };

  explicit ServerLink(ServerLinkConfig config);
  ~ServerLink();
  ServerLink(const ServerLink&) = delete;
  ServerLink& operator=(const ServerLink&) = delete;

  // ---- Before start(), one thread ----

  // Takes the session over from the holder of `epoch`, unless it is committed, and connects the
  // lanes.
  [[nodiscard]] Result<wire::SessionInfo> claim(Epoch epoch);
  // Starts the keeper.
  void start();

  // ---- Any thread ----

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] ServerId server() const { return config_.server; }
  [[nodiscard]] Epoch epoch() const { return epoch_; }
  [[nodiscard]] std::chrono::milliseconds io_timeout() const { return config_.io_timeout; }
  [[nodiscard]] bool connected() const { return connected_.load(std::memory_order_acquire); }
  // Counts up from 1.
  [[nodiscard]] std::uint64_t generation() const {
    return generation_.load(std::memory_order_acquire);
  }
  [[nodiscard]] LaneConnection lane(Lane lane) const;
  // A lane of `generation` found the server broken. Ignored for an old generation.
  void fail(std::uint64_t generation, const Error& error);
  // Why it is not connected; empty when it is.
  [[nodiscard]] std::string error() const;
  [[nodiscard]] std::uint64_t reconnects() const {
    return reconnects_.load(std::memory_order_relaxed);
  }
  // Asks the server to commit the handover, if need be several times, for at most `patience`.
  // Errors: what the server answered (ESTALE: fenced), or why it could not be asked.
  [[nodiscard]] Result<void> commit(std::chrono::milliseconds patience);

  // The arbiter has answered a commit, so the VM is this host's: the keeper has this server commit
  // as well, and again should it forget. Else it would take the session for an orphan's and drop it
  // when no connection is left, or let another host claim it.
  void note_owned() { owned_.store(true, std::memory_order_release); }

  // Ends the keeper and shuts the lanes down. `drop_session`: frees everything there, best effort.
  void stop(bool drop_session);

 private:
  struct Connections {
    std::shared_ptr<wire::Connection> control;
    std::array<std::shared_ptr<wire::Connection>, kLanes> lanes;
  };

  void keep();
  void ping();
  void reconnect();
  [[nodiscard]] Result<Connections> attach_all();
  [[nodiscard]] Result<void> attach_lanes(Connections* connections);
  void publish(Connections connections);
  // Waits on the keeper's condition; false when stopping.
  bool pause(std::chrono::milliseconds time);

  const ServerLinkConfig config_;
  const std::string name_;
  wire::Canceller canceller_;
  Epoch epoch_;  // written by claim() only

  // Held during calls on the control connection; taken before mutex_.
  std::mutex control_mutex_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Connections connections_;
  std::string error_;
  bool failed_ = false;
  bool stopping_ = false;
  std::atomic<bool> connected_{false};
  std::atomic<bool> owned_{false};
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::uint64_t> reconnects_{0};
  std::chrono::milliseconds backoff_;               // the keeper's
  std::chrono::steady_clock::time_point up_since_;  // the keeper's
  std::thread keeper_;
};

}  // namespace kintsugi
