// SPDX-License-Identifier: GPL-2.0-or-later
// A memory server: the arena, its sessions, event loops that serve them, and what an operator sees.
//
// Threads: the caller's, which accepts connections and keeps time; one per event loop; one that
// gives ended sessions' memory back; one for the control socket; those of the metrics' web server.
// All of them end with the Server.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "memserver/arena.h"
#include "memserver/control.h"
#include "memserver/event_loop.h"
#include "memserver/figures.h"
#include "memserver/listener.h"
#include "memserver/metrics.h"
#include "memserver/owned_path.h"
#include "memserver/peer.h"
#include "memserver/sessions.h"
#include "memserver/task_thread.h"

namespace kintsugi::memserver {

struct ServerOptions {
  std::vector<std::string> listen;  // URIs
  unsigned unix_mode = 0660;        // of the Unix sockets among them
  ArenaOptions arena;
  SessionLimits limits;
  unsigned threads = 0;  // 0: as many as there are cores, two at most
  LoopKind loop = LoopKind::kAuto;
  unsigned max_connections = 256;
  std::string metrics;    // HOST:PORT; empty: none
  std::string control;    // path; empty: none
  std::string port_file;  // path; empty: none
  // Leaves an arena's descriptor with somebody who keeps it for the next process, in place of
  // whatever was there; whether that worked. -1: nothing is to be kept. Empty: there is nobody.
  std::function<bool(int fd)> keep_arena;
  Clock clock = [] { return std::chrono::steady_clock::now(); };
};

class Server {
 public:
  // Connections beyond max_connections that are told so; further ones are just closed.
  static constexpr unsigned kRefusable = 64;
  static constexpr unsigned kMaxThreads = 64;
  // What the process takes besides the arena and connections, at most: code, stacks, buffers.
  static constexpr std::uint64_t kProcessBytes = std::uint64_t{64} << 20;

  // What start() was at.
  enum class Stage { kListening, kArena, kRest };
  // Listens when it returns. `stage`, if not null, tells where an error comes from.
  [[nodiscard]] static Result<std::unique_ptr<Server>> start(const ServerOptions& options,
                                                             Stage* stage = nullptr);
  // Ends all connections and threads. The arena file, if there is one, keeps the pages.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Serves until `stop_fd` is readable.
  void run(int stop_fd);
  // Logs which VMs wait for the next process, or lose their pages.
  void tell_of_stop();
  // One round of what run() does every second: time-outs of connections and sessions.
  void tick();

  [[nodiscard]] std::vector<std::string> uris() const;
  [[nodiscard]] std::string metrics_address() const { return metrics_ ? metrics_->address() : ""; }
  [[nodiscard]] ServerFigures figures();
  [[nodiscard]] Sessions& sessions() { return *sessions_; }

 private:
  struct Worker {
    Stats stats;
    std::unique_ptr<EventLoop> loop;
    std::unique_ptr<Peers> peers;
    std::thread thread;
  };

  explicit Server(ServerOptions options) : options_(std::move(options)) {}
  Result<void> begin(Stage* stage);
  Result<void> bound_connections();
  Result<void> begin_loops();
  Result<void> begin_listeners();
  Result<void> write_port_file() const;
  // False when accepting must pause, for want of file descriptors say.
  bool accept_from(const Listener& listener);
  std::string drop(const wire::SessionId& id, bool force);

  const ServerOptions options_;
  unsigned max_connections_ = 0;  // what the options and the limit on descriptors allow
  TimePoint next_tick_{};
  std::unique_ptr<Arena> arena_;
  enum class Kept { kNowhere, kByManager, kInFile };
  Kept arena_kept_ = Kept::kNowhere;  // where the pages outlive the process
  std::unique_ptr<Sessions> sessions_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::size_t next_worker_ = 0;
  OwnedPath port_file_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::unique_ptr<TaskThread> slow_tasks_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<ControlSocket> control_;
};

}  // namespace kintsugi::memserver
