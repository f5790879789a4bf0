// SPDX-License-Identifier: GPL-2.0-or-later
// One thread's end of its lane to one server: the connection while there is one, watched by the
// thread's epoll, and what comes and goes over it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "pager/frame_io.h"
#include "pager/server_link.h"

namespace kintsugi {

// How often a thread with something unanswered looks for servers that are overdue.
inline constexpr int kOverdueCheck_ms = 250;
[[nodiscard]] inline int overdue_check_ms(std::chrono::milliseconds io_timeout) {
  return std::min(kOverdueCheck_ms, static_cast<int>(io_timeout.count() / 4) + 1);
}

// Belongs to one thread. Events carry the server's number.
class LanePort {
 public:
  // `trigger`: EPOLLET or 0. The buffer must hold the longest answer.
  [[nodiscard]] Result<void> init(ServerLink* link, Lane lane, int epoll, std::uint32_t trigger,
                                  std::size_t buffer_bytes);

  [[nodiscard]] bool connected() const { return at_.connection != nullptr; }
  [[nodiscard]] wire::Connection& connection() const { return *at_.connection; }
  [[nodiscard]] ServerLink& link() const { return *link_; }
  [[nodiscard]] ServerId server() const { return link_->server(); }
  [[nodiscard]] const std::string& name() const { return link_->name(); }

  // Lets go of a connection that the link has given up, and takes a newer one unless `only_drop`.
  // True: it is new, so what the server has not answered is to be sent again.
  [[nodiscard]] bool renew(std::uint64_t now_ns, bool only_drop = false);
  // Tells the link that the server is broken, and lets go of it.
  void fail(const Error& error);
  void disconnect();

  // Whether an event is to tell when more can be sent.
  void watch_writable(bool on);
  [[nodiscard]] bool writable_watched() const { return writable_watched_; }

  // A server makes progress by sending, and starts anew with the first thing it is asked.
  void made_progress(std::uint64_t now_ns) { progress_ns_ = now_ns; }
  // Connected, and without progress for so long.
  [[nodiscard]] bool overdue(std::uint64_t now_ns, std::chrono::milliseconds io_timeout) const;

  // Takes what has come, without waiting, and hands it to on_answer(header, payload), which may
  // fail() the port; returns the bytes, 0 when nothing came or the port has failed.
  template <typename OnAnswer>
  std::size_t receive(std::uint64_t now_ns, OnAnswer&& on_answer) {
    if (!connected()) return 0;
    const Result<std::size_t> got = reader_.fill(connection().fd(), name().c_str());
    if (!got) {
      fail(got.error());
      return 0;
    }
    if (*got == 0) return 0;
    made_progress(now_ns);
    wire::FrameHeader header;
    std::span<const std::uint8_t> payload;
    while (connected()) {
      const Result<bool> more = reader_.next(&header, &payload, name().c_str());
      if (!more) {
        fail(more.error());
        break;
      }
      if (!*more) break;
      on_answer(header, payload);
    }
    return *got;
  }
  // Whether the last receive() took all that had come.
  [[nodiscard]] bool drained() const { return reader_.drained(); }

  // Sends the headers that next(&header) gives until it returns false. False: not all went, as the
  // socket is full (then an event tells) or broken.
  template <typename Next>
  bool send(Next&& next) {
    for (;;) {
      wire::FrameHeader header;
      while (!sender_.full() && next(&header)) sender_.add(header);
      if (sender_.empty()) break;
      const Result<bool> sent = sender_.flush(connection().fd(), name().c_str());
      if (!sent) {
        fail(sent.error());
        return false;
      }
      if (!*sent) {
        watch_writable(true);
        return false;
      }
    }
    watch_writable(false);
    return true;
  }

 private:
  void watch(int operation, std::uint32_t events) const;

  ServerLink* link_ = nullptr;
  Lane lane_{};
  int epoll_ = -1;
  std::uint32_t trigger_ = 0;
  ServerLink::LaneConnection at_;
  FrameReader reader_;
  HeaderSender sender_;
  std::uint64_t progress_ns_ = 0;
  bool writable_watched_ = false;
};

}  // namespace kintsugi
