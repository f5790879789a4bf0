// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/control.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/types.h"
#include "memserver/run_task.h"
#include "memserver/text.h"

namespace kintsugi::memserver {

using nlohmann::json;

namespace {

json status_json(const ServerFigures& f) {
  json sessions = json::array();
  for (const SessionFigures& s : f.sessions) {
    sessions.push_back({{"id", s.id},
                        {"name", s.name},
                        {"epoch", s.epoch},
                        {"vm_bytes", s.vm_pages * kPageSize},
                        {"capacity_bytes", s.capacity_pages * kPageSize},
                        {"used_bytes", s.used_pages * kPageSize},
                        {"connections", s.connections},
                        {"committed", s.committed}});
  }
  return {{"ok", true},
          {"server_id", f.server_id},
          {"listen", f.listen},
          {"loop", f.loop},
          {"capacity_bytes", f.capacity_pages * kPageSize},
          {"reserved_bytes", f.reserved_pages * kPageSize},
          {"used_bytes", f.used_pages * kPageSize},
          {"populated_bytes", f.populated_bytes},
          {"connections", f.connections},
          {"connections_accepted", f.connections_accepted},
          {"requests", f.requests},
          {"pages_put", f.pages_put},
          {"pages_got", f.pages_got},
          {"pages_missing", f.pages_missing},
          {"pages_discarded", f.pages_discarded},
          {"bytes_received", f.bytes_received},
          {"bytes_sent", f.bytes_sent},
          {"fenced", f.fenced},
          {"protocol_errors", f.protocol_errors},
          {"bounced_puts", f.bounced_puts},
          {"sessions", sessions}};
}

std::string failure(const std::string& why) { return json{{"ok", false}, {"error", why}}.dump(); }

}  // namespace

std::string answer_control(const std::string& line, const CollectFigures& collect,
                           const DropSession& drop) {
  const json request = json::parse(line, nullptr, false);
  if (!request.is_object() || !request.contains("cmd") || !request["cmd"].is_string()) {
    return failure("not a JSON object with \"cmd\"");
  }
  const std::string cmd = request["cmd"];
  if (cmd == "status") return status_json(collect()).dump();
  if (cmd != "drop") {
    return failure(fmt::format("no such command '{}': there are status and drop", printable(cmd)));
  }
  const json id_value = request.value("session", json());
  const json force = request.value("force", json(false));
  const std::optional<wire::SessionId> id =
      id_value.is_string() ? parse_id(id_value.get<std::string>()) : std::nullopt;
  if (!id) return failure("\"session\" is not an id of 32 hexadecimal digits");
  if (!force.is_boolean()) return failure("\"force\" is neither true nor false");
  const std::string refused = drop(*id, force.get<bool>());
  return refused.empty() ? json{{"ok", true}}.dump() : failure(refused);
}

Result<std::unique_ptr<ControlSocket>> ControlSocket::start(const std::string& path,
                                                            CollectFigures collect,
                                                            DropSession drop) {
  Result<wire::Uri> uri = wire::parse_uri("unix:" + path);
  if (!uri) return make_error(EINVAL, "--control {}: the path is empty or too long", path);
  Result<std::vector<std::unique_ptr<Listener>>> listener = Listener::open(*uri, 0600);
  if (!listener) {
    return make_error(listener.error().code, "--control: {}", listener.error().message);
  }
  return std::unique_ptr<ControlSocket>(
      new ControlSocket(std::move(listener->front()), std::move(collect), std::move(drop)));
}

ControlSocket::ControlSocket(std::unique_ptr<Listener> listener, CollectFigures collect,
                             DropSession drop)
    : listener_(std::move(listener)),
      collect_(std::move(collect)),
      drop_(std::move(drop)),
      stop_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_([this] { run(); }) {}

ControlSocket::~ControlSocket() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_fd_, &one, sizeof(one));
  thread_.join();
  close(stop_fd_);
}

bool ControlSocket::wait_for(int fd, short events, int timeout_ms) const {
  std::array<pollfd, 2> fds{pollfd{fd, events, 0}, pollfd{stop_fd_, POLLIN, 0}};
  int n = 0;
  do {
    n = poll(fds.data(), fds.size(), timeout_ms);
  } while (n < 0 && errno == EINTR);
  return n > 0 && fds[1].revents == 0;
}

void ControlSocket::run() {
  while (wait_for(listener_->fd(), POLLIN, -1)) {
    const Listener::Accepted client = listener_->accept();
    if (client.fd >= 0) {
      run_task([&] { serve(client.fd); });
      close(client.fd);
    }
    // Whatever is short, asking again at once does not help.
    if (client.fd < 0 && client.fd != -EAGAIN) (void)wait_for(-1, 0, kPauseMs);
  }
}

void ControlSocket::serve(int fd) const {
  std::string input;
  std::array<char, 1024> chunk;
  for (;;) {
    const std::size_t newline = input.find('\n');
    if (newline != std::string::npos) {
      std::string answer = answer_control(input.substr(0, newline), collect_, drop_) + "\n";
      input.erase(0, newline + 1);
      while (!answer.empty()) {
        const ssize_t sent = send(fd, answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) answer.erase(0, static_cast<std::size_t>(sent));
        if (sent < 0 && errno != EAGAIN && errno != EINTR) return;
        if (sent < 0 && errno == EAGAIN && !wait_for(fd, POLLOUT, kClientTimeoutMs)) return;
      }
      // Who asks again and again does not keep others out.
      pollfd others{listener_->fd(), POLLIN, 0};
      if (poll(&others, 1, 0) > 0) return;
      continue;
    }
    if (input.size() > kMaxLineBytes || !wait_for(fd, POLLIN, kClientTimeoutMs)) return;
    const ssize_t got = recv(fd, chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return;
    if (got > 0) input.append(chunk.data(), static_cast<std::size_t>(got));
  }
}

Result<std::string> ask_control(const std::string& path, const std::string& line,
                                std::chrono::seconds timeout) {
  const auto failed = [&](const char* doing) {
    if (errno == EAGAIN) {
      return make_error(ETIMEDOUT,
                        "the memory server at {} has not answered for {} s: is it stopped, or does "
                        "it hang? --timeout waits longer",
                        path, timeout.count());
    }
    return make_error(errno,
                      "cannot {} the control socket {}: {}: does a memory server run with "
                      "--control {}?",
                      doing, path, errno_text(errno), path);
  };
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return make_error(ENAMETOOLONG, "--control {}: the path is too long", path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return failed("open");
  const struct Closer {
    int fd;
    ~Closer() { close(fd); }
  } closer{fd};
  const timeval limit{timeout.count(), 0};  // for connect() too, where the backlog is full
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return failed("connect to");
  }
  const std::string request = line + "\n";
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    return failed("write to");
  }
  std::string answer;
  std::array<char, 4096> chunk;
  while (answer.find('\n') == std::string::npos) {
    const ssize_t got = recv(fd, chunk.data(), chunk.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = ECONNRESET;
    if (got <= 0) return failed("read from");
    answer.append(chunk.data(), static_cast<std::size_t>(got));
  }
  answer.resize(answer.find('\n'));
  return answer;
}

}  // namespace kintsugi::memserver
