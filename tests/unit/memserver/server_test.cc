// SPDX-License-Identifier: GPL-2.0-or-later
// Whole servers on real sockets: every test body runs over both event loops and every kind of
// address.
#include "memserver/server.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "memserver/command.h"
#include "memserver/harness.h"
#include "wire/connection.h"

namespace kintsugi::memserver {
namespace {

using testing::make_pages;
using testing::open_request;
using testing::session_id;
using testing::TempDir;
using wire::Connection;
using wire::FrameHeader;
using wire::Op;
using wire::Status;

constexpr int kDeadlineMs = 20'000;

bool wait_readable(int fd) {
  pollfd p{fd, POLLIN, 0};
  return poll(&p, 1, kDeadlineMs) > 0;
}

// A server in this process, with run() in a thread.
class RunningServer {
 public:
  explicit RunningServer(const ServerOptions& options) : stop_fd_(eventfd(0, EFD_CLOEXEC)) {
    Result<std::unique_ptr<Server>> started = Server::start(options);
    if (!started) throw std::runtime_error(started.error().message);
    server_ = std::move(*started);
    thread_ = std::thread([this] { server_->run(stop_fd_); });
  }
  ~RunningServer() { stop(); }
  void stop() {
    if (!server_) return;
    eventfd_write(stop_fd_, 1);
    thread_.join();
    server_.reset();
    close(stop_fd_);
  }
  Server* operator->() { return server_.get(); }

  [[nodiscard]] wire::Uri uri() const { return *wire::parse_uri(server_->uris().at(0)); }
  std::unique_ptr<Connection> connect() const {
    Result<std::unique_ptr<Connection>> c = Connection::connect(uri(), {});
    if (!c) throw std::runtime_error(c.error().message);
    return std::move(*c);
  }
  // A socket that has said nothing yet.
  [[nodiscard]] int connect_raw() const {
    const wire::Uri u = uri();
    if (u.kind == wire::Uri::Kind::kUnix) {
      const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::memcpy(address.sun_path, u.path.c_str(), u.path.size() + 1);
      EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
      return fd;
    }
    // The family as the server's address has it: both loopbacks are all ones at the end.
    const bool v6 = u.host.find(':') != std::string::npos;
    const int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const auto port = htons(static_cast<std::uint16_t>(std::stoi(u.port)));
    sockaddr_in6 six{};
    six.sin6_family = AF_INET6;
    six.sin6_addr = in6addr_loopback;
    six.sin6_port = port;
    sockaddr_in four{};
    four.sin_family = AF_INET;
    four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    four.sin_port = port;
    EXPECT_EQ(v6 ? ::connect(fd, reinterpret_cast<sockaddr*>(&six), sizeof(six))
                 : ::connect(fd, reinterpret_cast<sockaddr*>(&four), sizeof(four)),
              0);
    return fd;
  }

 private:
  int stop_fd_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

ServerOptions small_server(const std::string& uri, LoopKind loop = LoopKind::kAuto) {
  ServerOptions options;
  options.listen = {uri};
  options.arena = testing::small_arena(2048);
  options.loop = loop;
  return options;
}

Status put(Connection* c, std::uint64_t page, std::uint32_t count, std::uint64_t version) {
  FrameHeader header = c->request(Op::kPut, version);
  std::vector<std::uint8_t> pages = make_pages(page, count, version);
  header.page = page;
  header.count = count;
  header.version = version;
  header.length = static_cast<std::uint32_t>(pages.size());
  iovec iov{pages.data(), pages.size()};
  if (const Result<void> sent = c->send_frame(header, {&iov, 1}); !sent) return Status::kInternal;
  const Result<FrameHeader> reply = c->receive_header();
  return reply ? static_cast<Status>(reply->status) : Status::kInternal;
}

bool send_get(Connection* c, std::uint64_t page, std::uint32_t count, std::uint64_t seq) {
  FrameHeader header = c->request(Op::kGet, seq);
  header.page = page;
  header.count = count;
  return c->send_frame(header, {}).ok();
}

// Receives an answer to Get in which all pages must be there, in this version.
::testing::AssertionResult receive_get(Connection* c, std::uint64_t seq, std::uint64_t version) {
  const Result<FrameHeader> reply = c->receive_header();
  if (!reply) return ::testing::AssertionFailure() << reply.error().message;
  if (reply->status != 0 || reply->seq != seq) {
    return ::testing::AssertionFailure() << "status " << reply->status << " seq " << reply->seq;
  }
  std::vector<std::uint8_t> payload(reply->length);
  if (const Result<void> got = c->receive(payload.data(), payload.size()); !got) {
    return ::testing::AssertionFailure() << got.error().message;
  }
  const std::vector<std::uint8_t> expected = make_pages(reply->page, reply->count, version);
  const std::size_t bitmap = wire::get_bitmap_bytes(reply->count);
  if (payload.size() != bitmap + expected.size() ||
      std::memcmp(payload.data() + bitmap, expected.data(), expected.size()) != 0) {
    return ::testing::AssertionFailure() << "other pages came back";
  }
  return ::testing::AssertionSuccess();
}

// ---- Over all loops and addresses ---------------------------------------------------------------

struct Transport {
  const char* name;
  LoopKind loop;
  const char* uri;  // @ is the temporary directory
};

class ServerOver : public ::testing::TestWithParam<Transport> {
 protected:
  void SetUp() override {
    if (GetParam().loop == LoopKind::kUring && !make_uring_loop()) {
      GTEST_SKIP() << make_uring_loop().error().message;
    }
  }
  ServerOptions options() {
    std::string uri = GetParam().uri;
    if (const std::size_t at = uri.find('@'); at != std::string::npos) {
      uri.replace(at, 1, dir_ / "");
    }
    return small_server(uri, GetParam().loop);
  }
  TempDir dir_;
};

TEST_P(ServerOver, PagesGoAndComeBack) {
  RunningServer server(options());
  const auto c = server.connect();
  ASSERT_TRUE(c->open(open_request(1, 2048)).ok());
  for (const std::uint32_t count : {1U, 2U, 16U, 100U, 256U}) {
    ASSERT_EQ(put(c.get(), 300, count, count), Status::kOk);
    ASSERT_TRUE(send_get(c.get(), 300, count, 7));
    EXPECT_TRUE(receive_get(c.get(), 7, count));
  }
  const auto second = server.connect();
  ASSERT_TRUE(second->attach(session_id(1), Epoch{1}).ok());
  ASSERT_TRUE(send_get(second.get(), 300, 256, 1));
  EXPECT_TRUE(receive_get(second.get(), 1, 256));
  EXPECT_TRUE(c->drop().ok());
  EXPECT_EQ(second->stat().error().code, EIDRM);
  EXPECT_EQ(server->figures().reserved_pages, 0U);
  EXPECT_EQ(server->figures().populated_bytes, 0U);
}

TEST_P(ServerOver, PipelinedPutsAreAllAcknowledged) {
  RunningServer server(options());
  const auto c = server.connect();
  ASSERT_TRUE(c->open(open_request(1, 2048)).ok());
  constexpr std::uint64_t kFrames = 200;
  std::thread sender([&] {
    for (std::uint64_t i = 0; i < kFrames; i++) {
      const auto count = static_cast<std::uint32_t>(i * 37 % 256 + 1);
      std::vector<std::uint8_t> pages = make_pages(i * 8, count, i + 1);
      FrameHeader header = c->request(Op::kPut, i);
      header.page = i * 8;
      header.count = count;
      header.version = i + 1;
      header.length = static_cast<std::uint32_t>(pages.size());
      iovec iov{pages.data(), pages.size()};
      ASSERT_TRUE(c->send_frame(header, {&iov, 1}).ok());
    }
  });
  for (std::uint64_t i = 0; i < kFrames; i++) {
    const Result<FrameHeader> reply = c->receive_header();
    ASSERT_TRUE(reply.ok()) << reply.error().message;
    EXPECT_EQ(reply->seq, i);
    EXPECT_EQ(reply->status, 0U);
  }
  sender.join();
  // Of overlapping Puts the last stands.
  ASSERT_TRUE(send_get(c.get(), (kFrames - 1) * 8, 1, 1));
  EXPECT_TRUE(receive_get(c.get(), 1, kFrames));
}

TEST_P(ServerOver, AReaderThatStopsIsBoundedAndLosesNothing) {
  RunningServer server(options());
  const auto c = server.connect();
  ASSERT_TRUE(c->open(open_request(1, 2048)).ok());
  ASSERT_EQ(put(c.get(), 0, 256, 3), Status::kOk);
  // Asks until the server takes no more questions.
  FrameHeader get = c->request(Op::kGet, 0);
  get.count = 256;
  std::uint64_t asked = 0;
  std::vector<std::uint8_t> rest;
  for (bool blocked = false; !blocked && asked < 1'000'000; asked++) {
    get.seq = asked;
    const ssize_t n = send(c->fd(), &get, sizeof(get), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == static_cast<ssize_t>(sizeof(get))) continue;
    blocked = true;
    if (n > 0) {
      const auto* at = reinterpret_cast<const std::uint8_t*>(&get);
      rest.assign(at + n, at + sizeof(get));
    } else {
      asked--;
    }
  }
  ASSERT_LT(asked, 1'000'000U);
  // Another client is served meanwhile.
  const auto other = server.connect();
  ASSERT_TRUE(other->attach(session_id(1), Epoch{1}).ok());
  ASSERT_TRUE(send_get(other.get(), 0, 1, 5));
  EXPECT_TRUE(receive_get(other.get(), 5, 3));
  // What was sent is little beside what was asked for: two bounds of output, and the socket's
  // buffers.
  EXPECT_LT(server->figures().pages_got, 100U * 256);
  if (asked > 300) asked = 300;  // enough to see; the rest goes with the connection
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(asked, 100); i++) {
    ASSERT_TRUE(receive_get(c.get(), i, 3));
  }
}

TEST_P(ServerOver, BadClientsAreShownTheDoor) {
  RunningServer server(options());
  // Garbage: no answer, an end.
  int fd = server.connect_raw();
  const std::string http = "GET / HTTP/1.1\r\nHost: memory\r\n\r\n" + std::string(64, ' ');
  ASSERT_GT(send(fd, http.data(), http.size(), MSG_NOSIGNAL), 0);
  ASSERT_TRUE(wait_readable(fd));
  char byte = 0;
  EXPECT_EQ(recv(fd, &byte, 1, 0), 0);
  close(fd);
  // Not Hello first: an answer, then the end.
  fd = server.connect_raw();
  FrameHeader header;
  header.op = static_cast<std::uint16_t>(Op::kStat);
  ASSERT_EQ(send(fd, &header, sizeof(header), MSG_NOSIGNAL), static_cast<int>(sizeof(header)));
  FrameHeader reply;
  ASSERT_EQ(recv(fd, &reply, sizeof(reply), MSG_WAITALL), static_cast<int>(sizeof(reply)));
  EXPECT_EQ(reply.status, static_cast<std::uint32_t>(Status::kBadRequest));
  EXPECT_EQ(recv(fd, &byte, 1, 0), 0);
  close(fd);
  // Gone in the middle of a frame.
  {
    const auto c = server.connect();
    ASSERT_TRUE(c->open(open_request(1, 512)).ok());
    FrameHeader half = c->request(Op::kPut, 1);
    half.count = 256;
    half.length = 256 * kPageSize;
    std::vector<std::uint8_t> some(100'000);
    iovec iov{some.data(), some.size()};
    ASSERT_TRUE(c->send_frame(half, {&iov, 1}).ok());
  }
  // All is as it was.
  const auto c = server.connect();
  EXPECT_TRUE(c->attach(session_id(1), Epoch{1}).ok());
  EXPECT_EQ(c->stat()->figures.used_pages, 0U);
}

TEST_P(ServerOver, StopsWithConnectionsOpen) {
  auto server = std::make_unique<RunningServer>(options());
  const auto idle = server->connect();
  const auto busy = server->connect();
  ASSERT_TRUE(busy->open(open_request(1, 512)).ok());
  FrameHeader half = busy->request(Op::kPut, 1);
  half.count = 256;
  half.length = 256 * kPageSize;
  ASSERT_TRUE(busy->send_frame(half, {}).ok());
  const wire::Uri uri = server->uri();
  server.reset();
  EXPECT_FALSE(idle->stat().ok());
  if (uri.kind == wire::Uri::Kind::kUnix) {
    EXPECT_FALSE(std::filesystem::exists(uri.path));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ServerOver,
    ::testing::Values(Transport{"UringIpv4", LoopKind::kUring, "tcp:127.0.0.1:0"},
                      Transport{"UringIpv6", LoopKind::kUring, "tcp:[::1]:0"},
                      Transport{"UringUnix", LoopKind::kUring, "unix:@sock"},
                      Transport{"EpollIpv4", LoopKind::kEpoll, "tcp:127.0.0.1:0"},
                      Transport{"EpollIpv6", LoopKind::kEpoll, "tcp:[::1]:0"},
                      Transport{"EpollUnix", LoopKind::kEpoll, "unix:@sock"}),
    [](const auto& info) { return std::string(info.param.name); });

// ---- Once is enough -----------------------------------------------------------------------------

TEST(EventLoop, AutoTakesEpollWhereUringIsForbidden) {
  int asked = 0;
  const LoopFactory forbidden = [&]() -> Result<std::unique_ptr<EventLoop>> {
    asked++;
    return make_error(EPERM, "io_uring does not work here");
  };
  EXPECT_STREQ((*make_event_loop(LoopKind::kAuto, forbidden))->name(), "epoll");
  EXPECT_EQ(make_event_loop(LoopKind::kUring, forbidden).error().code, EPERM);
  EXPECT_STREQ((*make_event_loop(LoopKind::kEpoll, forbidden))->name(), "epoll");
  EXPECT_EQ(asked, 2);
}

TEST(Server, ConnectionsAreBounded) {
  ServerOptions options = small_server("tcp:127.0.0.1:0");
  options.max_connections = 2;
  RunningServer server(options);
  const auto a = server.connect();
  const auto b = server.connect();
  const auto refused = Connection::connect(server.uri(), {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, EUSERS) << refused.error().message;
  EXPECT_TRUE(a->open(open_request(1)).ok());
  EXPECT_TRUE(b->attach(session_id(1), Epoch{1}).ok());
}

TEST(Server, AClientThatNeverGreetsIsClosed) {
  testing::FakeClock clock;
  std::mutex mutex;
  ServerOptions options = small_server("tcp:127.0.0.1:0");
  options.clock = [&] {
    const std::lock_guard lock(mutex);
    return clock.clock()();
  };
  RunningServer server(options);
  const auto greeted = server.connect();
  const int silent = server.connect_raw();
  {
    // Half a header, then nothing.
    const FrameHeader header;
    ASSERT_EQ(send(silent, &header, 30, MSG_NOSIGNAL), 30);
  }
  // Until the server has read it: then its time is running.
  constexpr std::uint64_t kGreeting = sizeof(FrameHeader) + sizeof(wire::HelloRequest);
  while (server->figures().bytes_received < kGreeting + 30) sched_yield();
  {
    const std::lock_guard lock(mutex);
    clock.advance(Peer::kHelloTimeout + std::chrono::milliseconds(1));
  }
  server->tick();
  ASSERT_TRUE(wait_readable(silent));
  char byte = 0;
  EXPECT_LE(recv(silent, &byte, 1, 0), 0);
  close(silent);
  EXPECT_TRUE(greeted->open(open_request(1)).ok());
}

// A server of one loop with a clock that the test winds.
class WoundServer {
 public:
  explicit WoundServer(unsigned max_connections = 256) {
    ServerOptions options = small_server("tcp:127.0.0.1:0");
    options.threads = 1;
    options.max_connections = max_connections;
    options.clock = [this] {
      const std::lock_guard lock(mutex_);
      return clock_.clock()();
    };
    server_ = std::make_unique<RunningServer>(options);
  }
  RunningServer& running() { return *server_; }
  Server* operator->() { return server_->operator->(); }
  void wind(std::chrono::milliseconds time) {
    const std::lock_guard lock(mutex_);
    clock_.advance(time);
  }
  // So much time passes, with a tick at its beginning and one at its end.
  void pass(std::chrono::milliseconds time) {
    server_->operator->()->tick();
    // The loop has seen the tick when it greets somebody who came after it.
    { const auto greeted = server_->connect(); }
    wind(time);
    server_->operator->()->tick();
  }

 private:
  testing::FakeClock clock_;
  std::mutex mutex_;
  std::unique_ptr<RunningServer> server_;
};

bool is_closed(int fd) {
  char byte = 0;
  return wait_readable(fd) && recv(fd, &byte, 1, 0) <= 0;
}

TEST(Peer, TimeWithoutProgressBeginsWhenSomethingWaits) {
  const TimePoint start{std::chrono::hours(1)};
  const auto at = [&](int seconds) { return start + std::chrono::seconds(seconds); };
  Peer::Progress progress;
  EXPECT_FALSE(progress.stuck(true, 0, 0, at(0))) << "the first look";
  EXPECT_FALSE(progress.stuck(true, 0, 0, at(30)));
  EXPECT_TRUE(progress.stuck(true, 0, 0, at(31)));
  EXPECT_FALSE(progress.stuck(true, 0, Peer::kProgressBytes, at(31))) << "bytes have moved";
  EXPECT_FALSE(progress.stuck(false, 0, Peer::kProgressBytes, at(32)));
  EXPECT_FALSE(progress.stuck(true, 0, Peer::kProgressBytes, at(99))) << "it waits again";
  EXPECT_FALSE(progress.stuck(true, 1, Peer::kProgressBytes, at(199))) << "for another part";
}

TEST(Server, ARequestWhoseRestDoesNotComeIsGivenUp) {
  WoundServer server;
  const auto good = server.running().connect();
  ASSERT_TRUE(good->open(open_request(1)).ok());
  const auto bad = server.running().connect();
  ASSERT_TRUE(bad->attach(session_id(1), Epoch{1}).ok());
  FrameHeader put = bad->request(Op::kPut, 1);
  put.count = 256;
  put.length = 256 * static_cast<std::uint32_t>(kPageSize);
  std::vector<std::uint8_t> some(100'000);
  ASSERT_EQ(send(bad->fd(), &put, sizeof(put), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(put)));
  ASSERT_EQ(send(bad->fd(), some.data(), some.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(some.size()));
  Arena& arena = server->sessions().arena();
  while (arena.in_flight() == 0) sched_yield();
  server.pass(Peer::kProgressTimeout - std::chrono::seconds(1));
  EXPECT_EQ(arena.in_flight(), 256U);
  int rounds = 0;  // more than one if the rest of what was sent came in between
  while (arena.in_flight() > 0 && rounds++ < 1000) {
    server.pass(Peer::kProgressTimeout + std::chrono::seconds(1));
  }
  EXPECT_EQ(arena.in_flight(), 0U);
  EXPECT_TRUE(is_closed(bad->fd()));
  EXPECT_TRUE(good->stat().ok());
}

TEST(Server, AnswersThatAreNotReadAreGivenUp) {
  WoundServer server;
  const auto good = server.running().connect();
  ASSERT_TRUE(good->open(open_request(1)).ok());
  ASSERT_EQ(put(good.get(), 0, 256, 3), Status::kOk);
  const auto bad = server.running().connect();
  ASSERT_TRUE(bad->attach(session_id(1), Epoch{1}).ok());
  // More than sockets hold.
  for (std::uint64_t i = 0; i < 200; i++) ASSERT_TRUE(send_get(bad.get(), 0, 256, i));
  const auto connections = [&] {
    return server->sessions().find(session_id(1))->figures().connections;
  };
  // Ticks alone are no reason, however many see that something waits.
  for (int i = 0; i < 50; i++) server.pass(std::chrono::milliseconds(1));
  EXPECT_EQ(connections(), 2U);
  int rounds = 0;  // as long as something still fits into the sockets
  while (connections() > 1 && rounds++ < 1000) {
    server.pass(Peer::kProgressTimeout + std::chrono::seconds(1));
  }
  EXPECT_EQ(connections(), 1U);
  EXPECT_TRUE(good->stat().ok());
}

// Who says nothing has not a client's reasons to be there.
TEST(Server, SilentConnectionsMakeRoomSooner) {
  WoundServer server(2);
  const auto bound = server.running().connect();
  ASSERT_TRUE(bound->open(open_request(1)).ok());
  const int silent = server.running().connect_raw();
  while (server->figures().connections < 2) sched_yield();
  // It is counted before the loop has it: that has had a whole round between two answers.
  for (int i = 0; i < 2; i++) ASSERT_TRUE(bound->stat().ok());
  server.wind(Peer::kSilentBeforeGone + std::chrono::seconds(1));
  EXPECT_FALSE(Connection::connect(server.running().uri(), {}).ok());
  ASSERT_TRUE(is_closed(silent));
  while (server->figures().connections > 1) sched_yield();
  const auto next = server.running().connect();
  EXPECT_TRUE(next->attach(session_id(1), Epoch{1}).ok());
  close(silent);
}

TEST(Server, ConnectionsWithoutASessionMakeRoom) {
  WoundServer server(3);
  const auto bound = server.running().connect();
  ASSERT_TRUE(bound->open(open_request(1)).ok());
  const auto idle = server.running().connect();
  server.wind(std::chrono::seconds(1));
  const auto newer = server.running().connect();
  EXPECT_FALSE(Connection::connect(server.running().uri(), {}).ok());
  while (server->figures().connections > 3) sched_yield();  // none of the three has gone
  server.wind(Peer::kIdleBeforeGone);
  EXPECT_FALSE(Connection::connect(server.running().uri(), {}).ok());
  EXPECT_TRUE(is_closed(idle->fd()));
  while (server->figures().connections > 2) sched_yield();
  const auto next = server.running().connect();
  EXPECT_TRUE(next->attach(session_id(1), Epoch{1}).ok());
  EXPECT_TRUE(newer->attach(session_id(1), Epoch{1}).ok());
}

TEST(Server, OrphansGoAndCommittedSessionsStay) {
  testing::FakeClock clock;
  std::mutex mutex;
  ServerOptions options = small_server("tcp:127.0.0.1:0");
  options.clock = [&] {
    const std::lock_guard lock(mutex);
    return clock.clock()();
  };
  RunningServer server(options);
  {
    const auto a = server.connect();
    const auto b = server.connect();
    ASSERT_TRUE(a->open(open_request(1)).ok());
    ASSERT_TRUE(b->open(open_request(2)).ok());
    ASSERT_EQ(b->ask_ownership(wire::Op::kClaim, session_id(2), Epoch{1}, {})->epoch, Epoch{2});
    ASSERT_EQ(b->ask_ownership(wire::Op::kCommit, {}, Epoch{2}, {})->status, wire::Status::kOk);
  }
  const auto connections_of = [&](std::uint8_t n) {
    return server->sessions().find(session_id(n))->figures().connections;
  };
  while (connections_of(1) + connections_of(2) > 0) sched_yield();
  {
    const std::lock_guard lock(mutex);
    clock.advance(std::chrono::seconds(121));
  }
  server->tick();
  while (server->figures().reserved_pages > 256) sched_yield();
  EXPECT_EQ(server->sessions().find(session_id(1)), nullptr);
  EXPECT_NE(server->sessions().find(session_id(2)), nullptr);
}

TEST(Server, AddressInUseSaysWhatToDo) {
  const TempDir dir;
  RunningServer tcp(small_server("tcp:127.0.0.1:0"));
  const auto again = Server::start(small_server(tcp->uris().at(0)));
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, EADDRINUSE);
  EXPECT_NE(again.error().message.find("give --listen another port"), std::string::npos);
  const std::string path = "unix:" + (dir / "sock");
  RunningServer unix_server(small_server(path));
  EXPECT_EQ(Server::start(small_server(path)).error().code, EADDRINUSE);
  EXPECT_NO_THROW(static_cast<void>(unix_server.connect())) << "the loser removed the socket";
}

TEST(Server, ASocketLeftBehindIsReplacedAndAFileIsNot) {
  const TempDir dir;
  const std::string path = dir / "sock";
  {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    close(fd);
  }
  { RunningServer server(small_server("unix:" + path)); }
  std::ofstream(path) << "precious";
  EXPECT_FALSE(Server::start(small_server("unix:" + path)).ok());
  EXPECT_TRUE(std::filesystem::is_regular_file(path));
}

TEST(Server, PortFileMetricsAndControl) {
  const TempDir dir;
  ServerOptions options = small_server("tcp:127.0.0.1:0");
  options.listen.push_back("unix:" + (dir / "sock"));
  options.port_file = dir / "ports.json";
  options.metrics = "127.0.0.1:0";
  options.control = dir / "control";
  RunningServer server(options);
  nlohmann::json ports;
  std::ifstream(options.port_file) >> ports;
  EXPECT_EQ(ports["listen"], nlohmann::json(server->uris()));
  EXPECT_EQ(ports["metrics"], server->metrics_address());
  EXPECT_EQ(ports["control"], options.control);
  EXPECT_EQ(ports["pid"], getpid());

  const auto c = server.connect();
  ASSERT_TRUE(c->open(open_request(1, 300)).ok());
  ASSERT_EQ(put(c.get(), 0, 10, 1), Status::kOk);
  ASSERT_EQ(c->open(open_request(2)).ok(), false);  // on a bound connection: an error

  // Metrics, as a scraper sees them.
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const std::string metrics = server->metrics_address();
  address.sin_port =
      htons(static_cast<std::uint16_t>(std::stoi(metrics.substr(metrics.rfind(':') + 1))));
  ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string get = "GET /metrics HTTP/1.0\r\n\r\n";
  ASSERT_EQ(send(fd, get.data(), get.size(), MSG_NOSIGNAL), static_cast<ssize_t>(get.size()));
  std::string text;
  std::array<char, 4096> chunk;
  for (ssize_t n = 1; n > 0;) {
    ASSERT_TRUE(wait_readable(fd));
    n = recv(fd, chunk.data(), chunk.size(), 0);
    if (n > 0) text.append(chunk.data(), static_cast<std::size_t>(n));
  }
  close(fd);
  for (const char* line :
       {"kintsugi_memserver_capacity_pages 2048", "kintsugi_memserver_reserved_pages 300",
        "kintsugi_memserver_used_pages 10", "kintsugi_memserver_pages_put_total 10",
        "kintsugi_memserver_sessions 1", "kintsugi_memserver_protocol_errors_total 1",
        "kintsugi_memserver_refused_opens_total{reason=\"full\"} 0"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << " is not in\n" << text;
  }

  // Control.
  const auto ask = [&](const nlohmann::json& request) {
    const Result<std::string> answer = ask_control(options.control, request.dump());
    EXPECT_TRUE(answer.ok()) << answer.error().message;
    return nlohmann::json::parse(*answer);
  };
  const nlohmann::json status = ask({{"cmd", "status"}});
  EXPECT_EQ(status["ok"], true);
  ASSERT_EQ(status["sessions"].size(), 1U);
  EXPECT_EQ(status["sessions"][0]["name"], "vm1");
  EXPECT_EQ(status["sessions"][0]["used_bytes"], 10 * kPageSize);
  const std::string id = status["sessions"][0]["id"];
  ASSERT_EQ(server.connect()->ask_ownership(wire::Op::kClaim, session_id(1), Epoch{1}, {})->epoch,
            Epoch{2});
  const auto holder = server.connect();
  ASSERT_TRUE(holder->attach(session_id(1), Epoch{2}).ok());
  const nlohmann::json refused = ask({{"cmd", "drop"}, {"session", id}});
  EXPECT_EQ(refused["ok"], false);
  EXPECT_NE(refused["error"].get<std::string>().find("--force"), std::string::npos);
  EXPECT_EQ(ask({{"cmd", "drop"}, {"session", id}, {"force", true}})["ok"], true);
  EXPECT_EQ(holder->stat().error().code, EIDRM);
  EXPECT_EQ(server->figures().reserved_pages, 0U);
  struct stat st {};
  ASSERT_EQ(stat(options.control.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600U);

  ServerOptions second = small_server("tcp:127.0.0.1:0");
  second.metrics = server->metrics_address();
  const auto failed = Server::start(second);
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("cannot serve metrics"), std::string::npos);
  server.stop();
  EXPECT_FALSE(std::filesystem::exists(options.control));
  EXPECT_FALSE(std::filesystem::exists(options.port_file));
}

TEST(Control, NonsenseIsAnswered) {
  const CollectFigures collect = [] { return ServerFigures{}; };
  const DropSession drop = [](const wire::SessionId&, bool) { return std::string("no"); };
  for (const char* line :
       {"", "{", "[]", "1", "{}", R"({"cmd":1})", R"({"cmd":"fly"})", R"({"cmd":"drop"})",
        R"({"cmd":"drop","session":"12"})", R"({"cmd":"drop","session":5})",
        R"({"cmd":"drop","session":"0123456789abcdef0123456789abcdeg"})",
        R"({"cmd":"drop","session":"0123456789abcdef0123456789abcdef","force":"x"})",
        R"({"cmd":"drop","session":"0123456789abcdef0123456789abcdef"})"}) {
    const nlohmann::json answer = nlohmann::json::parse(answer_control(line, collect, drop));
    EXPECT_EQ(answer["ok"], false) << line;
    EXPECT_FALSE(answer["error"].get<std::string>().empty()) << line;
  }
  EXPECT_EQ(nlohmann::json::parse(answer_control(R"({"cmd":"status"})", collect, drop))["ok"],
            true);
  EXPECT_NE(ask_control("/nonexistent/socket", "{}").error().message.find("does a memory server"),
            std::string::npos);
}

// ---- The command --------------------------------------------------------------------------------

// Runs the command in a process of its own and returns its exit code; what it prints goes to
// `output`.
int run_command_line(const std::vector<std::string>& arguments, std::string* output) {
  std::array<int, 2> fds{};
  EXPECT_EQ(pipe(fds.data()), 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(fds[1], 1);
    dup2(fds[1], 2);
    close(fds[0]);
    close(fds[1]);
    std::vector<std::string> copy = arguments;
    copy.insert(copy.begin(), "memserver");
    std::vector<char*> argv;
    for (std::string& a : copy) argv.push_back(a.data());
    const int code = run_command(static_cast<int>(argv.size()), argv.data());
    std::fflush(nullptr);
    _exit(code);
  }
  close(fds[1]);
  std::array<char, 4096> chunk;
  for (ssize_t n = 1; n > 0;) {
    n = ::read(fds[0], chunk.data(), chunk.size());
    if (n > 0) output->append(chunk.data(), static_cast<std::size_t>(n));
  }
  close(fds[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(Command, BadUsageSaysWhatToChange) {
  const TempDir dir;
  { std::ofstream(dir / "text") << std::string(8192, 'x'); }
  struct Case {
    std::vector<std::string> arguments;
    int code;
    const char* says;
  };
  const std::vector<Case> cases{
      {{"--help"}, kExitOk, "Examples:"},
      {{"--version"}, kExitOk, "memserver 0"},
      {{}, kExitUsage, "--listen is missing"},
      {{"--listen", "tcp:127.0.0.1:0"}, kExitUsage, "--capacity is missing"},
      {{"--listen", "tcp:127.0.0.1:0", "--capacity", "lots"}, kExitUsage, "is not a size"},
      {{"--listen", "tcp:127.0.0.1:0", "--capacity", "5000"}, kExitUsage, "multiple of 4K"},
      {{"--listen", "http://x", "--capacity", "1M"}, kExitUsage, "write tcp:HOST:PORT"},
      {{"--listen", "tcp:127.0.0.1:0", "--capacity", "1M", "--loop", "fast"}, kExitUsage, "fast"},
      {{"--listen", "tcp:127.0.0.1:0", "--capacity", "1M", "--unix-mode", "rw"},
       kExitUsage,
       "octal"},
      {{"--listen", "tcp:192.0.2.1:0", "--capacity", "1M"}, kExitAddress, "that this machine has"},
      {{"--listen", "tcp:127.0.0.1:0", "--capacity", "15T"}, kExitArena, "lower --capacity"},
      {{"--listen", "tcp:127.0.0.1:0", "--capacity", "1M", "--arena", dir / "text"},
       kExitArena,
       "not a memory server's arena"},
      {{"ctl", "--control", dir / "none", "status"}, kExitFailure, "does a memory server run"},
      {{"ctl", "status"}, kExitUsage, "--control is required"},
  };
  for (const Case& c : cases) {
    std::string output;
    EXPECT_EQ(run_command_line(c.arguments, &output), c.code) << output;
    EXPECT_NE(output.find(c.says), std::string::npos) << c.says << " is not in: " << output;
  }
}

TEST(Command, ServesUntilItIsTold) {
  const TempDir dir;
  const std::string ports = dir / "ports.json";
  const std::string control = dir / "control";
  const std::string arena = dir / "arena";
  for (const int signal_number : {SIGTERM, SIGKILL, SIGINT}) {
    // A socket file that a killed server left must not keep the next from starting.
    std::filesystem::remove(ports);
    const pid_t child = fork();
    if (child == 0) {
      std::vector<std::string> arguments{"memserver",   "--listen",  "unix:" + (dir / "sock"),
                                         "--arena",     arena,       "--capacity",
                                         "4M",          "--control", control,
                                         "--port-file", ports,       "--log-level",
                                         "off"};
      std::vector<char*> argv;
      for (std::string& a : arguments) argv.push_back(a.data());
      _exit(run_command(static_cast<int>(argv.size()), argv.data()));
    }
    while (!std::filesystem::exists(ports)) {
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << "the server did not start";
      usleep(1000);
    }
    const auto c = Connection::connect(*wire::parse_uri("unix:" + (dir / "sock")), {});
    ASSERT_TRUE(c.ok()) << c.error().message;
    if (signal_number == SIGTERM) {
      ASSERT_TRUE((*c)->open(open_request(1, 100)).ok());
      ASSERT_EQ(put(c->get(), 0, 50, 1), Status::kOk);
    } else {
      // Stopped or killed, it has its pages.
      ASSERT_TRUE((*c)->attach(session_id(1), Epoch{1}).ok());
      ASSERT_TRUE(send_get(c->get(), 0, 50, 9));
      EXPECT_TRUE(receive_get(c->get(), 9, 1));
    }
    std::string output;
    EXPECT_EQ(run_command_line({"ctl", "--control", control, "status"}, &output), kExitOk);
    EXPECT_NE(output.find("vm1"), std::string::npos) << output;
    output.clear();
    EXPECT_EQ(
        run_command_line({"ctl", "--control", control, "drop", "01010101010101010101010101010101"},
                         &output),
        kExitFailure);
    EXPECT_NE(output.find("has 1 connections"), std::string::npos) << output;
    kill(child, signal_number);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    if (signal_number == SIGKILL) {
      EXPECT_TRUE(WIFSIGNALED(status));
    } else {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == kExitOk) << status;
      EXPECT_FALSE(std::filesystem::exists(dir / "sock"));
      EXPECT_FALSE(std::filesystem::exists(control));
    }
  }
}

}  // namespace
}  // namespace kintsugi::memserver
