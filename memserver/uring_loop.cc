// SPDX-License-Identifier: GPL-2.0-or-later
#include <liburing.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>

#include "memserver/event_loop.h"
#include "memserver/task_queue.h"
#include "memserver/text.h"

namespace kintsugi::memserver {
namespace {

constexpr unsigned kRingEntries = 256;
// Two operations a connection can be under way; more than this overflow into the kernel, slowly.
constexpr unsigned kCompletionEntries = 4096;

class UringLoop;

class UringSocket final : public LoopSocket {
 public:
  UringSocket(UringLoop* loop, int fd, SocketHandler* handler);
  ~UringSocket() override;
  void receive(std::span<const iovec> iov) override;
  void send(std::span<const iovec> iov) override;
  void shutdown() override { ::shutdown(fd_, SHUT_RDWR); }
  void shutdown_send() override { ::shutdown(fd_, SHUT_WR); }
  void complete(bool sent, int result);

 private:
  UringLoop* const loop_;
  const int fd_;
  SocketHandler* const handler_;
  msghdr receive_message_{}, send_message_{};
  std::size_t asked_ = 0;
  bool drained_ = false;  // the last receive got less than it asked for
};

class UringLoop final : public EventLoop {
 public:
  ~UringLoop() override {
    if (ready_) io_uring_queue_exit(&ring_);
  }

  Result<void> init() {
    // The best that the kernel has: completions are run when we wait (6.1), or without an
    // interrupt to a running thread (5.19), or as ever.
    constexpr std::array<unsigned, 3> kModes{
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0};
    int code = 0;
    for (const unsigned mode : kModes) {
      io_uring_params params{};
      // Disabled until run(): the thread that enables the ring is the one that may use it.
      params.flags = mode | IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED;
      params.cq_entries = kCompletionEntries;
      code = -io_uring_queue_init_params(kRingEntries, &ring_, &params);
      if (code == 0) {
        ready_ = true;
        poll_first_ = mode != 0;
        return {};
      }
      if (code != EINVAL) break;
    }
    return make_error(code,
                      "io_uring does not work here: {} (see /proc/sys/kernel/io_uring_disabled)",
                      errno_text(code));
  }

  std::unique_ptr<LoopSocket> adopt(int fd, SocketHandler* handler) override {
    return std::make_unique<UringSocket>(this, fd, handler);
  }

  void run() override {
    // Debian 12's liburing does not export io_uring_enable_rings().
    syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    arm_wake();
    while (!(tasks_.stopping() && sockets_ == 0)) {
      const int rc = io_uring_submit_and_wait(&ring_, 1);
      if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY && rc != -ETIME) break;
      reap();
    }
  }

  void post(std::function<void()> task) override { tasks_.post(std::move(task)); }
  void stop() override { tasks_.stop(); }
  [[nodiscard]] const char* name() const override { return "io_uring"; }

  io_uring_sqe* sqe() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    while (!sqe) {
      io_uring_submit(&ring_);
      sqe = io_uring_get_sqe(&ring_);
    }
    return sqe;
  }
  [[nodiscard]] bool poll_first() const { return poll_first_; }
  void count_socket(int by) { sockets_ += by; }

 private:
  // user_data is the socket's address, with this bit for a send; 0 is the wake-up.
  static constexpr std::uint64_t kSendBit = 1;
  friend class UringSocket;

  void arm_wake() {
    io_uring_sqe* s = sqe();
    io_uring_prep_poll_add(s, tasks_.fd(), POLLIN);
    io_uring_sqe_set_data64(s, 0);
  }

  void reap() {
    std::array<io_uring_cqe*, 64> batch;
    for (;;) {
      const unsigned n = io_uring_peek_batch_cqe(&ring_, batch.data(), batch.size());
      if (n == 0) return;
      std::array<std::pair<std::uint64_t, int>, 64> done;
      for (unsigned i = 0; i < n; i++) done[i] = {batch[i]->user_data, batch[i]->res};
      io_uring_cq_advance(&ring_, n);
      for (unsigned i = 0; i < n; i++) {
        const auto [data, result] = done[i];
        if (data == 0) {
          std::uint64_t value = 0;
          [[maybe_unused]] const ssize_t got = read(tasks_.fd(), &value, sizeof(value));
          tasks_.run_all();
          arm_wake();
          continue;
        }
        reinterpret_cast<UringSocket*>(data & ~kSendBit)->complete((data & kSendBit) != 0, result);
      }
    }
  }

  io_uring ring_{};
  bool ready_ = false;
  bool poll_first_ = false;
  int sockets_ = 0;
  TaskQueue tasks_;
};

UringSocket::UringSocket(UringLoop* loop, int fd, SocketHandler* handler)
    : loop_(loop), fd_(fd), handler_(handler) {
  loop_->count_socket(1);
}

UringSocket::~UringSocket() {
  close(fd_);
  loop_->count_socket(-1);
}

void UringSocket::receive(std::span<const iovec> iov) {
  asked_ = 0;
  for (const iovec& v : iov) asked_ += v.iov_len;
  io_uring_sqe* sqe = loop_->sqe();
  if (iov.size() == 1) {
    io_uring_prep_recv(sqe, fd_, iov[0].iov_base, iov[0].iov_len, 0);
  } else {
    receive_message_.msg_iov = const_cast<iovec*>(iov.data());
    receive_message_.msg_iovlen = iov.size();
    io_uring_prep_recvmsg(sqe, fd_, &receive_message_, 0);
  }
  // After a short receive the socket is empty most likely: the attempt would be in vain.
  if (drained_ && loop_->poll_first()) sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
  io_uring_sqe_set_data64(sqe, reinterpret_cast<std::uint64_t>(this));
}

void UringSocket::send(std::span<const iovec> iov) {
  io_uring_sqe* sqe = loop_->sqe();
  if (iov.size() == 1) {
    io_uring_prep_send(sqe, fd_, iov[0].iov_base, iov[0].iov_len, MSG_NOSIGNAL);
  } else {
    send_message_.msg_iov = const_cast<iovec*>(iov.data());
    send_message_.msg_iovlen = iov.size();
    io_uring_prep_sendmsg(sqe, fd_, &send_message_, MSG_NOSIGNAL);
  }
  io_uring_sqe_set_data64(sqe, reinterpret_cast<std::uint64_t>(this) | UringLoop::kSendBit);
}

void UringSocket::complete(bool sent, int result) {
  if (sent) {
    handler_->on_sent(result);
    return;
  }
  drained_ = result >= 0 && static_cast<std::size_t>(result) < asked_;
  handler_->on_received(result);
}

}  // namespace

Result<std::unique_ptr<EventLoop>> make_uring_loop() {
  auto loop = std::make_unique<UringLoop>();
  if (Result<void> ready = loop->init(); !ready) return ready.error();
  return std::unique_ptr<EventLoop>(std::move(loop));
}

}  // namespace kintsugi::memserver
