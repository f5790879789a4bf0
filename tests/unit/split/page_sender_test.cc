// SPDX-License-Identifier: GPL-2.0-or-later
#include "split/page_sender.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>
#include <vector>

#include "pager/fake_server.h"

namespace kintsugi {
namespace {

using test::FakeServer;

constexpr std::uint64_t kPages = 4096;

class PageSenderTest : public ::testing::Test {
 protected:
  // A connection bound to a new session.
  std::unique_ptr<wire::Connection> connect() {
    Result<std::unique_ptr<wire::Connection>> connection =
        wire::Connection::connect(server_.uri(), {});
    if (!connection) {
      ADD_FAILURE() << connection.error().message;
      return nullptr;
    }
    wire::OpenRequest request;
    request.vm_pages = request.capacity_pages = kPages;
    const Result<wire::SessionInfo> opened = (*connection)->open(request);
    EXPECT_TRUE(opened) << (opened ? "" : opened.error().message);
    return std::move(*connection);
  }

  FakeServer server_;
  PageBits zero_ = std::move(*PageBits::create(PageCount{kPages}));
  PageBits stored_ = std::move(*PageBits::create(PageCount{kPages}));
  std::vector<std::uint8_t> memory_ = std::vector<std::uint8_t>(kPages << kPageShift, 0x5a);
};

TEST_F(PageSenderTest, SendsNoMoreAheadOfAnswersThanTheWindow) {
  std::unique_ptr<wire::Connection> connection = connect();
  ASSERT_NE(connection, nullptr);
  constexpr std::uint64_t kWindow = 1U << 20;
  PageSender sender(std::move(connection), &zero_, &stored_, SendWindow(kWindow, kWindow));
  ASSERT_TRUE(sender.start());
  std::uint64_t arrived = 0;
  std::uint64_t most = 0;
  server_.order([&](const wire::FrameHeader& header) {
    if (header.op != static_cast<std::uint16_t>(wire::Op::kPut)) return FakeServer::Act::kServe;
    most = std::max(most, sender.stats().sent_bytes - arrived);
    arrived += sizeof(header) + header.length;
    return FakeServer::Act::kServe;
  });
  for (std::uint64_t i = 0; i < kPages; i++) {
    ASSERT_EQ(sender.queue(PageIndex{i}, memory_.data() + (i << kPageShift)), 0);
  }
  const Result<void> flushed = sender.flush();
  ASSERT_TRUE(flushed) << flushed.error().message;
  server_.order(nullptr);
  EXPECT_EQ(server_.pages(), kPages);
  EXPECT_EQ(sender.pending_pages(), 0U);
  // A batch goes out when the window has room, and the next one is gathered meanwhile; each is of
  // 256 KiB and may have a frame of as much at its end.
  EXPECT_LE(most, kWindow + (1024U << 10) + 100 * sizeof(wire::FrameHeader));
}

TEST_F(PageSenderTest, ZeroPagesAreLeftOutOfAPut) {
  std::unique_ptr<wire::Connection> connection = connect();
  ASSERT_NE(connection, nullptr);
  PageSender sender(std::move(connection), &zero_, &stored_);
  ASSERT_TRUE(sender.start());
  const auto is_zero = [](std::uint64_t page) {
    return page < 3 || page % 7 == 5 || (page >= 640 && page < 800) || page == kPages - 1;
  };
  for (std::uint64_t i = 0; i < kPages; i++) {
    std::uint8_t* const at = memory_.data() + (i << kPageShift);
    std::memset(at, is_zero(i) ? 0 : static_cast<int>(i % 255 + 1), kPageSize);
  }
  const auto send_all = [&] {
    for (std::uint64_t i = 0; i < kPages; i++) {
      ASSERT_EQ(sender.queue(PageIndex{i}, memory_.data() + (i << kPageShift)), 0);
    }
    const Result<void> flushed = sender.flush();
    ASSERT_TRUE(flushed) << flushed.error().message;
  };
  send_all();
  // Some runs are all zero, and the queue may cut others.
  EXPECT_LE(server_.requests(wire::Op::kPut), 2 * kPages / 64);
  EXPECT_EQ(server_.requests(wire::Op::kDiscard), 0U);
  for (std::uint64_t i = 0; i < kPages; i++) {
    ASSERT_EQ(server_.has(i), !is_zero(i)) << i;
    if (is_zero(i)) continue;
    const FakeServer::Page page = server_.page(i);
    ASSERT_EQ(page.front(), i % 255 + 1) << i;
    ASSERT_EQ(page.back(), i % 255 + 1) << i;
  }
  EXPECT_EQ(sender.stats().sent_pages, server_.pages());

  // One that turns zero goes, one that is no longer zero comes.
  std::memset(memory_.data() + (100 << kPageShift), 0, kPageSize);
  std::memset(memory_.data() + (103 << kPageShift), 9, kPageSize);
  ASSERT_TRUE(server_.has(100) && !server_.has(103));
  send_all();
  EXPECT_EQ(server_.requests(wire::Op::kDiscard), 1U);
  EXPECT_FALSE(server_.has(100));
  ASSERT_TRUE(server_.has(103));
  EXPECT_EQ(server_.page(103).front(), 9);
}

TEST_F(PageSenderTest, RefusesAnAnswerOutOfTurn) {
  std::unique_ptr<wire::Connection> connection = connect();
  ASSERT_NE(connection, nullptr);
  PageSender sender(std::move(connection), &zero_, &stored_);
  ASSERT_TRUE(sender.start());
  server_.order([](const wire::FrameHeader&) { return FakeServer::Act::kTwice; });
  for (std::uint64_t i = 0; i < kPages; i++) {
    if (sender.queue(PageIndex{i}, memory_.data() + (i << kPageShift)) != 0) break;
  }
  const Result<void> flushed = sender.flush();
  ASSERT_FALSE(flushed);
  EXPECT_EQ(flushed.error().code, EPROTO);
}

}  // namespace
}  // namespace kintsugi
