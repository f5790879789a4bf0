// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/resolve.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "base/thread.h"
#include "wire/connection.h"

namespace kintsugi::wire {
namespace {

// Outlives whoever of the two is left.
struct Pending {
  Pending(const Uri& uri_in, Lookup lookup_in)
      : uri(uri_in), lookup(std::move(lookup_in)), done_fd(eventfd(0, EFD_CLOEXEC)) {}
  ~Pending() {
    if (list != nullptr) freeaddrinfo(list);
    if (done_fd >= 0) close(done_fd);
  }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  const Uri uri;
  const Lookup lookup;
  const int done_fd;
  std::mutex mutex;
  int result = EAI_AGAIN;
  addrinfo* list = nullptr;
};

addrinfo hints_for(int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  return hints;
}

std::vector<Endpoint> endpoints_of(const addrinfo* list) {
  std::vector<Endpoint> endpoints;
  for (const addrinfo* at = list; at != nullptr; at = at->ai_next) {
    Endpoint endpoint;
    std::memcpy(&endpoint.address, at->ai_addr, at->ai_addrlen);
    endpoint.length = at->ai_addrlen;
    endpoints.push_back(endpoint);
  }
  return endpoints;
}

void look_up(const std::shared_ptr<Pending>& pending) {
  const addrinfo hints = hints_for(AI_ADDRCONFIG);
  addrinfo* list = nullptr;
  const int result =
      pending->lookup(pending->uri.host.c_str(), pending->uri.port.c_str(), &hints, &list);
  {
    const std::lock_guard lock(pending->mutex);
    pending->result = result;
    pending->list = result == 0 ? list : nullptr;
  }
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(pending->done_fd, &one, sizeof(one));
}

}  // namespace

Result<std::vector<Endpoint>> resolve(const Uri& uri, std::chrono::milliseconds timeout,
                                      const Canceller* canceller, const Lookup& lookup) {
  if (uri.kind == Uri::Kind::kUnix) {
    Endpoint endpoint;
    auto* un = reinterpret_cast<sockaddr_un*>(&endpoint.address);
    un->sun_family = AF_UNIX;
    std::memcpy(un->sun_path, uri.path.c_str(), uri.path.size() + 1);
    endpoint.length = sizeof(*un);
    return std::vector<Endpoint>{endpoint};
  }
  const addrinfo numeric = hints_for(AI_NUMERICHOST | AI_NUMERICSERV);
  addrinfo* list = nullptr;
  if (getaddrinfo(uri.host.c_str(), uri.port.c_str(), &numeric, &list) == 0) {
    std::vector<Endpoint> endpoints = endpoints_of(list);
    freeaddrinfo(list);
    return endpoints;
  }
  const auto pending = std::make_shared<Pending>(uri, lookup);
  if (pending->done_fd < 0) return make_error(errno, "eventfd: {}", std::strerror(errno));
  Result<std::thread> thread = start_thread("ks-resolve", [pending] { look_up(pending); });
  if (!thread) return thread.error();
  thread->detach();
  std::array<pollfd, 2> fds{pollfd{pending->done_fd, POLLIN, 0},
                            pollfd{canceller ? canceller->fd() : -1, POLLIN, 0}};
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  int n = 0;
  do {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    n = poll(fds.data(), fds.size(), left.count() > 0 ? static_cast<int>(left.count()) : 0);
  } while (n < 0 && errno == EINTR);
  if (fds[1].revents != 0) {
    return make_error(ECANCELED, "cancelled while looking up memory server {}", uri.text());
  }
  if (n == 0) {
    return make_error(ETIMEDOUT,
                      "memory server {}: looking up '{}' took longer than {} ms: is the name "
                      "service reachable? An address in place of the name needs none",
                      uri.text(), uri.host, timeout.count());
  }
  const std::lock_guard lock(pending->mutex);
  if (pending->result != 0) {
    return make_error(EHOSTUNREACH, "memory server {}: cannot look up '{}': {}", uri.text(),
                      uri.host, gai_strerror(pending->result));
  }
  return endpoints_of(pending->list);
}

}  // namespace kintsugi::wire
