// SPDX-License-Identifier: GPL-2.0-or-later
// One client's connection: a Channel on a LoopSocket. Lives in its loop's thread, and is owned by
// its loop's Peers.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>

#include "memserver/channel.h"
#include "memserver/event_loop.h"

namespace kintsugi::memserver {

class Peers;

class Peer final : public SocketHandler, public std::enable_shared_from_this<Peer> {
 public:
  // A client must have said Hello by then, and one that was told to go must be gone.
  static constexpr std::chrono::seconds kHelloTimeout{10};
  static constexpr std::chrono::seconds kLingerTimeout{2};

  explicit Peer(Peers* peers) : peers_(peers) {}
  void start(int fd, Channel::Options options, TimePoint now);
  // Reads and writes what can be; to be called when the channel went on by itself.
  void pump();
  void close();
  void check_timeouts(TimePoint now);

  void on_received(int result) override;
  void on_sent(int result) override;

  [[nodiscard]] Channel& channel() { return *channel_; }

 private:
  void begin_linger();

  Peers* const peers_;
  std::unique_ptr<LoopSocket> socket_;
  std::unique_ptr<Channel> channel_;
  TimePoint started_;
  TimePoint last_now_;
  bool receiving_ = false, sending_ = false;
  bool closed_ = false;     // shut down; gone when nothing is under way
  bool lingering_ = false;  // all is said, waiting for the peer to hang up
  TimePoint linger_since_;
  std::array<iovec, Channel::kMaxIovecs> receive_iov_;
  iovec send_iov_{};
};

// The connections of one loop. In the loop's thread, but for construction.
class Peers {
 public:
  Peers(EventLoop* loop, Sessions* sessions, Stats* stats)
      : loop_(loop), sessions_(sessions), stats_(stats) {}

  void add(int fd, Channel::Options options);
  void close_all();
  void check_timeouts();
  // When nothing is under way on it.
  void remove(Peer* peer);

  [[nodiscard]] EventLoop& loop() { return *loop_; }
  [[nodiscard]] Sessions& sessions() { return *sessions_; }
  [[nodiscard]] Stats& stats() { return *stats_; }

 private:
  EventLoop* const loop_;
  Sessions* const sessions_;
  Stats* const stats_;
  bool closing_ = false;
  std::unordered_map<Peer*, std::shared_ptr<Peer>> peers_;
};

}  // namespace kintsugi::memserver
