// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/server.h"

#include <poll.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "memserver/run_task.h"
#include "memserver/text.h"

namespace kintsugi::memserver {

Result<std::unique_ptr<Server>> Server::start(const ServerOptions& options, Stage* stage) {
  // Made here, before threads log: its first use in two of them at once looks like a race to TSan,
  // which does not see into the library.
  (void)spdlog::default_logger_raw();
  Stage ignored{};
  std::unique_ptr<Server> server(new Server(options));
  if (Result<void> begun = server->begin(stage ? stage : &ignored); !begun) return begun.error();
  return server;
}

Result<void> Server::begin(Stage* stage) {
  *stage = Stage::kListening;
  if (options_.listen.empty()) {
    return make_error(EINVAL, "no address to listen on: give --listen tcp:0.0.0.0:7070, say");
  }
  if (Result<void> r = bound_connections(); !r) return r;
  // Listening first: two servers by mistake on one address must not meet in the arena.
  if (Result<void> r = begin_listeners(); !r) return r;
  *stage = Stage::kArena;
  ArenaOptions arena_options = options_.arena;
  arena_options.other_memory =
      Bytes{std::uint64_t{max_connections_} * Channel::kMaxBytes + kProcessBytes};
  Result<std::unique_ptr<Arena>> arena = Arena::open(arena_options);
  if (!arena) return arena.error();
  arena_ = std::move(*arena);
  if (arena_->in_file()) {
    arena_kept_ = Kept::kInFile;
    if (options_.keep_arena) options_.keep_arena(-1);
  } else if (options_.keep_arena && (arena_->recovered() || options_.keep_arena(arena_->fd()))) {
    arena_kept_ = Kept::kByManager;
  }
  SessionLimits limits = options_.limits;
  limits.uncommitted_connections = max_connections_ - max_connections_ / 4;
  Result<std::unique_ptr<Sessions>> sessions =
      Sessions::create(arena_.get(), limits, options_.clock);
  if (!sessions) return sessions.error();
  sessions_ = std::move(*sessions);
  *stage = Stage::kRest;
  slow_tasks_ = std::make_unique<TaskThread>();
  if (Result<void> r = begin_loops(); !r) return r;
  *stage = Stage::kListening;
  const CollectFigures collect = [this] { return figures(); };
  if (!options_.metrics.empty()) {
    Result<std::unique_ptr<Metrics>> metrics = Metrics::start(options_.metrics, collect);
    if (!metrics) return metrics.error();
    metrics_ = std::move(*metrics);
  }
  if (!options_.control.empty()) {
    Result<std::unique_ptr<ControlSocket>> control = ControlSocket::start(
        options_.control, collect,
        [this](const wire::SessionId& id, bool force) { return drop(id, force); });
    if (!control) return control.error();
    control_ = std::move(*control);
  }
  *stage = Stage::kRest;
  if (Result<void> r = write_port_file(); !r) return r;
  if (!options_.port_file.empty()) port_file_ = OwnedPath(options_.port_file);
  return {};
}

// With as many connections as it takes, descriptors are left: for files, and for the operator, who
// asks just then.
Result<void> Server::bound_connections() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return {};
  if (files.rlim_cur < files.rlim_max) {
    files.rlim_cur = std::min<rlim_t>(files.rlim_max, 1U << 20);
    setrlimit(RLIMIT_NOFILE, &files);
  }
  constexpr rlim_t kOurs = 64;
  if (files.rlim_cur < kOurs + kRefusable + 8) {
    return make_error(EMFILE,
                      "this process may have {} descriptors, too few to serve: raise the limit "
                      "(LimitNOFILE, ulimit -n) to {} for --max-connections {}",
                      files.rlim_cur, kOurs + kRefusable + options_.max_connections,
                      options_.max_connections);
  }
  max_connections_ = static_cast<unsigned>(
      std::min<rlim_t>(options_.max_connections, files.rlim_cur - kOurs - kRefusable));
  if (max_connections_ < options_.max_connections) {
    spdlog::warn(
        "takes {} connections at once: this process may have {} descriptors; raise the limit "
        "(LimitNOFILE, ulimit -n) to {} for --max-connections {}",
        max_connections_, files.rlim_cur, kOurs + kRefusable + options_.max_connections,
        options_.max_connections);
  }
  return {};
}

Result<void> Server::begin_listeners() {
  for (const std::string& text : options_.listen) {
    const Result<wire::Uri> uri = wire::parse_uri(text);
    if (!uri) return uri.error();
    Result<std::vector<std::unique_ptr<Listener>>> opened =
        Listener::open(*uri, options_.unix_mode);
    if (!opened) return opened.error();
    for (std::unique_ptr<Listener>& listener : *opened) listeners_.push_back(std::move(listener));
  }
  return {};
}

Result<void> Server::begin_loops() {
  unsigned threads = options_.threads;
  if (threads == 0) threads = std::clamp(std::thread::hardware_concurrency(), 1U, 2U);
  threads = std::min(threads, kMaxThreads);
  for (unsigned i = 0; i < threads; i++) {
    Result<std::unique_ptr<EventLoop>> loop = make_event_loop(options_.loop);
    if (!loop) return loop.error();
    auto worker = std::make_unique<Worker>();
    worker->loop = std::move(*loop);
    worker->peers = std::make_unique<Peers>(worker->loop.get(), sessions_.get(), &worker->stats);
    workers_.push_back(std::move(worker));
  }
  for (const std::unique_ptr<Worker>& worker : workers_) {
    worker->thread = std::thread([w = worker.get()] {
      pthread_setname_np(pthread_self(), "loop");
      w->loop->run();
    });
  }
  return {};
}

Result<void> Server::write_port_file() const {
  if (options_.port_file.empty()) return {};
  nlohmann::json content{{"pid", getpid()}, {"listen", uris()}};
  if (metrics_) content["metrics"] = metrics_->address();
  if (control_) content["control"] = options_.control;
  const std::string text = content.dump(2) + "\n";
  const std::string temporary = options_.port_file + ".new";
  // Whoever waits for the file must never see half of it.
  std::FILE* file = std::fopen(temporary.c_str(), "we");
  bool written = file && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  int code = errno;
  if (file && std::fclose(file) != 0) {
    code = errno;
    written = false;
  }
  if (written && std::rename(temporary.c_str(), options_.port_file.c_str()) == 0) return {};
  if (written) code = errno;
  return make_error(code, "cannot write --port-file {}: {}", options_.port_file, errno_text(code));
}

Server::~Server() {
  port_file_ = OwnedPath();
  // Who asks from outside goes first, then who serves, then who cleans up, then what is served.
  control_.reset();
  metrics_.reset();
  listeners_.clear();
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (!worker->thread.joinable()) continue;
    worker->loop->post([w = worker.get()] {
      w->peers->close_all();
      w->loop->stop();
    });
  }
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
  slow_tasks_.reset();
  workers_.clear();
}

std::vector<std::string> Server::uris() const {
  std::vector<std::string> uris;
  uris.reserve(listeners_.size());
  for (const std::unique_ptr<Listener>& listener : listeners_) {
    uris.push_back(listener->uri().text());
  }
  return uris;
}

void Server::run(int stop_fd) {
  constexpr std::chrono::milliseconds kTick{1000};
  std::vector<pollfd> fds{{stop_fd, POLLIN, 0}};
  for (const std::unique_ptr<Listener>& listener : listeners_) {
    fds.push_back({listener->fd(), POLLIN, 0});
  }
  // It may be called again after each signal, however often they come.
  if (next_tick_ == TimePoint{}) next_tick_ = std::chrono::steady_clock::now() + kTick;
  bool paused = false;
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(next_tick_ - std::chrono::steady_clock::now());
    // While paused only the end and the next tick count.
    const int n = poll(fds.data(), paused ? 1 : fds.size(),
                       static_cast<int>(std::max<std::int64_t>(left.count(), 0)));
    if (std::chrono::steady_clock::now() >= next_tick_) {
      run_task([this] { tick(); });
      next_tick_ = std::chrono::steady_clock::now() + kTick;
      paused = false;
    }
    if (n > 0 && fds[0].revents != 0) return;
    if (n <= 0 || paused) continue;
    for (std::size_t i = 0; i < listeners_.size() && !paused; i++) {
      if (fds[i + 1].revents == 0) continue;
      paused = true;  // without memory, say
      run_task([&] { paused = !accept_from(*listeners_[i]); });
    }
  }
}

bool Server::accept_from(const Listener& listener) {
  Listener::Accepted accepted = listener.accept();
  if (accepted.fd < 0) {
    const int code = -accepted.fd;
    // The connection may have gone again; anything else is a shortage that lasts.
    if (code == EAGAIN || code == ECONNABORTED || code == EPROTO) return true;
    spdlog::error("cannot accept a connection: {}: raise this process's limits (LimitNOFILE)",
                  errno_text(code));
    return false;
  }
  std::uint64_t open = 0;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    open += read(worker->stats.connections_accepted) - read(worker->stats.connections_closed);
  }
  if (open >= max_connections_ + kRefusable) {
    spdlog::warn("{}: closed: {} connections are open", accepted.peer, open);
    close(accepted.fd);
    return true;
  }
  spdlog::debug("{}: connected", accepted.peer);
  Worker* worker = workers_[next_worker_++ % workers_.size()].get();
  const bool refuse = open >= max_connections_;
  // Who asks again finds room, unless all are in use.
  if (refuse) {
    for (const std::unique_ptr<Worker>& each : workers_) {
      each->loop->post([at = each.get()] { at->peers->close_idle(); });
    }
  }
  // Counted here, not in the loop, so that a burst of connections cannot slip past the bound.
  count(worker->stats.connections_accepted);
  Channel::Options options;
  options.peer = std::move(accepted.peer);
  options.refuse = refuse;
  options.offload = [this, worker](std::function<void()> work, std::function<void()> done) {
    slow_tasks_->post([worker, work = std::move(work), done = std::move(done)] {
      work();
      worker->loop->post(done);
    });
  };
  try {
    worker->loop->post([worker, fd = accepted.fd, options = std::move(options)]() mutable {
      worker->peers->add(fd, std::move(options));
    });
  } catch (const std::bad_alloc&) {
    close(accepted.fd);
    count(worker->stats.connections_closed);
    throw;
  }
  return true;
}

void Server::tick() {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    worker->loop->post([w = worker.get()] { w->peers->check_timeouts(); });
  }
  slow_tasks_->post([this] { sessions_->expire(); });
}

std::string Server::drop(const wire::SessionId& id, bool force) {
  const std::shared_ptr<Session> session = sessions_->find(id);
  if (!session) return fmt::format("no session {} here", id_text(id));
  if (!session->end_by_operator(force)) {
    const Session::Figures f = session->figures();
    if (f.ended) return fmt::format("session {} has ended already", id_text(id));
    return fmt::format(
        "session {} of VM '{}' {}: dropping it kills the VM if it still runs; use --force if it "
        "does not",
        id_text(id), session->name(),
        f.committed ? "is committed" : fmt::format("has {} connections", f.connections));
  }
  spdlog::warn("session {} of VM '{}' dropped by the operator", id_text(id), session->name());
  sessions_->free_ended(session);
  return "";
}

void Server::tell_of_stop() {
  for (const std::shared_ptr<Session>& session : sessions_->list()) {
    const Session::Figures f = session->figures();
    if (f.ended) continue;
    const std::string size = size_text(to_bytes(PageCount{f.used_pages}));
    switch (arena_kept_) {
      case Kept::kInFile:
        spdlog::warn("VM '{}' ({}) waits until this server is started again: its {} are kept in {}",
                     session->name(), id_text(session->id()), size, options_.arena.path);
        break;
      case Kept::kByManager:
        spdlog::warn(
            "VM '{}' ({}) waits until this server is started again: its {} are left with the "
            "service manager, which keeps them for a restart; for a stop, systemd 254 or later "
            "does",
            session->name(), id_text(session->id()), size);
        break;
      case Kept::kNowhere:
        spdlog::error("VM '{}' ({}) loses {}: they end with this process; see --arena",
                      session->name(), id_text(session->id()), size);
        break;
    }
  }
}

ServerFigures Server::figures() {
  ServerFigures f;
  f.server_id = id_text(arena_->server_id());
  f.listen = uris();
  f.loop = workers_.front()->loop->name();
  f.capacity_pages = arena_->capacity().value;
  f.reserved_pages = sessions_->reserved().value;
  f.populated_bytes = arena_->populated().value;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    const Stats& s = worker->stats;
    const std::uint64_t closed = read(s.connections_closed);
    const std::uint64_t accepted = read(s.connections_accepted);
    f.connections_accepted += accepted;
    f.connections += accepted - closed;
    f.requests += read(s.requests);
    f.pages_put += read(s.pages_put);
    f.pages_got += read(s.pages_got);
    f.pages_missing += read(s.pages_missing);
    f.pages_discarded += read(s.pages_discarded);
    f.bytes_received += read(s.bytes_received);
    f.bytes_sent += read(s.bytes_sent);
    f.fenced += read(s.fenced);
    f.protocol_errors += read(s.protocol_errors);
    f.bounced_puts += read(s.bounced_puts);
    for (std::size_t i = 0; i < f.refused_opens.size(); i++) {
      f.refused_opens[i] += read(s.refused_opens[i]);
    }
  }
  for (const std::shared_ptr<Session>& session : sessions_->list()) {
    const Session::Figures s = session->figures();
    if (s.ended) continue;
    f.used_pages += s.used_pages;
    f.sessions.push_back({id_text(session->id()), session->name(), s.epoch, session->vm_pages(),
                          session->capacity_pages(), s.used_pages, s.connections, s.committed});
  }
  return f;
}

}  // namespace kintsugi::memserver
