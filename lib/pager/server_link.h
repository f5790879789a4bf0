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
#include <optional>
#include <string>
#include <thread>

#include "base/result.h"
#include "base/types.h"
#include "handover/record.h"
#include "handover/source.h"
#include "wire/connection.h"
#include "wire/uri.h"

namespace kintsugi {

// Each lane is a connection of its own and belongs to one thread of the pager.
enum class Lane : unsigned {
  kUrgent = 0,  // the fault thread: one page that somebody waits for
  kBulk = 1,    // the prefetch thread: the rest of a chunk
  kOut = 2,     // the evictor: pages out, discards. Not before the server has answered the Commit
};
inline constexpr unsigned kLanes = 3;

enum class LinkState : std::uint8_t {
  kConnected,
  kLost,       // it is being reconnected to
  kPagesLost,  // it is there, and has not what it acknowledged
};

struct ServerLinkConfig {
  ServerId server;
  wire::Uri uri;
  wire::SessionId session{};
  std::chrono::milliseconds connect_timeout{5000};
  std::chrono::milliseconds io_timeout{5000};
  std::chrono::milliseconds ping_interval{1000};
  std::chrono::milliseconds backoff_min{100};
  std::chrono::milliseconds backoff_max{5000};

  // All of these on the keeper's thread. on_change wakes the lanes' threads.
  std::function<void(LinkState state, const std::string& error)> on_event;
  std::function<void()> on_change;
  // What the ownership protocol wants of this server now, and what came of it.
  std::function<std::optional<handover::Request>()> wanted;
  std::function<void(const handover::Request& request, const handover::Answer& answer)> answered;
  // Pages of the VM that are on this server and nowhere else.
  std::function<std::uint64_t()> pages_there;
};

// The connections come and go together: when one fails, or the server does not answer a ping, all
// are shut down, and the keeper connects again with a capped back-off until it may attach to the
// same session. Each time that succeeds is a generation; a lane's thread that finds a new one takes
// the new connection and sends again what had not been answered.
class ServerLink {
 public:
  struct LaneConnection {
    std::shared_ptr<wire::Connection> connection;  // null while lost, or not to be used yet
    std::uint64_t generation = 0;
  };

  explicit ServerLink(ServerLinkConfig config);
  ~ServerLink();
  ServerLink(const ServerLink&) = delete;
  ServerLink& operator=(const ServerLink&) = delete;

  // ---- Before start(), one thread ----

  // Makes all connections and attaches them to the session in the epoch of its source, so that
  // while the VM is stopped there is neither a name to be resolved nor a connection to be made.
  [[nodiscard]] Result<void> connect(Epoch source_epoch);
  // The handover, in halves, so that all servers are asked at once: claim, then attach the lanes in
  // the new epoch. A connection that has broken since connect() is made again.
  void send_claim(const handover::Request& request);
  [[nodiscard]] Result<wire::OwnershipInfo> receive_claim(const handover::Request& request);
  void send_attach(Epoch epoch);
  [[nodiscard]] Result<void> receive_attach();
  // Whether this host can read what the server holds.
  [[nodiscard]] Result<void> check_tags(const wire::SessionReply& figures) const;
  // Starts the keeper.
  [[nodiscard]] Result<void> start();

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
  [[nodiscard]] bool pages_lost() const { return pages_lost_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t reconnects() const {
    return reconnects_.load(std::memory_order_relaxed);
  }
  // The server has acknowledged a page of this version. The evictor.
  void note_stored(std::uint64_t version) {
    if (version > stored_version_.load(std::memory_order_relaxed)) {
      stored_version_.store(version, std::memory_order_relaxed);
    }
  }
  // The ownership protocol may want something: the keeper sees to it at once.
  void poke();
  // Makes calls that block fail with ECANCELED.
  void cancel() { canceller_.cancel(); }

  // Ends the keeper and shuts the lanes down. `drop_session`: frees everything there, best effort.
  void stop(bool drop_session);

 private:
  struct Connections {
    std::shared_ptr<wire::Connection> control;
    std::array<std::shared_ptr<wire::Connection>, kLanes> lanes;
  };

  [[nodiscard]] wire::ConnectOptions connect_options();
  [[nodiscard]] Result<std::shared_ptr<wire::Connection>> connect_one();
  [[nodiscard]] Result<void> check_server(const wire::Connection& connection);
  // ENODATA: the server has not what it acknowledged.
  [[nodiscard]] Result<void> check_pages(const wire::SessionReply& figures) const;
  [[nodiscard]] Result<Connections> attach_all(Epoch epoch);

  void keep();
  [[nodiscard]] Result<void> serve_ownership(wire::Connection& control);
  [[nodiscard]] Result<void> ping(wire::Connection& control);
  void tend();
  void reconnect();
  void lose_pages(const std::string& why);
  void publish(Connections connections);
  // Waits on the keeper's condition; false when stopping.
  bool pause(std::chrono::milliseconds time);

  const ServerLinkConfig config_;
  const std::string name_;
  wire::Canceller canceller_;
  Epoch epoch_;  // written before start() only
  std::optional<std::array<std::uint8_t, 16>> server_id_;
  Connections claiming_;  // between connect() and receive_attach()
  Result<void> claim_sent_;
  Result<void> attach_sent_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Connections connections_;
  std::string error_;
  bool failed_ = false;
  bool poked_ = false;
  bool stopping_ = false;
  std::atomic<bool> connected_{false};
  std::atomic<bool> pages_lost_{false};
  std::atomic<bool> writable_{false};  // the Commit is granted here
  std::atomic<std::uint64_t> stored_version_{0};
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::uint64_t> reconnects_{0};
  std::chrono::milliseconds backoff_;               // the keeper's
  std::chrono::steady_clock::time_point up_since_;  // the keeper's
  std::thread keeper_;
};

}  // namespace kintsugi
