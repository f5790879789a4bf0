// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>

#include "memserver/text.h"

namespace kintsugi::memserver {
namespace {

constexpr int kBacklog = 128;

Error cannot_listen(const wire::Uri& uri, int code) {
  const char* hint = "";
  if (code == EADDRINUSE) hint = ": stop what listens there, or give --listen another port or path";
  if (code == EACCES) hint = ": give --listen a port from 1024 on, or a path this user may write";
  if (code == EADDRNOTAVAIL) hint = ": give --listen an address that this machine has";
  return make_error(code, "cannot listen on {}: {}{}", uri.text(), errno_text(code), hint);
}

// Host and port as numbers.
bool numeric_name(const sockaddr* address, socklen_t length, std::string* host, std::string* port) {
  std::array<char, NI_MAXHOST> h;
  std::array<char, NI_MAXSERV> p;
  if (getnameinfo(address, length, h.data(), h.size(), p.data(), p.size(),
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return false;
  }
  *host = h.data();
  *port = p.data();
  return true;
}

void set_option(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof(value));
}

}  // namespace

Result<std::vector<std::unique_ptr<Listener>>> Listener::open(const wire::Uri& uri, unsigned mode) {
  std::vector<std::unique_ptr<Listener>> listeners;
  if (uri.kind == wire::Uri::Kind::kUnix) {
    Result<std::unique_ptr<Listener>> listener = open_unix(uri, mode);
    if (!listener) return listener.error();
    listeners.push_back(std::move(*listener));
    return listeners;
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  if (const int rc = getaddrinfo(uri.host.c_str(), uri.port.c_str(), &hints, &list); rc != 0) {
    return make_error(EADDRNOTAVAIL, "cannot listen on {}: cannot look up '{}': {}", uri.text(),
                      uri.host, gai_strerror(rc));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, freeaddrinfo);
  std::string port = uri.port;
  std::optional<Error> left_out;
  for (const addrinfo* at = list; at; at = at->ai_next) {
    const auto missing = [&](int code) {
      // The name has it, this machine has not: IPv6 switched off, say.
      if (code != EAFNOSUPPORT && code != EADDRNOTAVAIL) return false;
      left_out = cannot_listen(uri, code);
      return true;
    };
    const int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 && missing(errno)) continue;
    if (fd < 0) return cannot_listen(uri, errno);
    std::unique_ptr<Listener> listener(new Listener(fd, uri));
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    sockaddr_storage address{};
    std::memcpy(&address, at->ai_addr, at->ai_addrlen);
    // sockaddr_in and sockaddr_in6 have the port at the same place.
    const auto number = static_cast<std::uint16_t>(std::stoul(port));
    reinterpret_cast<sockaddr_in*>(&address)->sin_port = htons(number);
    if (at->ai_family == AF_INET6) set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), at->ai_addrlen) != 0 ||
        listen(fd, kBacklog) != 0) {
      if (missing(errno)) continue;
      return cannot_listen(uri, errno);
    }
    socklen_t length = sizeof(address);
    getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
    numeric_name(reinterpret_cast<sockaddr*>(&address), length, &listener->uri_.host,
                 &listener->uri_.port);
    port = listener->uri_.port;
    listeners.push_back(std::move(listener));
  }
  if (listeners.empty() && left_out) return *left_out;
  if (left_out) spdlog::warn("{}; its other addresses are served", left_out->message);
  return listeners;
}

Result<std::unique_ptr<Listener>> Listener::open_unix(const wire::Uri& uri, unsigned mode) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, uri.path.c_str(), uri.path.size() + 1);
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return cannot_listen(uri, errno);
  // The path is only ours to remove when the bind succeeds.
  std::unique_ptr<Listener> listener(new Listener(fd, wire::Uri{}));
  struct stat st {};
  if (lstat(uri.path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) {
    const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(probe, name, sizeof(address)) != 0 && errno == ECONNREFUSED) {
      unlink(uri.path.c_str());
    }
    close(probe);
  }
  if (bind(fd, name, sizeof(address)) != 0) return cannot_listen(uri, errno);
  listener->uri_ = uri;
  listener->path_ = OwnedPath(uri.path);
  if (chmod(uri.path.c_str(), mode) != 0 || listen(fd, kBacklog) != 0) {
    return cannot_listen(uri, errno);
  }
  return listener;
}

Listener::~Listener() {
  path_ = OwnedPath();  // while it is known to be alive, nobody replaces it
  close(fd_);
}

Listener::Accepted Listener::accept() const {
  Accepted accepted;
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  do {
    accepted.fd = accept4(fd_, reinterpret_cast<sockaddr*>(&address), &length, SOCK_CLOEXEC);
  } while (accepted.fd < 0 && errno == EINTR);
  if (accepted.fd < 0) {
    accepted.fd = -errno;
    return accepted;
  }
  if (uri_.kind == wire::Uri::Kind::kUnix) {
    ucred peer{};
    socklen_t size = sizeof(peer);
    getsockopt(accepted.fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    accepted.peer = fmt::format("unix:pid {}", peer.pid);
    return accepted;
  }
  wire::Uri peer;
  numeric_name(reinterpret_cast<sockaddr*>(&address), length, &peer.host, &peer.port);
  accepted.peer = peer.text();
  set_option(accepted.fd, IPPROTO_TCP, TCP_NODELAY, 1);
  // A peer that is gone without a word is noticed after a minute, also in mid-answer.
  set_option(accepted.fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(accepted.fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set_option(accepted.fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set_option(accepted.fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  set_option(accepted.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 60'000);
  return accepted;
}

}  // namespace kintsugi::memserver
