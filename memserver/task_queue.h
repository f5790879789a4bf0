// SPDX-License-Identifier: GPL-2.0-or-later
// Tasks that other threads hand to an event loop, and the eventfd that wakes it. Thread-safe but
// for run_all(), which is the loop's.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "memserver/run_task.h"

namespace kintsugi::memserver {

class TaskQueue {
 public:
  TaskQueue() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~TaskQueue() {
    if (fd_ >= 0) close(fd_);
  }
  TaskQueue(const TaskQueue&) = delete;
  TaskQueue& operator=(const TaskQueue&) = delete;

  // Readable when there is something to do; the loop reads it empty before run_all().
  [[nodiscard]] int fd() const { return fd_; }
  void post(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake();
  }
  void stop() {
    stopping_.store(true, std::memory_order_release);
    wake();
  }
  [[nodiscard]] bool stopping() const { return stopping_.load(std::memory_order_acquire); }
  void run_all() {
    std::vector<std::function<void()>> tasks;
    {
      const std::lock_guard lock(mutex_);
      tasks.swap(tasks_);
    }
    for (const std::function<void()>& task : tasks) run_task(task);
  }

 private:
  void wake() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(fd_, &one, sizeof(one));
  }

  int fd_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::vector<std::function<void()>> tasks_;
};

}  // namespace kintsugi::memserver
