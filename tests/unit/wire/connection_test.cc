// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pager/fake_server.h"

namespace kintsugi::wire {
namespace {

TEST(Connection, SendingToAServerThatClosedSaysSo) {
  test::FakeServer server;
  const Result<std::unique_ptr<Connection>> connection = Connection::connect(server.uri(), {});
  ASSERT_TRUE(connection) << connection.error().message;
  server.stop();
  // The first one may be sent: it is what the other side answers with a reset.
  Result<void> sent;
  for (int i = 0; i < 1000 && sent; i++) {
    sent = (*connection)->send_frame((*connection)->request(Op::kStat, 1), {});
  }
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ECONNRESET);
  EXPECT_THAT(sent.error().message, ::testing::HasSubstr("closed the connection"));
}

}  // namespace
}  // namespace kintsugi::wire
