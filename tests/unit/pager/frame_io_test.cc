// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/frame_io.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace kintsugi {
namespace {

TEST(FrameIo, AServerThatClosedIsToldAlikeByWhoeverMeetsIt) {
  std::array<int, 2> ends;
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  close(ends[1]);

  HeaderSender sender;
  sender.add({});
  const Result<bool> sent = sender.flush(ends[0], "s1");
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ECONNRESET);
  EXPECT_EQ(sent.error().message, "memory server s1 closed the connection");

  Result<FrameReader> reader = FrameReader::create(4096);
  ASSERT_TRUE(reader);
  const Result<std::size_t> got = reader->fill(ends[0], "s1");
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, sent.error().code);
  EXPECT_EQ(got.error().message, sent.error().message);
  close(ends[0]);
}

}  // namespace
}  // namespace kintsugi
