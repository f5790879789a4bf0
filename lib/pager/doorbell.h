// SPDX-License-Identifier: GPL-2.0-or-later
// Wakes a thread that sleeps in epoll, and costs its callers nothing while it does not sleep.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace kintsugi {

// For what happens often. The sleeper: about_to_sleep(), look once more whether there is work,
// epoll_wait() on fd(), awake(). Whoever made work calls ring() after it: either the sleeper's last
// look sees the work, or ring() sees that it sleeps. What happens rarely calls ring_always(), and
// then the sleeper need not look.
class Doorbell {
 public:
  Doorbell() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Doorbell() { close(fd_); }
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  [[nodiscard]] int fd() const { return fd_; }

  void ring() {
    if (asleep_.exchange(false, std::memory_order_seq_cst)) ring_always();
  }
  void ring_always() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(fd_, &one, sizeof(one));
  }

  void about_to_sleep() { asleep_.store(true, std::memory_order_seq_cst); }
  void awake() { asleep_.store(false, std::memory_order_relaxed); }
  // After fd() was seen readable.
  void silence() {
    std::uint64_t rings = 0;
    [[maybe_unused]] const ssize_t n = read(fd_, &rings, sizeof(rings));
  }

 private:
  const int fd_;
  std::atomic<bool> asleep_{false};
};

}  // namespace kintsugi
