// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <thread>

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

// ---- Names --------------------------------------------------------------------------------------

int numeric(const char* host, const char* port, addrinfo** list) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  return getaddrinfo(host, port, &hints, list);
}

TEST(Names, EveryAddressIsTried) {
  test::FakeServer gone;
  const Uri dead = gone.uri();
  gone.stop();
  test::FakeServer server;
  const Uri live = server.uri();
  Uri uri;
  uri.host = "sub-host";
  uri.port = "1";
  ConnectOptions options;
  // As a host that has an IPv6 address which nothing listens on, and an older one behind it.
  options.lookup = [&](const char* host, const char*, const addrinfo*, addrinfo** list) {
    EXPECT_STREQ(host, "sub-host");
    EXPECT_EQ(numeric(dead.host.c_str(), dead.port.c_str(), list), 0);
    return numeric(live.host.c_str(), live.port.c_str(), &(*list)->ai_next);
  };
  const Result<std::unique_ptr<Connection>> connection = Connection::connect(uri, options);
  ASSERT_TRUE(connection) << connection.error().message;
  EXPECT_EQ((*connection)->name(), "tcp:sub-host:1");
}

// A resolver that never answers, until the test is over.
struct Deaf {
  std::shared_ptr<std::promise<void>> over = std::make_shared<std::promise<void>>();
  std::shared_ptr<std::promise<void>> asked = std::make_shared<std::promise<void>>();
  [[nodiscard]] Lookup lookup() const {
    return [over = over, asked = asked](const char*, const char*, const addrinfo*, addrinfo**) {
      asked->set_value();
      over->get_future().wait();
      return EAI_AGAIN;
    };
  }
};

TEST(Names, AResolverThatHangsIsGivenUp) {
  const Deaf deaf;
  ConnectOptions options;
  options.connect_timeout = std::chrono::milliseconds(50);
  options.lookup = deaf.lookup();
  const auto connection = Connection::connect(*parse_uri("tcp:sub-host:1"), options);
  ASSERT_FALSE(connection);
  EXPECT_EQ(connection.error().code, ETIMEDOUT);
  EXPECT_THAT(connection.error().message, ::testing::HasSubstr("looking up 'sub-host'"));
  deaf.over->set_value();
}

TEST(Names, ALookUpCanBeCancelled) {
  const Deaf deaf;
  Canceller canceller;
  ConnectOptions options;
  options.connect_timeout = std::chrono::hours(1);
  options.canceller = &canceller;
  options.lookup = deaf.lookup();
  std::thread thread([&] {
    deaf.asked->get_future().wait();
    canceller.cancel();
  });
  const auto connection = Connection::connect(*parse_uri("tcp:sub-host:1"), options);
  thread.join();
  ASSERT_FALSE(connection);
  EXPECT_EQ(connection.error().code, ECANCELED);
  deaf.over->set_value();
}

TEST(Names, AnUnknownNameIsNamed) {
  ConnectOptions options;
  options.lookup = [](const char*, const char*, const addrinfo*, addrinfo**) { return EAI_NONAME; };
  const auto connection = Connection::connect(*parse_uri("tcp:sub-host:1"), options);
  ASSERT_FALSE(connection);
  EXPECT_EQ(connection.error().code, EHOSTUNREACH);
  EXPECT_THAT(connection.error().message, ::testing::HasSubstr("'sub-host'"));
}

TEST(Names, ANumberNeedsNoLookUp) {
  test::FakeServer server;
  ConnectOptions options;
  options.lookup = [](const char*, const char*, const addrinfo*, addrinfo**) {
    ADD_FAILURE() << "a number was looked up";
    return EAI_FAIL;
  };
  EXPECT_TRUE(Connection::connect(server.uri(), options));
}

}  // namespace
}  // namespace kintsugi::wire
