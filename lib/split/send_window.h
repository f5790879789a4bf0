// SPDX-License-Identifier: GPL-2.0-or-later
// How much a sender lets be on its way to a server, unanswered.
//
// Little, and a server that takes milliseconds to answer gets little: so much and no more each
// time. Much, and what is under way lies in the kernel's buffers, which grow to many MiB, and is
// read when no cache has it any more. Where the best is depends on network, server and load, so it
// is found by trying, as TCP BBR's start-up finds the bandwidth: the window doubles, and stays so
// if that made the pages arrive a quarter faster. If not, it is tried again later.
//
// Threads: one at a time.
#pragma once

#include <chrono>
#include <cstdint>

namespace kintsugi {

class SendWindow {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::uint64_t kLeast = std::uint64_t{1} << 20;
  static constexpr std::uint64_t kMost = std::uint64_t{64} << 20;

  // In bytes; `most` is `least` times a power of two.
  explicit SendWindow(std::uint64_t least = kLeast, std::uint64_t most = kMost)
      : most_(most), bytes_(least) {}

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

  // So many bytes more are answered for, and nothing but the window held back the next ones.
  void answered(std::uint64_t bytes, Clock::time_point now) {
    if (!measuring_) {
      measuring_ = true;
      start(now);
      return;
    }
    answered_ += bytes;
    if (now - since_ < kPeriod) return;
    const std::chrono::duration<double> took = now - since_;
    const double rate = static_cast<double>(answered_) / took.count();
    if (trying_ && rate < rate_ * kPays) {
      bytes_ /= 2;
      trying_ = false;
      periods_to_wait_ = kPause;
    } else {
      rate_ = rate;
      periods_to_wait_ -= periods_to_wait_ > 0 ? 1 : 0;
      trying_ = periods_to_wait_ == 0 && bytes_ < most_;
      if (trying_) bytes_ *= 2;
    }
    start(now);
  }

  // There is nothing to send for a while, so answers say nothing about the window.
  void idle() { measuring_ = false; }

 private:
  static constexpr std::chrono::milliseconds kPeriod{50};
  static constexpr int kPause = 16;  // periods
  static constexpr double kPays = 1.25;

  void start(Clock::time_point now) {
    since_ = now;
    answered_ = 0;
  }

  std::uint64_t most_;
  std::uint64_t bytes_;
  bool measuring_ = false;
  Clock::time_point since_;
  std::uint64_t answered_ = 0;
  bool trying_ = false;  // the window is twice what rate_ was measured with
  double rate_ = 0;      // bytes a second
  int periods_to_wait_ = 0;
};

}  // namespace kintsugi
