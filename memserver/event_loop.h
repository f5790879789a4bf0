// SPDX-License-Identifier: GPL-2.0-or-later
// A thread's worth of sockets, in the manner of a proactor: say what is to be received or sent,
// and be told when it has been. Two back ends: io_uring, where a loop with one request in hand
// costs one system call (submit the answer and the next receive, wait), and epoll, for kernels and
// containers that forbid io_uring.
//
// Threads: everything but post() and stop() belongs to the thread that calls run().
#pragma once

#include <sys/uio.h>

#include <functional>
#include <memory>
#include <span>

#include "base/result.h"

namespace kintsugi::memserver {

// What a socket tells its owner. `result`: bytes (0 from a receive: the peer has closed), or a
// negative errno. A handler may start the next operation from within, but must not delete the
// socket it is told about; post() that.
class SocketHandler {
 public:
  virtual ~SocketHandler() = default;
  virtual void on_received(int result) = 0;
  virtual void on_sent(int result) = 0;
};

// One receive and one send may be under way at a time. The iovecs and what they name stay the
// caller's, untouched, until told.
class LoopSocket {
 public:
  // Closes it. Nothing may be under way.
  virtual ~LoopSocket() = default;
  virtual void receive(std::span<const iovec> iov) = 0;
  // May send less than asked.
  virtual void send(std::span<const iovec> iov) = 0;
  // What is under way ends soon, and nothing can be sent or received any more.
  virtual void shutdown() = 0;
  // Says to the peer that nothing more will be sent.
  virtual void shutdown_send() = 0;
};

class EventLoop {
 public:
  virtual ~EventLoop() = default;
  // Takes over a connected stream socket; the handler outlives the LoopSocket.
  virtual std::unique_ptr<LoopSocket> adopt(int fd, SocketHandler* handler) = 0;
  // Runs until stop(), and then until no socket is left.
  virtual void run() = 0;
  // Any thread: `task` runs in the loop's thread, soon. Tasks posted after the end are dropped.
  virtual void post(std::function<void()> task) = 0;
  // Any thread.
  virtual void stop() = 0;
  [[nodiscard]] virtual const char* name() const = 0;
};

enum class LoopKind { kAuto, kUring, kEpoll };

// kAuto: io_uring where it works, else epoll, with a line in the log that says why.
[[nodiscard]] Result<std::unique_ptr<EventLoop>> make_event_loop(LoopKind kind);

// The two back ends; the seam for the test of kAuto is `make_uring`.
[[nodiscard]] Result<std::unique_ptr<EventLoop>> make_uring_loop();
[[nodiscard]] Result<std::unique_ptr<EventLoop>> make_epoll_loop();
using LoopFactory = std::function<Result<std::unique_ptr<EventLoop>>()>;
[[nodiscard]] Result<std::unique_ptr<EventLoop>> make_event_loop(LoopKind kind,
                                                                 const LoopFactory& make_uring);

}  // namespace kintsugi::memserver
