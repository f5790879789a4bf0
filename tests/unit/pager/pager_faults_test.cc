// SPDX-License-Identifier: GPL-2.0-or-later
// The pager when a server or the kernel does what it should not, and when things happen at the same
// time: each test causes one such fault.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <atomic>
#include <optional>
#include <thread>

#include "pager/faulty_uffd.h"
#include "pager/pager.h"
#include "pager/pager_rig.h"

namespace kintsugi::test {
namespace {

using Act = FakeServer::Act;
using wire::Op;

bool is(const wire::FrameHeader& header, Op op) {
  return header.op == static_cast<std::uint16_t>(op);
}

// ---- Servers ------------------------------------------------------------------------------------

TEST(PagerServers, ARestartedServerIsWaitedFor) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  rig.server(0).stop();
  const ServerEvent lost = rig.event(0);
  EXPECT_EQ(lost.state, LinkState::kLost);
  EXPECT_EQ(lost.server, ServerId{1});
  EXPECT_NE(lost.error.find(lost.uri), std::string::npos);
  std::atomic<bool> done{false};
  std::thread guest([&] {
    rig.expect_page(300);
    done = true;
  });
  // It waits in a fault: what else is here is not disturbed.
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().faults > 0; }));
  for (std::uint64_t i = 0; i < 256; i++) rig.expect_page(i);
  EXPECT_FALSE(done);
  EXPECT_EQ(rig.pager().stats().servers_lost, 1U);
  EXPECT_FALSE(rig.pager().stats().servers[0].error.empty());
  rig.server(0).start();
  guest.join();
  EXPECT_EQ(rig.event(1).state, LinkState::kConnected);
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  EXPECT_EQ(rig.pager().stats().servers[0].reconnects, 1U);
}

TEST(PagerServers, OneLostServerDoesNotStallTheOthers) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.servers = 2;
  Rig rig(options);
  rig.run();
  rig.server(0).stop();
  EXPECT_EQ(rig.event(0).state, LinkState::kLost);
  std::uint64_t waiting_for = options.pages;
  for (std::uint64_t i = 256; i < 512 && waiting_for == options.pages; i++) {
    if (rig.plan().owner(PageIndex{i}) == ServerId{1}) waiting_for = i;
  }
  ASSERT_LT(waiting_for, options.pages);
  std::thread guest([&] { rig.expect_page(waiting_for); });
  for (std::uint64_t i = 0; i < options.pages; i++) {
    if (rig.plan().owner(PageIndex{i}) == ServerId{2}) rig.expect_page(i);
  }
  rig.server(0).start();
  guest.join();
}

TEST(PagerServers, PagesOnTheirWayOutSurviveARestart) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.limit = 256;
  options.reserve = 64;
  Rig rig(options);
  rig.run(Op::kPut);
  rig.server(0).wait_for_gated(1);
  EXPECT_GT(rig.pager().stats().queued_pages, 0U);
  rig.server(0).stop();
  EXPECT_EQ(rig.event(0).state, LinkState::kLost);
  rig.server(0).open_gate();
  rig.server(0).start();
  ASSERT_TRUE(rig.settle());
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
}

TEST(PagerServers, AServerThatStopsAnsweringIsFoundOut) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.io_timeout = std::chrono::milliseconds(200);
  Rig rig(options);
  rig.run();
  // It answers pings, so only the lane's own time-out can tell.
  std::atomic<bool> ignore{true};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    return is(header, Op::kGet) && ignore.exchange(false) ? Act::kIgnore : Act::kServe;
  });
  rig.expect_page(300);
  EXPECT_EQ(rig.event(0).state, LinkState::kLost);
  EXPECT_EQ(rig.event(1).state, LinkState::kConnected);
}

TEST(PagerServers, AServerThatDoesNotAnswerPingsIsLost) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.io_timeout = std::chrono::milliseconds(200);
  Rig rig(options);
  rig.run();
  std::atomic<bool> ignore{true};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    return is(header, Op::kStat) && ignore.exchange(false) ? Act::kIgnore : Act::kServe;
  });
  EXPECT_EQ(rig.event(0).state, LinkState::kLost);
  EXPECT_EQ(rig.event(1).state, LinkState::kConnected);
  rig.expect_page(300);
}

class BadAnswer : public testing::TestWithParam<Act> {};

TEST_P(BadAnswer, ToAGetIsNeverInstalled) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  std::atomic<int> bad{2};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    return is(header, Op::kGet) && bad.fetch_sub(1) > 0 ? GetParam() : Act::kServe;
  });
  rig.expect_page(300);
  EXPECT_EQ(rig.event(0).state, LinkState::kLost);
  EXPECT_EQ(rig.event(1).state, LinkState::kConnected);
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
}

TEST_P(BadAnswer, ToAPutLosesNothing) {
  SKIP_WITHOUT_UFFD();
  if (GetParam() == Act::kAbsent || GetParam() == Act::kWrongPage) return;  // Get only
  RigOptions options;
  options.limit = 256;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  std::atomic<int> bad{2};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    return is(header, Op::kPut) && bad.fetch_sub(1) > 0 ? GetParam() : Act::kServe;
  });
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  for (int round = 0; round < 3; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  }
  EXPECT_TRUE(rig.settle());
}

std::string act_name(const testing::TestParamInfo<Act>& info) {
  static const std::vector<std::string> kNames = {
      "Serve", "Ignore", "HangUp", "WrongSeq", "WrongPage", "Absent", "Garbage", "Twice", "Refuse"};
  return kNames[static_cast<std::size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Acts, BadAnswer,
                         testing::Values(Act::kHangUp, Act::kWrongSeq, Act::kWrongPage,
                                         Act::kAbsent, Act::kGarbage, Act::kRefuse),
                         act_name);

TEST(PagerServers, AnAnswerThatComesTwiceBreaksTheConnectionOnly) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  std::atomic<int> twice{1};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    return is(header, Op::kGet) && twice.fetch_sub(1) > 0 ? Act::kTwice : Act::kServe;
  });
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  const ServerEvent lost = rig.event(0);
  EXPECT_EQ(lost.state, LinkState::kLost);
  EXPECT_NE(lost.error.find("a request that was not made"), std::string::npos) << lost.error;
  EXPECT_EQ(rig.event(1).state, LinkState::kConnected);
}

TEST(PagerServers, ALostPageIsNotMadeUp) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  rig.server(0).lose_page(300);
  std::atomic<bool> done{false};
  std::thread guest([&] {
    [[maybe_unused]] const char c = *const_cast<volatile char*>(rig.page(300));
    done = true;
  });
  const ServerEvent lost = rig.event(0);
  EXPECT_NE(lost.error.find("no longer has page 300"), std::string::npos) << lost.error;
  EXPECT_FALSE(done);
  rig.pager().release();
  guest.join();
}

TEST(PagerServers, ClaimNamesWhoCannotBeReached) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.servers = 2;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  const std::string uri = rig.server(1).uri().text();
  rig.server(1).stop();
  const Result<void> claimed = rig.pager().claim();
  ASSERT_FALSE(claimed);
  EXPECT_NE(claimed.error().message.find(uri), std::string::npos) << claimed.error().message;
}

TEST(PagerServers, ClaimFindsMissingPages) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  rig.server(0).lose_page(400);
  const Result<void> claimed = rig.pager().claim();
  ASSERT_FALSE(claimed);
  EXPECT_EQ(claimed.error().code, ENODATA);
}

TEST(PagerServers, CommitIsAskedForAgainWhenItsAnswerIsLost) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  std::atomic<int> bad{1};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    return is(header, Op::kCommit) && bad.fetch_sub(1) > 0 ? Act::kHangUp : Act::kServe;
  });
  const Result<void> committed = rig.pager().commit();
  EXPECT_TRUE(committed) << committed.error().message;
  EXPECT_TRUE(rig.server(0).committed());
}

TEST(PagerServers, CommitAfterBeingFencedFails) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  // The source takes its VM back.
  auto connection = wire::Connection::connect(rig.server(0).uri(), {});
  ASSERT_TRUE(connection);
  const auto reclaimed =
      (*connection)->ask_ownership(Op::kReclaim, rig.config().session, Epoch{1}, {});
  ASSERT_TRUE(reclaimed && reclaimed->status == wire::Status::kOk);
  const Result<void> committed = rig.pager().commit();
  ASSERT_FALSE(committed);
  EXPECT_EQ(committed.error().code, ESTALE);
  EXPECT_TRUE(rig.pager().give_up()) << "a refusal is final";
}

// A Commit that was not answered may have taken effect: it is asked until it is answered.
TEST(PagerServers, AnUnansweredCommitIsNotGivenUp) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.io_timeout = std::chrono::milliseconds(100);
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  std::atomic<int> asked{0};
  std::atomic<bool> deaf{true};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    if (!is(header, Op::kCommit)) return Act::kServe;
    asked++;
    return deaf ? Act::kHangUp : Act::kServe;
  });
  std::optional<Result<void>> committed;
  std::thread thread([&] { committed.emplace(rig.pager().commit()); });
  // Far beyond any time-out of the connection.
  EXPECT_TRUE(eventually([&] { return asked >= 5; }));
  EXPECT_FALSE(rig.pager().give_up());
  deaf = false;
  thread.join();
  EXPECT_TRUE(*committed) << committed->error().message;
  EXPECT_TRUE(rig.server(0).committed());
}

TEST(PagerServers, ACancelledCommitIsNotKnown) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  rig.server(0).close_gate(Op::kCommit);
  std::optional<Result<void>> committed;
  std::thread thread([&] { committed.emplace(rig.pager().commit()); });
  rig.server(0).wait_for_gated(1);
  rig.pager().cancel();
  thread.join();
  ASSERT_FALSE(*committed);
  EXPECT_EQ(committed->error().code, ECANCELED);
  EXPECT_FALSE(rig.pager().give_up());
  rig.server(0).open_gate();
}

// Not even the way to one server that hangs holds up the others.
TEST(PagerServers, ClaimAsksAllServersAtOnce) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.servers = 3;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().connect());
  for (unsigned i = 0; i < 3; i++) rig.server(i).close_gate(Op::kClaim);
  Result<void> claimed;
  std::thread thread([&] { claimed = rig.pager().claim(); });
  for (unsigned i = 0; i < 3; i++) rig.server(i).wait_for_gated(1);
  const std::uint64_t hellos = rig.server(0).requests(Op::kHello);
  for (unsigned i = 0; i < 3; i++) rig.server(i).open_gate();
  thread.join();
  EXPECT_TRUE(claimed) << claimed.error().message;
  EXPECT_EQ(rig.server(0).requests(Op::kHello), hellos) << "no connection is made meanwhile";
}

TEST(PagerServers, AConnectionThatBrokeBeforeTheClaimIsMadeAgain) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.servers = 2;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().connect());
  rig.server(1).hang_up_all();
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
}

// ---- Pages that a server has lost ---------------------------------------------------------------

class PagesLost : public testing::TestWithParam<const char*> {};

TEST_P(PagesLost, IsAStateOfItsOwnAndFinal) {
  SKIP_WITHOUT_UFFD();
  const std::string how = GetParam();
  RigOptions options;
  options.limit = 256;
  Rig rig(options);
  rig.run();
  rig.expect_page(0);
  // A write, so that there is a page of this side's.
  for (std::uint64_t i = 0; i < options.pages; i++) write_pattern(rig.page(i), i, 2);
  ASSERT_TRUE(rig.settle());
  rig.server(0).stop();
  EXPECT_EQ(rig.event(0).state, LinkState::kLost);
  if (how == "arena") rig.server(0).forget_sessions();
  if (how == "older") rig.server(0).age_pages();
  if (how == "pages") {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.server(0).lose_page(i);
  }
  if (how == "other") rig.server(0).become_another();
  rig.server(0).start();
  const ServerEvent event = rig.event(1);
  EXPECT_EQ(event.state, LinkState::kPagesLost);
  EXPECT_NE(event.error, "");
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().servers[0].pages_lost; }));
  // It goes on asking, in case the right one comes, and says nothing new.
  const std::uint64_t hellos = rig.server(0).requests(Op::kHello);
  EXPECT_TRUE(eventually([&] { return rig.server(0).requests(Op::kHello) > hellos + 2; }));
  EXPECT_EQ(rig.events(), 2U);
  EXPECT_EQ(rig.pager().stats().servers_lost, 1U);
}

INSTANTIATE_TEST_SUITE_P(, PagesLost, testing::Values("arena", "older", "pages", "other"),
                         [](const auto& suite) { return std::string(suite.param); });

TEST(PagerServers, StopCanDropTheSession) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  EXPECT_EQ(rig.server(0).sessions(), 1U);
  rig.pager().release();
  rig.pager().stop(true);
  EXPECT_EQ(rig.server(0).sessions(), 0U);
}

// ---- Giving up ----------------------------------------------------------------------------------

TEST(PagerRelease, LetsEveryoneGoWhoWaits) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.servers = 2;
  Rig rig(options);
  rig.run();
  rig.server(0).stop();
  rig.server(1).stop();
  EXPECT_EQ(rig.event(1).state, LinkState::kLost);
  std::vector<std::thread> guests;
  for (unsigned t = 0; t < 4; t++) {
    guests.emplace_back([&, t] {
      for (std::uint64_t i = 256 + t * 64; i < 320 + t * 64; i++) {
        [[maybe_unused]] const char c = *const_cast<volatile char*>(rig.page(i));
        rig.page(i)[0] = 1;
      }
    });
  }
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().faults >= 4; }));
  rig.pager().release();
  for (std::thread& guest : guests) guest.join();
}

TEST(PagerRelease, LetsGoWhoWaitsForAPrefetch) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  // The fault thread's own request is the first of two.
  rig.server(0).close_gate(Op::kGet);
  std::thread first(
      [&] { [[maybe_unused]] const char c = *const_cast<volatile char*>(rig.page(304)); });
  rig.server(0).wait_for_gated(2);
  std::thread second(
      [&] { [[maybe_unused]] const char c = *const_cast<volatile char*>(rig.page(305)); });
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().prefetch_hits == 1; }));
  rig.pager().release();
  first.join();
  second.join();
  rig.server(0).open_gate();
}

TEST(PagerRelease, LetsGoWhoWaitsForRoom) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.limit = 256;
  options.prefetch = false;
  Rig rig(options);
  rig.run(Op::kPut);  // nothing ever gets out
  std::thread guest([&] {
    for (std::uint64_t i = 256; i < 512; i++) {
      [[maybe_unused]] const char c = *const_cast<volatile char*>(rig.page(i));
    }
  });
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().hard_waits > 0; }));
  EXPECT_TRUE(rig.comes_within_limit());
  rig.pager().release();
  guest.join();
  rig.server(0).open_gate();
}

// ---- Waits --------------------------------------------------------------------------------------

// The longest wait that is told, once it is longer than every wait that has ended.
PagerWait longest_wait(Rig* rig) {
  PagerWait found;
  EXPECT_TRUE(eventually([&] {
    const std::vector<PagerWait> waits = rig->pager().waits(1);
    if (waits.empty() || waits[0].ns <= rig->pager().stats().page_in_max_ns) return false;
    found = waits[0];
    return true;
  }));
  return found;
}

TEST(PagerWaits, ForAPrefetchAreToldAndMeasured) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.io_timeout = std::chrono::milliseconds(1000);
  Rig rig(options);
  rig.run();
  std::atomic<bool> ignored{false};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    return is(header, Op::kGet) && header.count > 1 && !ignored.exchange(true) ? Act::kIgnore
                                                                               : Act::kServe;
  });
  rig.expect_page(304);
  EXPECT_TRUE(eventually([&] { return ignored && rig.pager().stats().waiting == 0; }));
  std::atomic<pid_t> tid{0};
  std::thread guest([&] {
    tid = gettid();
    rig.expect_page(305);
  });
  const PagerWait wait = longest_wait(&rig);
  EXPECT_EQ(wait.page, PageIndex{305});
  EXPECT_EQ(wait.server, ServerId{1});
  EXPECT_EQ(wait.thread_id, static_cast<std::uint32_t>(tid.load()));
  guest.join();
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().waiting == 0; }));
  EXPECT_GE(rig.pager().stats().page_in_max_ns, wait.ns);
}

TEST(PagerWaits, ForRoomAreToldAndMeasured) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.limit = 256;
  options.prefetch = false;
  Rig rig(options);
  rig.run(Op::kPut);
  std::thread guest([&] {
    for (std::uint64_t i = 256; i < 512; i++) rig.expect_page(i);
  });
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().hard_waits > 0; }));
  const PagerWait wait = longest_wait(&rig);
  EXPECT_EQ(wait.server, kMainHost);
  rig.server(0).open_gate();
  guest.join();
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().waiting == 0; }));
  EXPECT_GE(rig.pager().stats().page_in_max_ns, wait.ns);
}

// ---- The kernel ---------------------------------------------------------------------------------

// Whatever UFFDIO_PAGEOUT says of a page that it does not take, the page stays and is right.
TEST(PagerKernel, PagesThatAreNotTakenStay) {
  SKIP_WITHOUT_UFFD();
  for (const PageOutStatus status :
       {PageOutStatus::kNotReached, PageOutStatus::kSwapped, PageOutStatus::kPinned,
        PageOutStatus::kBusy, PageOutStatus::kPoisoned}) {
    auto hooks = std::make_shared<UffdHooks>();
    auto memory = std::make_shared<char*>(nullptr);
    auto refused = std::make_shared<std::atomic<unsigned>>(0);
    hooks->page_out = [=](char* at) -> std::optional<PageOutStatus> {
      // Every third page, for some time.
      const auto page = static_cast<std::uint64_t>(at - *memory) / kPageSize;
      if (*memory == nullptr || page % 3 != 0 || refused->load() >= 200) return std::nullopt;
      refused->fetch_add(1);
      return status;
    };
    RigOptions options;
    options.method = PageOutMethod::kPageout;
    options.limit = 200;
    options.open_uffd = FaultyUffd::opener(hooks);
    Rig rig(options);
    rig.send_all();
    ASSERT_TRUE(rig.create());
    ASSERT_TRUE(rig.pager().claim());
    *memory = rig.page(0);
    ASSERT_TRUE(rig.pager().start());
    ASSERT_TRUE(rig.pager().commit());
    for (int round = 0; round < 3; round++) {
      for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
    }
    EXPECT_TRUE(eventually([&] { return rig.settle() && refused->load() >= 200; }));
    EXPECT_EQ(rig.pager().stats().page_outs_refused, refused->load());
    EXPECT_TRUE(rig.balances());
  }
}

// A page whose content is lost must not come back as zeros.
TEST(PagerKernel, APoisonedPageIsNotFilledAnew) {
  SKIP_WITHOUT_UFFD();
  auto hooks = std::make_shared<UffdHooks>();
  auto memory = std::make_shared<char*>(nullptr);
  auto poisoned = std::make_shared<std::atomic<char*>>(nullptr);
  hooks->page_out = [=](char* at) -> std::optional<PageOutStatus> {
    if (*memory == nullptr || poisoned->load() != nullptr) return std::nullopt;
    madvise(at, kPageSize, MADV_DONTNEED);  // as a kernel that has lost it
    poisoned->store(at);
    return PageOutStatus::kPoisoned;
  };
  RigOptions options;
  options.method = PageOutMethod::kPageout;
  options.limit = 200;
  options.open_uffd = FaultyUffd::opener(hooks);
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  *memory = rig.page(0);
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  ASSERT_TRUE(rig.settle());
  ASSERT_NE(poisoned->load(), nullptr);
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  EXPECT_EQ(write(fds[1], poisoned->load(), 1), -1);
  EXPECT_EQ(errno, EFAULT);
  close(fds[0]);
  close(fds[1]);
  const auto lost = static_cast<std::uint64_t>(poisoned->load() - rig.page(0)) / kPageSize;
  for (std::uint64_t i = 0; i < options.pages; i++) {
    if (i != lost) rig.expect_page(i);
  }
}

TEST(PagerKernel, APinnedPageStaysAndIsTakenLater) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.method = PageOutMethod::kMove;
  options.limit = 200;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  // A registered io_uring buffer is a real long-term pin.
  io_uring ring{};
  if (io_uring_queue_init(4, &ring, 0) != 0) GTEST_SKIP() << "io_uring is not available";
  iovec pinned{rig.page(0), 64 * kPageSize};
  const int rc = io_uring_register_buffers(&ring, &pinned, 1);
  if (rc != 0) {
    io_uring_queue_exit(&ring);
    GTEST_SKIP() << "cannot pin memory: " << std::strerror(-rc);
  }
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  ASSERT_TRUE(rig.settle());
  // A device's write lands in the page that the guest sees.
  for (std::uint64_t i = 256; i < 512; i++) rig.expect_page(i);
  for (std::uint64_t i = 64; i < 256; i++) rig.expect_page(i);
  for (std::uint64_t i = 256; i < 512; i++) rig.expect_page(i);
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().page_outs_refused > 0; }));
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  std::vector<char> content(kPageSize);
  write_pattern(content.data(), 5, 9);
  ASSERT_EQ(write(fds[1], content.data(), content.size()), static_cast<ssize_t>(kPageSize));
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  io_uring_prep_read_fixed(sqe, fds[0], rig.page(5), kPageSize, 0, 0);
  ASSERT_EQ(io_uring_submit(&ring), 1);
  io_uring_cqe* cqe = nullptr;
  ASSERT_EQ(io_uring_wait_cqe(&ring, &cqe), 0);
  EXPECT_EQ(cqe->res, static_cast<int>(kPageSize));
  io_uring_cqe_seen(&ring, cqe);
  rig.expect_page(5, 9);
  io_uring_queue_exit(&ring);
  close(fds[0]);
  close(fds[1]);
  for (int round = 0; round < 2; round++) {
    for (std::uint64_t i = 64; i < 512; i++) rig.expect_page(i);
  }
  for (std::uint64_t i = 0; i < 64; i++) rig.expect_page(i, i == 5 ? 9 : 0);
}

TEST(PagerKernel, EbusyAnsweredByTheSeamIsTriedAgain) {
  SKIP_WITHOUT_UFFD();
  auto hooks = std::make_shared<UffdHooks>();
  auto calls = std::make_shared<std::atomic<unsigned>>(0);
  hooks->move = [calls](void*, std::size_t*) -> std::optional<UffdResult> {
    return calls->fetch_add(1) % 3 == 1 ? std::optional(UffdResult{EBUSY, 0}) : std::nullopt;
  };
  RigOptions options;
  options.method = PageOutMethod::kMove;
  options.limit = 256;
  options.open_uffd = FaultyUffd::opener(hooks);
  Rig rig(options);
  rig.run();
  for (int round = 0; round < 3; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  }
  EXPECT_TRUE(rig.settle());
}

TEST(PagerKernel, PartialMovesAreContinued) {
  SKIP_WITHOUT_UFFD();
  auto hooks = std::make_shared<UffdHooks>();
  auto calls = std::make_shared<std::atomic<unsigned>>(0);
  hooks->move = [calls](void*, std::size_t* bytes) -> std::optional<UffdResult> {
    const unsigned call = calls->fetch_add(1);
    if (call > 8 && call % 2 == 0) return UffdResult{EAGAIN, 0};  // nothing done at all
    if (*bytes > 3 * kPageSize) *bytes = 3 * kPageSize;           // a part, then EAGAIN
    return std::nullopt;
  };
  RigOptions options;
  options.method = PageOutMethod::kMove;
  options.limit = 256;
  options.open_uffd = FaultyUffd::opener(hooks);
  Rig rig(options);
  rig.run();
  for (int round = 0; round < 3; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  }
  EXPECT_GT(rig.pager().stats().page_outs, 256U);
  EXPECT_EQ(rig.pager().stats().page_outs_refused, 0U);
}

TEST(PagerKernel, EagainWhileInstallingIsTriedAgain) {
  SKIP_WITHOUT_UFFD();
  auto hooks = std::make_shared<UffdHooks>();
  auto calls = std::make_shared<std::atomic<unsigned>>(0);
  hooks->copy = [calls](void*, std::size_t* bytes) -> std::optional<UffdResult> {
    const unsigned call = calls->fetch_add(1);
    if (call % 3 == 0) return UffdResult{EAGAIN, 0};
    if (call % 5 == 0) return UffdResult{ENOMEM, 0};
    if (*bytes > 2 * kPageSize) *bytes = 2 * kPageSize;
    return std::nullopt;
  };
  RigOptions options;
  options.limit = 256;
  options.open_uffd = FaultyUffd::opener(hooks);
  Rig rig(options);
  rig.run();
  for (int round = 0; round < 2; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  }
  EXPECT_GT(rig.pager().stats().install_retries, 0U);
}

// Stops the evictor in its first call of a kind, and lets the test go on meanwhile.
class Barrier {
 public:
  // On the evictor: once.
  void stop_here() {
    std::unique_lock lock(mutex_);
    if (passed_) return;
    reached_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return passed_; });
  }
  void wait_until_reached() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return reached_; });
  }
  void pass() {
    const std::lock_guard lock(mutex_);
    passed_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  bool passed_ = false;
};

// The page is out, and a thread touches it before the evictor has said so anywhere.
void fault_right_after_leaving(PageOutMethod method) {
  auto hooks = std::make_shared<UffdHooks>();
  auto barrier = std::make_shared<Barrier>();
  auto taken = std::make_shared<std::atomic<char*>>(nullptr);
  auto memory = std::make_shared<std::pair<char*, char*>>();
  const auto left = [=](void* at, std::size_t) {
    auto* from = static_cast<char*>(at);
    if (memory->first == nullptr || from < memory->first || from >= memory->second) return;
    taken->store(from);
    barrier->stop_here();
  };
  hooks->after_move = left;
  hooks->after_page_out = [=](std::span<const PageOutRange> ranges) {
    left(ranges.front().from, ranges.front().bytes);
  };
  RigOptions options;
  options.method = method;
  options.limit = 200;
  options.open_uffd = FaultyUffd::opener(hooks);
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  // start() tries a move of page 0 itself.
  const std::uint64_t first = 16;
  *memory = {rig.page(first), rig.page(options.pages)};
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  barrier->wait_until_reached();
  const auto page = static_cast<std::uint64_t>(taken->load() - rig.page(0)) / kPageSize;
  std::thread guest([&] {
    rig.expect_page(page);
    write_pattern(rig.page(page), page, 1);
  });
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().faults > 0; }));
  barrier->pass();
  guest.join();
  for (int round = 0; round < 2; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, i == page ? 1 : 0);
  }
  EXPECT_GT(rig.pager().stats().queue_hits + rig.pager().stats().page_ins, 0U);
}

TEST(PagerRace, AFaultRightAfterTheMove) {
  SKIP_WITHOUT_UFFD();
  fault_right_after_leaving(PageOutMethod::kMove);
}

TEST(PagerRace, AFaultRightAfterThePageOut) {
  SKIP_WITHOUT_UFFD();
  fault_right_after_leaving(PageOutMethod::kPageout);
}

// The page is protected, not copied yet, and a thread writes to it: its page-out is cancelled.
TEST(PagerRace, AWriteWhileProtected) {
  SKIP_WITHOUT_UFFD();
  auto hooks = std::make_shared<UffdHooks>();
  auto barrier = std::make_shared<Barrier>();
  auto protected_ = std::make_shared<std::atomic<char*>>(nullptr);
  hooks->after_protect = [=](void* at, std::size_t bytes) {
    if (bytes < 2 * kPageSize) return;  // the probe's
    protected_->store(static_cast<char*>(at));
    barrier->stop_here();
  };
  RigOptions options;
  options.method = PageOutMethod::kWriteProtect;
  options.limit = 256;
  options.open_uffd = FaultyUffd::opener(hooks);
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  barrier->wait_until_reached();
  const auto page = static_cast<std::uint64_t>(protected_->load() - rig.page(0)) / kPageSize;
  // Comes back although the evictor stands still: a fault never waits for an eviction.
  write_pattern(rig.page(page), page, 1);
  rig.expect_page(page, 1);
  EXPECT_EQ(rig.pager().stats().write_cancels, 1U);
  barrier->pass();
  for (int round = 0; round < 2; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, i == page ? 1 : 0);
  }
}

// Copied and committed, not discarded yet: the write waits for the discard, then finds the page in
// the queue.
TEST(PagerRace, AWriteBetweenCopyAndDiscard) {
  SKIP_WITHOUT_UFFD();
  auto hooks = std::make_shared<UffdHooks>();
  auto barrier = std::make_shared<Barrier>();
  auto discarded = std::make_shared<std::atomic<char*>>(nullptr);
  hooks->discard = [=](void* at, std::size_t*) -> std::optional<UffdResult> {
    char* expected = nullptr;
    discarded->compare_exchange_strong(expected, static_cast<char*>(at));
    barrier->stop_here();
    return std::nullopt;
  };
  RigOptions options;
  options.method = PageOutMethod::kWriteProtect;
  options.limit = 256;
  options.open_uffd = FaultyUffd::opener(hooks);
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  barrier->wait_until_reached();
  const auto page = static_cast<std::uint64_t>(discarded->load() - rig.page(0)) / kPageSize;
  std::thread guest([&] { write_pattern(rig.page(page), page, 1); });
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().faults > 0; }));
  barrier->pass();
  guest.join();
  rig.expect_page(page, 1);
  for (int round = 0; round < 2; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, i == page ? 1 : 0);
  }
}

// A page in the queue, its Put not acknowledged: served from there, and the server's copy, stale
// from then on, is forgotten.
TEST(PagerRace, AFaultServedFromTheQueue) {
  SKIP_WITHOUT_UFFD();
  for (const PageOutMethod method :
       {PageOutMethod::kMove, PageOutMethod::kWriteProtect, PageOutMethod::kPageout}) {
    RigOptions options;
    options.method = method;
    if (method == PageOutMethod::kPageout) {
      options.open_uffd = FaultyUffd::opener(std::make_shared<UffdHooks>());
    }
    options.limit = 256;
    options.reserve = 64;
    options.prefetch = false;
    Rig rig(options);
    rig.run(Op::kPut);
    rig.server(0).wait_for_gated(1);
    ASSERT_TRUE(eventually([&] { return rig.pager().stats().queued_pages >= 64; }));
    for (std::uint64_t i = 0; i < 256; i++) {
      rig.expect_page(i);
      write_pattern(rig.page(i), i, 1);
    }
    EXPECT_TRUE(eventually([&] { return rig.pager().stats().queue_hits >= 64; }));
    EXPECT_EQ(rig.pager().stats().page_ins, 0U);
    rig.server(0).open_gate();
    for (int round = 0; round < 2; round++) {
      for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, i < 256 ? 1 : 0);
    }
  }
}

// ---- What create() and add_region() refuse ------------------------------------------------------

TEST(PagerSetup, RefusesSharedMemory) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  Result<std::unique_ptr<Pager>> pager = Pager::create(rig.config(), rig.plan());
  ASSERT_TRUE(pager);
  void* shared =
      mmap(nullptr, 512 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  const Result<void> added = (*pager)->add_region(shared, PageIndex{0}, PageCount{512});
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().code, EOPNOTSUPP);
  EXPECT_NE(added.error().message.find("share=off"), std::string::npos);
  munmap(shared, 512 * kPageSize);
}

TEST(PagerSetup, LockedMemoryNamesMemLock) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  if (mlock(rig.page(0), rig.bytes()) != 0) GTEST_SKIP() << "mlock is not permitted";
  if (madvise(rig.page(0), kPageSize, MADV_DONTNEED) == 0) {
    GTEST_SKIP() << "mlock does nothing under this sanitizer";
  }
  const Result<void> created = rig.create();
  ASSERT_FALSE(created);
  EXPECT_NE(created.error().message.find("mem-lock"), std::string::npos);
}

// The destination's memory control group is smaller than what the source was told it has.
TEST(PagerSetup, ALimitOfMemoryIsKnownBeforeAnythingIsSent) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  PagerConfig config = rig.config();
  config.limit = PageCount{25600};  // 100 MiB
  config.memory_limit = [] { return MemoryLimit{Bytes{64ULL << 20}, "memory.max of /vm"}; };
  const Result<std::unique_ptr<Pager>> refused = Pager::create(config, rig.plan());
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("memory.max of /vm is 64 MiB: lower main-memory to"),
            std::string::npos)
      << refused.error().message;
  config.memory_limit = [] { return MemoryLimit{Bytes{256ULL << 20}, "memory.max of /vm"}; };
  EXPECT_TRUE(Pager::create(config, rig.plan()));
}

TEST(PagerSetup, RefusesBadFigures) {
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  PagerConfig config = rig.config();
  config.limit = PageCount{10};
  EXPECT_FALSE(Pager::create(config, rig.plan()));
  config = rig.config();
  config.servers[0].capacity = PageCount{100};
  EXPECT_FALSE(Pager::create(config, rig.plan()));
  config = rig.config();
  config.chunk_pages = PageCount{32};
  EXPECT_FALSE(Pager::create(config, rig.plan()));
  config = rig.config();
  config.servers.clear();
  EXPECT_FALSE(Pager::create(config, rig.plan()));
  config = rig.config();
  config.open_uffd = []() -> Result<std::unique_ptr<Uffd>> {
    return make_error(EPERM, "not here");
  };
  EXPECT_FALSE(Pager::create(config, rig.plan()));
}

TEST(PagerSetup, OverlappingAndMissingRegionsAreRefused) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  Result<std::unique_ptr<Pager>> pager = Pager::create(rig.config(), rig.plan());
  ASSERT_TRUE(pager);
  ASSERT_TRUE((*pager)->add_region(rig.page(0), PageIndex{0}, PageCount{256}));
  EXPECT_FALSE((*pager)->add_region(rig.page(128), PageIndex{256}, PageCount{128}));
  EXPECT_FALSE((*pager)->add_region(rig.page(256), PageIndex{128}, PageCount{128}));
  EXPECT_FALSE((*pager)->add_region(rig.page(256), PageIndex{500}, PageCount{128}));
  EXPECT_FALSE((*pager)->add_region(rig.page(256) + 8, PageIndex{256}, PageCount{16}));
  ASSERT_TRUE((*pager)->claim());
  EXPECT_FALSE((*pager)->start());
}

}  // namespace
}  // namespace kintsugi::test
