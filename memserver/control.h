// SPDX-License-Identifier: GPL-2.0-or-later
// The operator's Unix socket: one JSON object a line in, one out.
//
//   {"cmd":"status"}                                     figures of the server and its sessions
//   {"cmd":"drop","session":"ID","force":true|false}     ends a session
//
// Answers have "ok", and "error" when that is false. Whoever may open the socket may do all of it:
// it is made with mode 0600.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/result.h"
#include "memserver/figures.h"
#include "memserver/listener.h"
#include "wire/protocol.h"

namespace kintsugi::memserver {

// Empty when the session was ended, else why not. Any thread.
using DropSession = std::function<std::string(const wire::SessionId&, bool force)>;

// The answer to one line, without the newline.
[[nodiscard]] std::string answer_control(const std::string& line, const CollectFigures& collect,
                                         const DropSession& drop);

// Serves one client after the other, in a thread of its own.
class ControlSocket {
 public:
  static constexpr std::size_t kMaxLineBytes = 4096;
  static constexpr int kClientTimeoutMs = 5000;  // without a byte

  [[nodiscard]] static Result<std::unique_ptr<ControlSocket>> start(const std::string& path,
                                                                    CollectFigures collect,
                                                                    DropSession drop);
  ~ControlSocket();
  ControlSocket(const ControlSocket&) = delete;
  ControlSocket& operator=(const ControlSocket&) = delete;

 private:
  ControlSocket(std::unique_ptr<Listener> listener, CollectFigures collect, DropSession drop);
  void run();
  void serve(int fd) const;
  static constexpr int kPauseMs = 100;

  // False when the server ends, or after `timeout_ms`; negative: never.
  [[nodiscard]] bool wait_for(int fd, short events, int timeout_ms) const;

  std::unique_ptr<Listener> listener_;
  const CollectFigures collect_;
  const DropSession drop_;
  int stop_fd_;
  std::thread thread_;
};

// The client: sends one line, returns the answer's. ETIMEDOUT when the server has moved no byte for
// `timeout`.
[[nodiscard]] Result<std::string> ask_control(
    const std::string& path, const std::string& line,
    std::chrono::seconds timeout = std::chrono::seconds(10));

}  // namespace kintsugi::memserver
