// SPDX-License-Identifier: GPL-2.0-or-later
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <vector>

#include "memserver/event_loop.h"
#include "memserver/task_queue.h"
#include "memserver/text.h"

namespace kintsugi::memserver {
namespace {

class EpollLoop;

// Edge-triggered: the kernel tells once that there is something to read or room to write, and the
// socket remembers it until the kernel says EAGAIN.
class EpollSocket final : public LoopSocket {
 public:
  EpollSocket(EpollLoop* loop, int fd, SocketHandler* handler);
  ~EpollSocket() override;
  void receive(std::span<const iovec> iov) override;
  void send(std::span<const iovec> iov) override;
  void shutdown() override { ::shutdown(fd_, SHUT_RDWR); }
  void shutdown_send() override { ::shutdown(fd_, SHUT_WR); }

  void ready(std::uint32_t events);
  // Tries what is under way; tells the handler about what is done.
  void attempt();

 private:
  friend class EpollLoop;
  struct Operation {
    std::span<const iovec> iov;
    bool under_way = false;
    bool ready = true;  // worth an attempt
  };
  void attempt_receive();
  void attempt_send();

  EpollLoop* const loop_;
  const int fd_;
  SocketHandler* const handler_;
  Operation receive_, send_;
  bool hung_up_ = false;  // no further edge may come: always worth an attempt
  bool queued_ = false;   // in the loop's list of sockets to attempt
};

class EpollLoop final : public EventLoop {
 public:
  EpollLoop() : fd_(epoll_create1(EPOLL_CLOEXEC)) {}
  ~EpollLoop() override {
    if (fd_ >= 0) close(fd_);
  }

  Result<void> init() {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = nullptr;
    if (fd_ < 0 || epoll_ctl(fd_, EPOLL_CTL_ADD, tasks_.fd(), &event) != 0) {
      return make_error(errno, "epoll: {}", errno_text(errno));
    }
    return {};
  }

  std::unique_ptr<LoopSocket> adopt(int fd, SocketHandler* handler) override {
    // What receive() and send() need later on: they cannot fail.
    attempts_.reserve(static_cast<std::size_t>(sockets_) + 1);
    round_.reserve(attempts_.capacity());
    return std::make_unique<EpollSocket>(this, fd, handler);
  }

  void run() override {
    while (!(tasks_.stopping() && sockets_ == 0)) {
      attempt_all();
      if (tasks_.stopping() && sockets_ == 0) break;
      std::array<epoll_event, 64> events;
      const int n = epoll_wait(fd_, events.data(), events.size(), attempts_.empty() ? -1 : 0);
      if (n < 0 && errno != EINTR) break;
      bool woken = false;
      for (int i = 0; i < n; i++) {
        if (!events[i].data.ptr) {
          woken = true;
          continue;
        }
        static_cast<EpollSocket*>(events[i].data.ptr)->ready(events[i].events);
      }
      // Last: a task may delete a socket that has an event in this batch.
      if (woken) {
        std::uint64_t value = 0;
        [[maybe_unused]] const ssize_t got = read(tasks_.fd(), &value, sizeof(value));
        tasks_.run_all();
      }
    }
  }

  void post(std::function<void()> task) override { tasks_.post(std::move(task)); }
  void stop() override { tasks_.stop(); }
  [[nodiscard]] const char* name() const override { return "epoll"; }

  void queue(EpollSocket* socket) {
    if (socket->queued_) return;
    socket->queued_ = true;
    attempts_.push_back(socket);
  }
  void forget(EpollSocket* socket) {
    std::erase(attempts_, socket);
    sockets_--;
  }
  [[nodiscard]] int fd() const { return fd_; }
  void count_socket() { sockets_++; }

 private:
  // One attempt a socket and round, so that a busy peer does not keep the others waiting.
  void attempt_all() {
    round_.swap(attempts_);
    for (EpollSocket* socket : round_) socket->queued_ = false;
    for (EpollSocket* socket : round_) socket->attempt();
    round_.clear();
  }

  int fd_;
  int sockets_ = 0;
  TaskQueue tasks_;
  std::vector<EpollSocket*> attempts_, round_;
};

EpollSocket::EpollSocket(EpollLoop* loop, int fd, SocketHandler* handler)
    : loop_(loop), fd_(fd), handler_(handler) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.ptr = this;
  // Without memory for it no event would ever come; then the operations say so.
  if (epoll_ctl(loop_->fd(), EPOLL_CTL_ADD, fd_, &event) != 0) ::shutdown(fd_, SHUT_RDWR);
  loop_->count_socket();
}

EpollSocket::~EpollSocket() {
  close(fd_);
  loop_->forget(this);
}

void EpollSocket::receive(std::span<const iovec> iov) {
  receive_.iov = iov;
  receive_.under_way = true;
  if (receive_.ready) loop_->queue(this);
}

void EpollSocket::send(std::span<const iovec> iov) {
  send_.iov = iov;
  send_.under_way = true;
  if (send_.ready) loop_->queue(this);
}

void EpollSocket::ready(std::uint32_t events) {
  if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) hung_up_ = true;
  if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) receive_.ready = true;
  if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0) send_.ready = true;
  if ((receive_.under_way && receive_.ready) || (send_.under_way && send_.ready)) {
    loop_->queue(this);
  }
}

void EpollSocket::attempt() {
  // Sending first makes room for what receiving brings.
  if (send_.under_way && send_.ready) attempt_send();
  if (receive_.under_way && receive_.ready) attempt_receive();
  if (send_.under_way && send_.ready) attempt_send();
}

void EpollSocket::attempt_receive() {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(receive_.iov.data());
  message.msg_iovlen = receive_.iov.size();
  ssize_t got = 0;
  do {
    got = recvmsg(fd_, &message, MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && errno == EAGAIN) {
    receive_.ready = false;
    return;
  }
  std::size_t asked = 0;
  for (const iovec& v : receive_.iov) asked += v.iov_len;
  // A short receive has emptied the socket, and more bytes make a new edge.
  if (got > 0 && static_cast<std::size_t>(got) < asked && !hung_up_) receive_.ready = false;
  receive_.under_way = false;
  handler_->on_received(got < 0 ? -errno : static_cast<int>(got));
}

void EpollSocket::attempt_send() {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(send_.iov.data());
  message.msg_iovlen = send_.iov.size();
  ssize_t sent = 0;
  do {
    sent = sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0 && errno == EAGAIN) {
    send_.ready = false;
    return;
  }
  send_.under_way = false;
  handler_->on_sent(sent < 0 ? -errno : static_cast<int>(sent));
}

}  // namespace

Result<std::unique_ptr<EventLoop>> make_epoll_loop() {
  auto loop = std::make_unique<EpollLoop>();
  if (Result<void> ready = loop->init(); !ready) return ready.error();
  return std::unique_ptr<EventLoop>(std::move(loop));
}

}  // namespace kintsugi::memserver
