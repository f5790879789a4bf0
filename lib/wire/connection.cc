// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/connection.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>
#include <system_error>

namespace kintsugi::wire {
namespace {

std::string errno_text(int code) { return std::generic_category().message(code); }

Result<void> wait_for(int fd, short events, std::chrono::milliseconds timeout,
                      const Canceller* canceller, const std::string& name, const char* doing) {
  std::array<pollfd, 2> fds{pollfd{fd, events, 0},
                            pollfd{canceller ? canceller->fd() : -1, POLLIN, 0}};
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    const int n =
        poll(fds.data(), fds.size(), left.count() > 0 ? static_cast<int>(left.count()) : 0);
    if (n < 0 && errno != EINTR) {
      return make_error(errno, "poll: {}", errno_text(errno));
    }
    if (n > 0 && (fds[1].revents & POLLIN) != 0) {
      return make_error(ECANCELED, "cancelled while {} memory server {}", doing, name);
    }
    if (n > 0 && fds[0].revents != 0) return {};
    if (n == 0) {
      return make_error(ETIMEDOUT,
                        "memory server {} did not answer for {} ms while {} it: is it running "
                        "and is the network to it open?",
                        name, timeout.count(), doing);
    }
  }
}

void advance(std::span<iovec>& iov, std::size_t bytes) {
  while (!iov.empty()) {
    if (bytes < iov.front().iov_len) {
      iov.front().iov_base = static_cast<char*>(iov.front().iov_base) + bytes;
      iov.front().iov_len -= bytes;
      return;
    }
    bytes -= iov.front().iov_len;
    iov = iov.subspan(1);
  }
}

// A connected socket.
Result<int> connect_to(const Endpoint& endpoint, const Uri& uri, const ConnectOptions& options,
                       std::chrono::milliseconds timeout) {
  const int fd = socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return make_error(errno, "socket: {}", errno_text(errno));
  const auto failed = [&](Error error) {
    close(fd);
    return error;
  };
  const auto refused = [&](int code) {
    return failed(make_error(code, "cannot connect to memory server {}: {}; is it running there?",
                             uri.text(), errno_text(code)));
  };
  const auto* address = reinterpret_cast<const sockaddr*>(&endpoint.address);
  if (connect(fd, address, endpoint.length) < 0) {
    if (errno != EINPROGRESS) return refused(errno);
    const Result<void> waited =
        wait_for(fd, POLLOUT, timeout, options.canceller, uri.text(), "connecting to");
    if (!waited) return failed(waited.error());
    int code = 0;
    socklen_t length = sizeof(code);
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length);
    if (code != 0) return refused(code);
  }
  return fd;
}

}  // namespace

Error connection_lost(std::string_view name, int code) {
  if (code == 0 || code == EPIPE) {
    return make_error(ECONNRESET, "memory server {} closed the connection", name);
  }
  return make_error(code, "memory server {} is gone: {}", name, errno_text(code));
}

Canceller::Canceller() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Canceller::~Canceller() {
  if (fd_ >= 0) close(fd_);
}

void Canceller::cancel() {
  cancelled_.store(true, std::memory_order_release);
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(fd_, &one, sizeof(one));
}

Connection::Connection(int fd, std::string name, const ConnectOptions& options)
    : fd_(fd), name_(std::move(name)), options_(options) {}

Connection::~Connection() { close(fd_); }

Result<std::unique_ptr<Connection>> Connection::connect(const Uri& uri,
                                                        const ConnectOptions& options) {
  if (options.canceller && options.canceller->cancelled()) {
    return make_error(ECANCELED, "cancelled before connecting to memory server {}", uri.text());
  }
  const auto deadline = std::chrono::steady_clock::now() + options.connect_timeout;
  const Result<std::vector<Endpoint>> endpoints =
      resolve(uri, options.connect_timeout, options.canceller,
              options.lookup ? options.lookup : Lookup(&getaddrinfo));
  if (!endpoints) return endpoints.error();
  std::unique_ptr<Connection> connection;
  std::optional<Error> failure;
  // The first that answers; those behind it share the time that is left.
  for (std::size_t i = 0; i < endpoints->size() && !connection; i++) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    const auto rest = static_cast<std::chrono::milliseconds::rep>(endpoints->size() - i);
    Result<int> fd = connect_to((*endpoints)[i], uri, options,
                                std::max(left, std::chrono::milliseconds(0)) / rest);
    if (fd) {
      connection.reset(new Connection(*fd, uri.text(), options));
    } else {
      if (fd.error().code == ECANCELED) return fd.error();
      failure = fd.error();
    }
  }
  if (!connection) {
    return failure ? *failure
                   : make_error(EHOSTUNREACH, "memory server {} has no address", uri.text());
  }
  const int fd = connection->fd();
  if (uri.kind == Uri::Kind::kTcp) {
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
  }
  const Result<void> greeted = connection->hello();
  if (!greeted) return greeted.error();
  return connection;
}

Result<void> Connection::hello() {
  const HelloRequest hello;
  FrameHeader header;
  header.op = static_cast<std::uint16_t>(Op::kHello);
  header.length = sizeof(hello);
  header.seq = next_seq_++;
  iovec payload{const_cast<HelloRequest*>(&hello), sizeof(hello)};
  if (Result<void> sent = send_frame(header, {&payload, 1}); !sent) return sent;
  Result<FrameHeader> reply = receive_header();
  if (!reply) return reply.error();
  if (reply->op != header.op || reply->seq != header.seq) {
    return make_error(EPROTO, "memory server {} answered out of turn", name_);
  }
  if (Result<void> got = receive(&server_, sizeof(server_)); !got) return got;
  if (reply->status == static_cast<std::uint32_t>(Status::kVersion)) {
    return make_error(EPROTONOSUPPORT,
                      "memory server {} speaks page protocol versions {} to {}, this host speaks "
                      "{}: install matching releases on both sides",
                      name_, server_.min_version, server_.version, kVersion);
  }
  if (reply->status != 0) return refusal(static_cast<Status>(reply->status), "greet us");
  if (server_.version != kVersion) {
    return make_error(EPROTONOSUPPORT,
                      "memory server {} chose page protocol version {}, which was not offered",
                      name_, server_.version);
  }
  return {};
}

Error Connection::refusal(Status status, const char* what) const {
  return make_error(status_errno(status), "memory server {} refused to {}: {}", name_, what,
                    status_text(status));
}

Result<void> Connection::wait(short events, const char* doing) {
  return wait_for(fd_, events, options_.io_timeout, options_.canceller, name_, doing);
}

FrameHeader Connection::request(Op op, std::uint64_t seq) const {
  FrameHeader header;
  header.op = static_cast<std::uint16_t>(op);
  header.seq = seq;
  header.epoch = epoch_.value;
  return header;
}

Result<void> Connection::send_frame(const FrameHeader& header, std::span<iovec> payload) {
  constexpr std::size_t kMaxPieces = 64;
  FrameHeader copy = header;
  std::array<iovec, kMaxPieces + 1> frame;
  frame[0] = {&copy, sizeof(copy)};
  const std::size_t first = std::min(payload.size(), kMaxPieces);
  std::copy_n(payload.begin(), first, frame.begin() + 1);
  if (Result<void> sent = send_iovecs({frame.data(), first + 1}); !sent) return sent;
  return send_iovecs(payload.subspan(first));
}

Result<void> Connection::send_iovecs(std::span<iovec> frames) {
  constexpr std::size_t kMaxIov = 1024;  // the kernel's UIO_MAXIOV
  while (!frames.empty()) {
    msghdr message{};
    message.msg_iov = frames.data();
    message.msg_iovlen = std::min(frames.size(), kMaxIov);
    const ssize_t sent = sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      advance(frames, static_cast<std::size_t>(sent));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return connection_lost(name_, errno);
    if (Result<void> waited = wait(POLLOUT, "sending to"); !waited) return waited;
  }
  return {};
}

Result<void> Connection::receive(void* data, std::size_t bytes) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = recv(fd_, at, bytes, MSG_DONTWAIT);
    if (got == 0) return connection_lost(name_, 0);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return connection_lost(name_, errno);
      if (Result<void> waited = wait(POLLIN, "waiting for"); !waited) return waited;
      continue;
    }
    at += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return {};
}

Result<FrameHeader> Connection::receive_header() {
  FrameHeader header;
  if (Result<void> got = receive(&header, sizeof(header)); !got) return got.error();
  if (Result<void> checked = check_reply(header); !checked) return checked.error();
  return header;
}

Result<void> Connection::receive_headers(std::span<FrameHeader> headers) {
  if (Result<void> got = receive(headers.data(), headers.size_bytes()); !got) return got;
  for (const FrameHeader& header : headers) {
    if (Result<void> checked = check_reply(header); !checked) return checked;
    if (header.length != 0)
      return make_error(EPROTO, "memory server {} sent a payload that was not asked for", name_);
  }
  return {};
}

Result<void> Connection::check_reply(const FrameHeader& header) const {
  if (Result<void> checked = check_header(header, true, tag_bytes_); !checked) {
    return make_error(checked.error().code, "memory server {}: {}", name_, checked.error().message);
  }
  return {};
}

Result<void> Connection::send_call(Op op, Epoch epoch, const void* payload, std::size_t bytes) {
  called_ = op;
  FrameHeader header = request(op, next_seq_++);
  header.epoch = epoch.value;
  header.length = static_cast<std::uint32_t>(bytes);
  iovec iov{const_cast<void*>(payload), bytes};
  return send_frame(header, {&iov, bytes > 0 ? 1U : 0U});
}

Result<FrameHeader> Connection::receive_call(SessionReply* figures) {
  Result<FrameHeader> reply = receive_header();
  if (!reply) return reply;
  if (reply->seq != next_seq_ - 1 || reply->op != static_cast<std::uint16_t>(called_)) {
    return make_error(EPROTO, "memory server {} answered out of turn", name_);
  }
  if (reply->status != 0 || figures == nullptr) return reply;
  if (Result<void> got = receive(figures, sizeof(*figures)); !got) return got.error();
  epoch_ = Epoch{reply->epoch};
  tag_bytes_ = figures->tag_bytes;
  return reply;
}

Result<SessionInfo> Connection::receive_bound(const char* what) {
  SessionInfo info;
  const Result<FrameHeader> reply = receive_call(&info.figures);
  if (!reply) return reply.error();
  if (reply->status != 0) return refusal(static_cast<Status>(reply->status), what);
  info.epoch = epoch_;
  return info;
}

Result<SessionInfo> Connection::open(const OpenRequest& request) {
  Result<void> sent = send_call(Op::kOpen, Epoch{}, &request, sizeof(request));
  if (!sent) return sent.error();
  return receive_bound("reserve memory");
}

Result<void> Connection::send_attach(const SessionId& session, Epoch epoch) {
  const BindRequest request{session, {}};
  return send_call(Op::kAttach, epoch, &request, sizeof(request));
}

Result<SessionInfo> Connection::receive_attach() { return receive_bound("attach"); }

Result<SessionInfo> Connection::attach(const SessionId& session, Epoch epoch) {
  if (Result<void> sent = send_attach(session, epoch); !sent) return sent.error();
  return receive_attach();
}

Result<SessionInfo> Connection::stat() {
  if (Result<void> sent = send_call(Op::kStat, epoch_, nullptr, 0); !sent) return sent.error();
  return receive_bound("tell its figures");
}

Result<void> Connection::drop() {
  if (Result<void> sent = send_call(Op::kDrop, epoch_, nullptr, 0); !sent) return sent;
  const Result<FrameHeader> reply = receive_call(nullptr);
  if (!reply) return reply.error();
  if (reply->status != 0) return refusal(static_cast<Status>(reply->status), "drop the session");
  return {};
}

Result<void> Connection::send_ownership(Op op, const SessionId& session, Epoch epoch,
                                        const Ticket& ticket) {
  const BindRequest request{session, ticket};
  const bool bound = op == Op::kCommit || op == Op::kDrop;
  return send_call(op, epoch, &request, bound ? 0 : sizeof(request));
}

Result<OwnershipInfo> Connection::receive_ownership() {
  OwnershipInfo info;
  const bool binds = called_ == Op::kOpen || called_ == Op::kClaim || called_ == Op::kReclaim;
  const Result<FrameHeader> reply = receive_call(binds ? &info.figures : nullptr);
  if (!reply) return reply.error();
  info.status = static_cast<Status>(reply->status);
  info.epoch = Epoch{reply->epoch};
  return info;
}

Result<OwnershipInfo> Connection::ask_ownership(Op op, const SessionId& session, Epoch epoch,
                                                const Ticket& ticket) {
  if (Result<void> sent = send_ownership(op, session, epoch, ticket); !sent) return sent.error();
  return receive_ownership();
}

Result<OwnershipInfo> Connection::ask_open(const OpenRequest& request) {
  if (Result<void> sent = send_call(Op::kOpen, Epoch{}, &request, sizeof(request)); !sent) {
    return sent.error();
  }
  return receive_ownership();
}

}  // namespace kintsugi::wire
