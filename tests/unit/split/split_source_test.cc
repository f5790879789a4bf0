// SPDX-License-Identifier: GPL-2.0-or-later
// The source of a split migration against real memory servers in this process.
#include "split/split_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "memserver/server.h"
#include "pager/fake_server.h"

namespace kintsugi {
namespace {

using ::testing::HasSubstr;

class RunningServer {
 public:
  explicit RunningServer(PageCount capacity) {
    memserver::ServerOptions options;
    options.listen = {"tcp:127.0.0.1:0"};
    options.arena.capacity = capacity;
    Result<std::unique_ptr<memserver::Server>> server = memserver::Server::start(options);
    if (!server) ADD_FAILURE() << server.error().message;
    server_ = std::move(*server);
    uri_ = server_->uris().front();
    thread_ = std::thread([this] { server_->run(stop_fd_); });
  }
  ~RunningServer() { stop(); }

  void stop() {
    if (!thread_.joinable()) return;
    const std::uint64_t one = 1;
    ASSERT_EQ(write(stop_fd_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
    thread_.join();
    server_.reset();
    close(stop_fd_);
  }
  [[nodiscard]] const std::string& uri() const { return uri_; }
  [[nodiscard]] std::uint64_t sessions() { return server_->figures().sessions.size(); }

 private:
  const int stop_fd_ = eventfd(0, EFD_CLOEXEC);
  std::unique_ptr<memserver::Server> server_;
  std::string uri_;
  std::thread thread_;
};

// Memory of a VM in this process: page i is filled with i + 1, but for the zero pages.
class VmMemory {
 public:
  explicit VmMemory(std::uint64_t pages) : bytes_(pages << kPageShift) {
    base_ = static_cast<std::uint8_t*>(
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (std::uint64_t i = 0; i < pages; i++) fill(i, static_cast<std::uint8_t>(i % 255 + 1));
  }
  ~VmMemory() { munmap(base_, bytes_); }
  void fill(std::uint64_t page, std::uint8_t byte) {
    std::memset(base_ + (page << kPageShift), byte, kPageSize);
  }
  [[nodiscard]] const std::uint8_t* page(std::uint64_t page) const {
    return base_ + (page << kPageShift);
  }

 private:
  std::size_t bytes_;
  std::uint8_t* base_;
};

constexpr std::uint64_t kPages = 4096;  // the paging reserve of half of them is 256

SplitSourceConfig config_for(const std::vector<std::string>& uris) {
  SplitSourceConfig config;
  config.vm_name = "test";
  config.vm_pages = PageCount{kPages};
  config.chunk_pages = PageCount{16};
  config.main_capacity = PageCount{kPages / 2};
  for (const std::string& uri : uris)
    config.sub_hosts.push_back({uri, PageCount{kPages / 2 + 256}});
  return config;
}

std::unique_ptr<SplitSource> opened(const SplitSourceConfig& config) {
  Result<std::unique_ptr<SplitSource>> split = SplitSource::create(config);
  if (!split) {
    ADD_FAILURE() << split.error().message;
    return nullptr;
  }
  const Result<void> result = (*split)->open();
  EXPECT_TRUE(result) << result.error().message;
  return std::move(*split);
}

// Returns the first error, which a failed sender may give at any page.
int send_all(SplitSource& split, const VmMemory& memory) {
  for (std::uint64_t i = 0; i < kPages; i++) {
    if (split.owner(PageIndex{i}) == kMainHost) continue;
    if (const int error = split.send(PageIndex{i}, memory.page(i)); error != 0) return error;
  }
  return 0;
}

// What a destination finds: the content of each page at the server the plan names.
std::vector<std::uint8_t> fetch(wire::Connection& connection, PageIndex page) {
  wire::FrameHeader header = connection.request(wire::Op::kGet, 1);
  header.page = page.value;
  header.count = 1;
  EXPECT_TRUE(connection.send_frame(header, {}));
  const Result<wire::FrameHeader> reply = connection.receive_header();
  if (!reply || reply->status != 0) return {};
  std::vector<std::uint8_t> payload(reply->length);
  EXPECT_TRUE(connection.receive(payload.data(), payload.size()));
  payload.erase(payload.begin(), payload.begin() + 8);
  return payload;
}

TEST(SplitSourceTest, EveryPageArrivesWhereThePlanSays) {
  RunningServer a(PageCount{kPages});
  RunningServer b(PageCount{kPages});
  const std::unique_ptr<SplitSource> split = opened(config_for({a.uri(), b.uri()}));
  ASSERT_TRUE(split);
  VmMemory memory(kPages);
  for (std::uint64_t i = 5; i < kPages; i += 7) memory.fill(i, 0);
  ASSERT_EQ(send_all(*split, memory), 0);
  ASSERT_TRUE(split->flush());
  EXPECT_EQ(split->pending_pages(), 0U);

  const Result<Handover> handover = Handover::decode(split->encode_plan());
  ASSERT_TRUE(handover);
  std::vector<std::uint8_t> zero(kPages, 0);
  const Result<std::vector<ZeroRun>> runs =
      decode_zero_runs(split->encode_changes(), PageCount{kPages});
  ASSERT_TRUE(runs);
  for (const ZeroRun& run : *runs) {
    for (std::uint32_t i = 0; i < run.count; i++) zero[run.first.value + i] = run.zero;
  }

  std::vector<std::unique_ptr<wire::Connection>> connections;
  for (const HandoverServer& server : handover->servers) {
    connections.push_back(std::move(*wire::Connection::connect(*wire::parse_uri(server.uri), {})));
    ASSERT_TRUE(connections.back()->attach(handover->session, server.epoch));
  }
  std::uint64_t checked = 0;
  for (std::uint64_t i = 0; i < kPages; i++) {
    const ServerId owner = handover->plan->owner(PageIndex{i});
    if (owner == kMainHost) continue;
    const std::vector<std::uint8_t> content = fetch(*connections[owner.value - 1], PageIndex{i});
    if (zero[i] != 0) {
      EXPECT_TRUE(content.empty()) << i;
      EXPECT_EQ(memory.page(i)[0], 0) << i;
    } else {
      ASSERT_EQ(content.size(), kPageSize) << i;
      EXPECT_EQ(std::memcmp(content.data(), memory.page(i), kPageSize), 0) << i;
    }
    checked++;
  }
  EXPECT_GE(checked, kPages / 2);
  EXPECT_EQ(split->planned(ServerId{1}).value + split->planned(ServerId{2}).value, checked);
}

TEST(SplitSourceTest, ResentPagesReplaceAndZeroIsTakenBack) {
  RunningServer server(PageCount{kPages});
  const std::unique_ptr<SplitSource> split = opened(config_for({server.uri()}));
  ASSERT_TRUE(split);
  VmMemory memory(kPages);
  std::uint64_t page = 0;
  while (split->owner(PageIndex{page}) == kMainHost) page++;

  const auto send = [&](std::uint8_t byte) {
    memory.fill(page, byte);
    ASSERT_EQ(split->send(PageIndex{page}, memory.page(page)), 0);
    ASSERT_TRUE(split->flush());
  };
  const auto changes = [&] {
    return *decode_zero_runs(split->encode_changes(), PageCount{kPages});
  };
  send(1);
  EXPECT_TRUE(changes().empty());
  send(0);
  EXPECT_EQ(changes(), (std::vector<ZeroRun>{{PageIndex{page}, 1, true}}));
  send(0);
  EXPECT_TRUE(changes().empty()) << "only changes travel";
  send(9);
  EXPECT_EQ(changes(), (std::vector<ZeroRun>{{PageIndex{page}, 1, false}}));

  const Handover handover = *Handover::decode(split->encode_plan());
  std::unique_ptr<wire::Connection> connection =
      std::move(*wire::Connection::connect(*wire::parse_uri(server.uri()), {}));
  ASSERT_TRUE(connection->attach(handover.session, Epoch{1}));
  EXPECT_EQ(fetch(*connection, PageIndex{page}),
            std::vector<std::uint8_t>(memory.page(page), memory.page(page) + kPageSize));
}

// What the destination would refuse is refused by the command.
TEST(SplitSourceTest, MainMemoryMustHoldTheReserveTwice) {
  SplitSourceConfig config = config_for({"tcp:127.0.0.1:1"});
  config.chunk_pages = PageCount{4096};     // 16 MiB
  config.main_capacity = PageCount{12288};  // 48 MiB
  const Result<void> checked = SplitSource::check(config);
  ASSERT_FALSE(checked);
  EXPECT_THAT(checked.error().message, HasSubstr("give 64.0 MiB or more"));
}

// In a child process without threads.
void open_without_threads(const std::string& uri) {
  [[maybe_unused]] const int not_root = setuid(65534);
  rlimit none{};
  setrlimit(RLIMIT_NPROC, &none);
  Result<std::unique_ptr<SplitSource>> split = SplitSource::create(config_for({uri}));
  const Result<void> opened = (*split)->open();
  _exit(!opened && opened.error().message.find("thread") != std::string::npos ? 0 : 1);
}

TEST(SplitSourceTest, WithoutThreadsItFailsAndDropsWhatItHad) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the thread sanitizer ends a child of a process with threads";
#endif
  RunningServer server(PageCount{kPages});
  EXPECT_EXIT(open_without_threads(server.uri()), testing::ExitedWithCode(0), "");
  EXPECT_EQ(server.sessions(), 0U);
}

TEST(SplitSourceTest, CapacitiesMustAddUp) {
  SplitSourceConfig config = config_for({"tcp:127.0.0.1:1"});
  config.sub_hosts[0].capacity = PageCount{kPages / 2};
  const Result<void> checked = SplitSource::check(config);
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code, ENOSPC);
  EXPECT_THAT(checked.error().message, HasSubstr("do not add up"));
  EXPECT_THAT(checked.error().message, HasSubstr("1.0 MiB or more")) << "what is missing";
  config.sub_hosts[0].capacity = PageCount{kPages / 2 + 256};
  EXPECT_TRUE(SplitSource::check(config));
}

TEST(SplitSourceTest, RefusesBadOptionsAndNamesThem) {
  const auto message = [](const SplitSourceConfig& config) {
    const Result<void> checked = SplitSource::check(config);
    return checked ? std::string("accepted") : checked.error().message;
  };
  SplitSourceConfig config = config_for({"tcp:h:1", "tcp:h:1"});
  EXPECT_THAT(message(config), HasSubstr("given twice"));
  config = config_for({"host:1"});
  EXPECT_THAT(message(config), HasSubstr("'host:1'"));
  config = config_for({});
  EXPECT_THAT(message(config), HasSubstr("0 sub-hosts"));
  config = config_for({"tcp:h:1", "tcp:h:2"});
  config.chunk_pages = PageCount{12};
  EXPECT_THAT(message(config), HasSubstr("12"));
  config = config_for({"tcp:h:1", "tcp:h:2"});
  config.sub_hosts[1].capacity = PageCount{0};
  EXPECT_THAT(message(config), HasSubstr("tcp:h:2 has no capacity"));
  config = config_for({"tcp:h:1", "tcp:h:2"});
  config.main_capacity = PageCount{16};
  EXPECT_THAT(message(config), HasSubstr("main-memory"));
}

TEST(SplitSourceTest, OneRefusalLeavesNothingReserved) {
  RunningServer roomy(PageCount{kPages});
  RunningServer small(PageCount{kPages / 4});
  Result<std::unique_ptr<SplitSource>> split =
      SplitSource::create(config_for({roomy.uri(), small.uri()}));
  ASSERT_TRUE(split);
  const Result<void> result = (*split)->open();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ENOSPC);
  EXPECT_THAT(result.error().message, HasSubstr(small.uri()));
  EXPECT_THAT(result.error().message, HasSubstr("lower this sub-host's capacity"));
  EXPECT_EQ(roomy.sessions(), 0U);
  EXPECT_EQ(small.sessions(), 0U);
}

TEST(SplitSourceTest, ASessionWhoseOpenWasNotAnsweredIsDroppedToo) {
  test::FakeServer server;
  server.order([](const wire::FrameHeader& header) {
    return header.op == static_cast<std::uint16_t>(wire::Op::kOpen)
               ? test::FakeServer::Act::kWrongSeq
               : test::FakeServer::Act::kServe;
  });
  Result<std::unique_ptr<SplitSource>> split =
      SplitSource::create(config_for({server.uri().text()}));
  ASSERT_TRUE(split);
  EXPECT_FALSE((*split)->open());
  EXPECT_EQ(server.requests(wire::Op::kOpen), 1U);
  EXPECT_EQ(server.sessions(), 0U);
}

TEST(SplitSourceTest, UnreachableServerIsNamed) {
  RunningServer server(PageCount{kPages});
  const std::string gone = [] {
    const RunningServer once(PageCount{16});
    return once.uri();
  }();
  Result<std::unique_ptr<SplitSource>> split =
      SplitSource::create(config_for({server.uri(), gone}));
  ASSERT_TRUE(split);
  const Result<void> result = (*split)->open();
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, HasSubstr(gone));
  EXPECT_EQ(server.sessions(), 0U);
}

TEST(SplitSourceTest, LostServerFailsTheJobWithItsName) {
  auto server = std::make_unique<RunningServer>(PageCount{kPages});
  const std::string uri = server->uri();
  const std::unique_ptr<SplitSource> split = opened(config_for({uri}));
  ASSERT_TRUE(split);
  VmMemory memory(kPages);
  ASSERT_EQ(send_all(*split, memory), 0);
  ASSERT_TRUE(split->flush());
  server.reset();
  send_all(*split, memory);
  const Result<void> flushed = split->flush();
  ASSERT_FALSE(flushed);
  EXPECT_THAT(flushed.error().message, HasSubstr(uri));
  EXPECT_FALSE(split->error());
}

TEST(SplitSourceTest, CloseDropsWhatIsOnTheServers) {
  RunningServer server(PageCount{kPages});
  const std::unique_ptr<SplitSource> split = opened(config_for({server.uri()}));
  ASSERT_TRUE(split);
  EXPECT_EQ(server.sessions(), 1U);
  split->close(true);
  EXPECT_EQ(server.sessions(), 0U);
}

// What the destination does at a server, step by step.
class ByHand {
 public:
  ByHand(const Handover& handover, std::size_t server)
      : handover_(handover),
        connection_(std::move(
            *wire::Connection::connect(*wire::parse_uri(handover.servers[server].uri), {}))) {}
  wire::Status claim(Epoch epoch = Epoch{1}) {
    return connection_->ask_ownership(wire::Op::kClaim, handover_.session, epoch, handover_.ticket)
        ->status;
  }
  wire::Status commit() {
    return connection_->ask_ownership(wire::Op::kCommit, {}, connection_->epoch(), {})->status;
  }

 private:
  Handover handover_;
  std::unique_ptr<wire::Connection> connection_;
};

TEST(SplitSourceTest, AfterAReclaimNoClaimIsGranted) {
  RunningServer server(PageCount{kPages});
  const std::unique_ptr<SplitSource> split = opened(config_for({server.uri()}));
  ASSERT_TRUE(split);
  const Handover handover = *Handover::decode(split->encode_plan());
  ByHand early(handover, 0);
  ASSERT_EQ(early.claim(), wire::Status::kOk);
  ASSERT_TRUE(split->flush());
  ASSERT_TRUE(split->end());
  EXPECT_TRUE(split->settle()) << "nobody has committed";
  EXPECT_EQ(early.commit(), wire::Status::kFenced) << "too late";
  ByHand late(handover, 0);
  for (const std::uint64_t epoch : {1, 2, 3}) {
    EXPECT_EQ(late.claim(Epoch{epoch}), wire::Status::kFenced);
  }
  split->close(true);
  EXPECT_EQ(server.sessions(), 0U);
}

TEST(SplitSourceTest, ACommitSettlesWhoOwnsTheVm) {
  RunningServer server(PageCount{kPages});
  const std::unique_ptr<SplitSource> split = opened(config_for({server.uri()}));
  ASSERT_TRUE(split);
  ByHand destination(*Handover::decode(split->encode_plan()), 0);
  ASSERT_TRUE(split->flush());
  ASSERT_TRUE(split->end());
  ASSERT_EQ(destination.claim(), wire::Status::kOk);
  ASSERT_EQ(destination.commit(), wire::Status::kOk);
  for (int i = 0; i < 2; i++) {
    const Result<void> settled = split->settle();
    ASSERT_FALSE(settled);
    EXPECT_EQ(settled.error().code, EALREADY);
  }
  split->close(true);
  EXPECT_EQ(server.sessions(), 1U) << "a committed session is not the source's to drop";
}

TEST(SplitSourceTest, ASourceInDoubtAsksUntilItIsAnswered) {
  RunningServer other(PageCount{kPages});
  auto arbiter = std::make_unique<RunningServer>(PageCount{kPages});
  SplitSourceConfig config = config_for({arbiter->uri(), other.uri()});
  const std::unique_ptr<SplitSource> split = opened(config);
  ASSERT_TRUE(split);
  ASSERT_TRUE(split->flush());
  ASSERT_TRUE(split->end());
  const std::string uri = arbiter->uri();
  arbiter.reset();
  for (int i = 0; i < 3; i++) {
    const Result<void> settled = split->settle();
    ASSERT_FALSE(settled);
    EXPECT_NE(settled.error().code, EALREADY);
    EXPECT_THAT(settled.error().message, HasSubstr(uri));
  }
  EXPECT_EQ(other.sessions(), 1U) << "the arbiter first";
  split->given_up();
  EXPECT_TRUE(split->settle()) << "the destination's word is enough";
  split->close(true);
  EXPECT_EQ(other.sessions(), 0U);
}

TEST(SplitSourceTest, StaleSourceCannotWrite) {
  RunningServer server(PageCount{kPages});
  const std::unique_ptr<SplitSource> split = opened(config_for({server.uri()}));
  ASSERT_TRUE(split);
  ASSERT_EQ(ByHand(*Handover::decode(split->encode_plan()), 0).claim(), wire::Status::kOk);
  VmMemory memory(kPages);
  send_all(*split, memory);
  const Result<void> flushed = split->flush();
  ASSERT_FALSE(flushed);
  EXPECT_EQ(flushed.error().code, ESTALE);
}

TEST(SplitSourceTest, DestinationFindsOutEarlyThatAServerIsOutOfReach) {
  RunningServer server(PageCount{kPages});
  auto doomed = std::make_unique<RunningServer>(PageCount{kPages});
  const std::unique_ptr<SplitSource> split = opened(config_for({server.uri(), doomed->uri()}));
  ASSERT_TRUE(split);
  Handover handover = *Handover::decode(split->encode_plan());
  const std::chrono::milliseconds patience = std::chrono::minutes{1};
  const Result<void> reached = check_servers(handover, patience);
  EXPECT_TRUE(reached) << reached.error().message;

  Handover stranger = handover;
  stranger.session[0] ^= 1;
  const Result<void> unknown = check_servers(stranger, patience);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ENOENT);

  const std::string uri = doomed->uri();
  doomed.reset();
  const Result<void> gone = check_servers(handover, patience);
  ASSERT_FALSE(gone);
  EXPECT_THAT(gone.error().message, HasSubstr("cannot connect"));
  EXPECT_THAT(gone.error().message, HasSubstr(uri));
}

TEST(SplitSourceTest, CancelEndsABlockedOpen) {
  // A listener that never answers.
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(fd, 4), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);

  SplitSourceConfig config = config_for({fmt::format("tcp:127.0.0.1:{}", ntohs(address.sin_port))});
  config.io_timeout = std::chrono::minutes{10};
  Result<std::unique_ptr<SplitSource>> split = SplitSource::create(config);
  ASSERT_TRUE(split);
  int peer = -1;
  std::thread canceller([&] {
    // The connection is there: open() is under way.
    peer = accept(fd, nullptr, nullptr);
    (*split)->cancel();
  });
  const Result<void> result = (*split)->open();
  canceller.join();
  close(peer);
  close(fd);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ECANCELED);
}

}  // namespace
}  // namespace kintsugi
