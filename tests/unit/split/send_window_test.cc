// SPDX-License-Identifier: GPL-2.0-or-later
#include "split/send_window.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace kintsugi {
namespace {

using namespace std::chrono_literals;
using std::chrono::duration;
using std::chrono::duration_cast;

// A server that takes `latency` to answer and stores `rate` bytes a second at most.
struct Server {
  duration<double> latency;
  double rate;
};

constexpr double kMiB = 1 << 20;

class SendWindowTest : public ::testing::Test {
 protected:
  // Sends for so long, by a clock of its own, with a full window all the time.
  void send(const Server& server, std::chrono::milliseconds how_long) {
    const SendWindow::Clock::time_point end = now_ + how_long;
    while (now_ < end) {
      const double half = static_cast<double>(window_.bytes()) / 2;
      const double rate = std::min(server.rate, 2 * half / server.latency.count());
      now_ += duration_cast<SendWindow::Clock::duration>(duration<double>(half / rate));
      window_.answered(static_cast<std::uint64_t>(half), now_);
      most_ = std::max(most_, window_.bytes());
    }
  }

  SendWindow window_;
  SendWindow::Clock::time_point now_;
  std::uint64_t most_ = 0;
};

TEST_F(SendWindowTest, StaysSmallWhereMoreDoesNotHelp) {
  send({.latency = 100us, .rate = 2000 * kMiB}, 60s);
  EXPECT_EQ(window_.bytes(), SendWindow::kLeast);
  EXPECT_EQ(most_, 2 * SendWindow::kLeast) << "it must have tried";
}

TEST_F(SendWindowTest, GrowsToWhatALongWayHolds) {
  send({.latency = 10ms, .rate = 1200 * kMiB}, 2s);
  EXPECT_GE(window_.bytes(), 12U << 20);
  EXPECT_LE(window_.bytes(), 32U << 20);
}

TEST_F(SendWindowTest, GrowsWhenTheServerBecomesSlowToAnswer) {
  send({.latency = 100us, .rate = 2000 * kMiB}, 1s);
  send({.latency = 20ms, .rate = 2000 * kMiB}, 3s);
  EXPECT_GE(window_.bytes(), 32U << 20);
}

TEST_F(SendWindowTest, NeverExceedsTheMost) {
  send({.latency = 1s, .rate = 10000 * kMiB}, 60s);
  EXPECT_EQ(most_, SendWindow::kMost);
  EXPECT_EQ(window_.bytes(), SendWindow::kMost);
}

TEST_F(SendWindowTest, IdleTimeIsNotMeasured) {
  const Server server{.latency = 100us, .rate = 1000 * kMiB};
  for (int i = 0; i < 1000; i++) {
    send(server, 20ms);
    window_.idle();
    now_ += 10ms;
  }
  // Had it counted, a period would have ended, and more would have been tried.
  EXPECT_EQ(most_, SendWindow::kLeast);
}

}  // namespace
}  // namespace kintsugi
