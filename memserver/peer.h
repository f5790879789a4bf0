// SPDX-License-Identifier: GPL-2.0-or-later
// One client's connection: a Channel on a LoopSocket. Lives in its loop's thread, and is owned by
// its loop's Peers.
#pragma once

#include <array>
#include <memory>
#include <optional>
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
  // Of a request that has begun to come, and of answers that wait to be read, so much must move in
  // this time: else the client hangs, and holds slots and memory that others need.
  static constexpr std::chrono::seconds kProgressTimeout{30};
  static constexpr std::size_t kProgressBytes = std::size_t{64} << 10;
  // Before that a connection may be about to be bound.
  static constexpr std::chrono::seconds kIdleBeforeGone{10};
  static constexpr std::chrono::seconds kSilentBeforeGone{1};

  // What must not stand still.
  struct Progress {
    bool waiting = false;
    std::uint64_t part = 0;  // which request, or which piece of output
    std::uint64_t bytes = 0;
    TimePoint since{};
    // Whether it waits now, and has for kProgressTimeout, for the same part and almost no bytes.
    [[nodiscard]] bool stuck(bool now_waiting, std::uint64_t now_part, std::uint64_t now_bytes,
                             TimePoint now);
  };

  explicit Peer(Peers* peers) : peers_(peers) {}
  void start(int fd, Channel::Options options, TimePoint now);
  // Reads and writes what can be; to be called when the channel went on by itself.
  void pump();
  void close();
  void check_timeouts(TimePoint now);
  // When it has connected, if it may have to make room for others: it has no session, and has said
  // Hello long ago or not soon.
  [[nodiscard]] std::optional<TimePoint> idle_since(TimePoint now) const;

  void on_received(int result) override;
  void on_sent(int result) override;

  [[nodiscard]] Channel& channel() { return *channel_; }

 private:
  friend class Peers;
  void begin_linger();
  void go_on();
  // Does `step`; without memory for it this connection ends, and no other.
  template <typename Step>
  void guarded(Step step);

  Peers* const peers_;
  std::unique_ptr<LoopSocket> socket_;
  std::unique_ptr<Channel> channel_;
  TimePoint started_;
  TimePoint last_now_;
  bool receiving_ = false, sending_ = false;
  bool closed_ = false;     // shut down; gone when nothing is under way
  bool lingering_ = false;  // all is said, waiting for the peer to hang up
  TimePoint linger_since_;
  Progress incoming_, outgoing_;
  std::uint64_t outputs_ = 0;     // that were begun
  std::uint64_t sent_bytes_ = 0;  // of all of them
  std::array<iovec, Channel::kMaxIovecs> receive_iov_;
  iovec send_iov_{};
  std::shared_ptr<Peer> next_gone_;
};

// The connections of one loop. In the loop's thread, but for construction.
class Peers {
 public:
  Peers(EventLoop* loop, Sessions* sessions, Stats* stats)
      : loop_(loop), sessions_(sessions), stats_(stats) {}

  void add(int fd, Channel::Options options);
  void close_all();
  void check_timeouts();
  // Closes the connection that has been without a session for longest, if there is one.
  void close_idle();
  // When nothing is under way on it.
  void remove(Peer* peer);

  [[nodiscard]] EventLoop& loop() { return *loop_; }
  [[nodiscard]] Sessions& sessions() { return *sessions_; }
  [[nodiscard]] Stats& stats() { return *stats_; }

 private:
  EventLoop* const loop_;
  Sessions* const sessions_;
  Stats* const stats_;
  // Deletes what remove() took: not from within its own calls.
  void bury();

  bool closing_ = false;
  std::shared_ptr<Peer> gone_;  // a list
  std::unordered_map<Peer*, std::shared_ptr<Peer>> peers_;
};

}  // namespace kintsugi::memserver
