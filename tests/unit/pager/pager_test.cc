// SPDX-License-Identifier: GPL-2.0-or-later
// The pager against servers that keep the protocol: every page right, in and out, both ways.
#include "pager/pager.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <thread>

#include "pager/faulty_uffd.h"
#include "pager/pager_rig.h"
#include "placement/reserve.h"

namespace kintsugi::test {
namespace {

TEST(Pager, PagesInFromOneServer) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().remote_pages == 0; }));
  const PagerStats stats = rig.pager().stats();
  EXPECT_EQ(stats.page_ins + stats.prefetched, 256U);
  EXPECT_GT(stats.prefetched, 0U);
  EXPECT_GT(stats.page_in_p50_ns, 0U);
  EXPECT_LE(stats.page_in_p50_ns, stats.page_in_p99_ns);
  // What is here is forgotten there.
  EXPECT_TRUE(eventually([&] { return rig.server(0).pages() == 0; }));
}

TEST(Pager, PagesInOnlyWhatIsTouchedWithoutPrefetch) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.prefetch = false;
  options.servers = 3;
  Rig rig(options);
  rig.run();
  for (std::uint64_t i = 0; i < options.pages; i += 7) rig.expect_page(i);
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().page_ins == 37; }));
  EXPECT_EQ(rig.pager().stats().prefetched, 0U);
}

TEST(Pager, PagesInFromThreeServersByManyThreads) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.pages = 2048;
  options.local = 512;
  options.servers = 3;
  Rig rig(options);
  rig.run();
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 2000; i++) rig.expect_page(random() % options.pages);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
}

TEST(Pager, ZeroPagesNeedNoServer) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  rig.pager().apply_zero(PageIndex{300}, PageCount{20}, true);
  rig.pager().apply_zero(PageIndex{305}, PageCount{2}, false);  // written again later
  rig.pager().apply_zero(PageIndex{0}, PageCount{10}, true);    // the main host's own stay
  ASSERT_TRUE(rig.pager().claim());
  EXPECT_EQ(rig.pager().stats().zero_pages, 18U);
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  for (std::uint64_t i = 300; i < 320; i++) {
    if (i == 305 || i == 306) {
      rig.expect_page(i);
    } else {
      rig.expect_zero(i);
    }
  }
  for (std::uint64_t i = 0; i < 300; i++) rig.expect_page(i);
  EXPECT_TRUE(eventually([&] { return rig.pager().stats().zero_pages == 0; }));
  // The server's stale copies of them are forgotten.
  for (std::uint64_t i = 320; i < 512; i++) rig.expect_page(i);
  EXPECT_TRUE(eventually([&] { return rig.server(0).pages() == 0; }));
}

// A reset, say, between the plan and the end of the stream.
TEST(Pager, WhatIsWrittenBehindItsBackCanBeDiscarded) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  write_pattern(rig.page(300), 300, 9);  // before the region is known
  ASSERT_TRUE(rig.create());
  for (std::uint64_t i = 400; i < 420; i++) write_pattern(rig.page(i), i, 9);
  ASSERT_TRUE(rig.pager().discard_remote());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
}

TEST(Pager, NothingIsPagedOutBeforeTheCommit) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.servers = 2;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  ASSERT_TRUE(rig.pager().connect());
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  const std::uint64_t puts = rig.server(0).requests(wire::Op::kPut);
  // Devices that are loaded may touch more than there is room for, and need not wait.
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  EXPECT_EQ(rig.server(0).requests(wire::Op::kPut), puts);
  EXPECT_EQ(rig.server(0).requests(wire::Op::kDiscard), 0U);
  EXPECT_EQ(rig.server(1).requests(wire::Op::kDiscard), 0U);
  EXPECT_GT(rig.pager().stats().resident_pages, options.limit);
  ASSERT_TRUE(rig.pager().commit());
  EXPECT_TRUE(rig.comes_within_limit());
}

TEST(Pager, EveryServerIsCommitted) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.servers = 3;
  Rig rig(options);
  rig.run();
  // Not within a second, by the next ping: at once.
  for (unsigned i = 0; i < 3; i++) {
    EXPECT_TRUE(eventually([&] { return rig.server(i).committed(); })) << i;
  }
}

TEST(Pager, ZeroPagesCanBeWritten) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.send_all();
  ASSERT_TRUE(rig.create());
  rig.pager().apply_zero(PageIndex{256}, PageCount{256}, true);
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  for (std::uint64_t i = 256; i < 512; i++) write_pattern(rig.page(i), i, 3);
  for (std::uint64_t i = 256; i < 512; i++) rig.expect_page(i, 3);
  EXPECT_EQ(rig.pager().stats().page_ins, 0U);
}

TEST(Pager, ClaimFencesTheSource) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  Rig rig(options);
  rig.run();
  EXPECT_TRUE(rig.server(0).committed());
  // The source's epoch no longer counts.
  auto connection = wire::Connection::connect(rig.server(0).uri(), {});
  ASSERT_TRUE(connection);
  const auto attached = (*connection)->attach(rig.config().session, Epoch{1});
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code, ESTALE);
  // Nor can another destination have it.
  Result<std::unique_ptr<Pager>> second = Pager::create(rig.config(), rig.plan());
  ASSERT_TRUE(second);
  const Result<void> claimed = (*second)->claim();
  ASSERT_FALSE(claimed);
  EXPECT_EQ(claimed.error().code, ESTALE);
  rig.expect_page(400);
}

class PageOut : public testing::TestWithParam<PageOutMethod> {
 protected:
  void SetUp() override {
    const auto uffd = open_uffd();
    if (!uffd) GTEST_SKIP() << uffd.error().message;
    const PageOutSupport support = probe_page_out(**uffd);
    // A stand-in for a kernel that has no UFFDIO_PAGEOUT needs UFFDIO_MOVE.
    const bool stand_in = GetParam() == PageOutMethod::kPageout && !support.pageout_reason.empty();
    const std::string& why_not = GetParam() == PageOutMethod::kWriteProtect
                                     ? support.write_protect_reason
                                     : support.move_reason;
    if (!why_not.empty()) GTEST_SKIP() << why_not;
    if (stand_in) options_.open_uffd = FaultyUffd::opener(std::make_shared<UffdHooks>());
    options_.method = GetParam();
  }
  RigOptions options_;
};

TEST_P(PageOut, MakesRoomAndLosesNothing) {
  RigOptions options = options_;
  options.local = 300;
  options.limit = 256;
  options.servers = 2;
  Rig rig(options);
  rig.run();
  ASSERT_TRUE(rig.settle());
  EXPECT_EQ(rig.pager().method(), GetParam());
  EXPECT_LE(rig.pager().stats().resident_pages, 256U - 8);
  for (int round = 0; round < 3; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
    for (std::uint64_t i = options.pages; i-- > 0;) rig.expect_page(i);
  }
  ASSERT_TRUE(rig.settle());
  const PagerStats stats = rig.pager().stats();
  EXPECT_GT(stats.page_outs, 1000U);
  EXPECT_TRUE(rig.comes_within_limit());
  EXPECT_TRUE(rig.balances());
  // Every page is in one place: the servers have what is remote, once discards are through.
  EXPECT_TRUE(eventually([&] {
    return rig.server(0).pages() + rig.server(1).pages() == rig.pager().stats().remote_pages;
  }));
}

TEST_P(PageOut, KeepsWhatTheGuestWrote) {
  RigOptions options = options_;
  options.limit = 256;
  Rig rig(options);
  rig.run();
  for (std::uint64_t generation = 1; generation <= 3; generation++) {
    for (std::uint64_t i = 0; i < options.pages; i++) {
      rig.expect_page(i, generation - 1);
      write_pattern(rig.page(i), i, generation);
    }
  }
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, 3);
  EXPECT_FALSE(rig.server(0).overflowed());
}

TEST_P(PageOut, HolesAndZeroPagesAreNotSent) {
  RigOptions options = options_;
  options.local = 384;
  options.limit = 300;
  Rig rig(options);
  rig.send_all();
  std::atomic<unsigned> sent_zero{0};
  rig.server(0).order([&](const wire::FrameHeader& header) {
    if (header.op != static_cast<std::uint16_t>(wire::Op::kPut)) return FakeServer::Act::kServe;
    for (std::uint64_t i = 0; i < header.count && header.page + i < 192; i++) {
      if (header.mask == 0 || (header.mask >> i & 1) != 0) sent_zero++;
    }
    return FakeServer::Act::kServe;
  });
  ASSERT_TRUE(rig.create());
  // Half of what is local is never populated or all zero.
  madvise(rig.page(0), 128 * kPageSize, MADV_DONTNEED);
  std::memset(rig.page(128), 0, 64 * kPageSize);
  ASSERT_TRUE(rig.pager().claim());
  ASSERT_TRUE(rig.pager().start());
  ASSERT_TRUE(rig.pager().commit());
  ASSERT_TRUE(rig.settle());
  for (std::uint64_t i = 384; i < 512; i++) rig.expect_page(i);
  for (std::uint64_t i = 192; i < 512; i++) rig.expect_page(i);
  ASSERT_TRUE(rig.settle());
  EXPECT_GT(rig.pager().stats().page_outs_zero, 64U);
  for (std::uint64_t i = 0; i < 192; i++) rig.expect_zero(i);
  for (std::uint64_t i = 192; i < 512; i++) rig.expect_page(i);
  EXPECT_EQ(sent_zero, 0U);
}

TEST_P(PageOut, TightCapacityIsNeverExceeded) {
  RigOptions options = options_;
  options.servers = 2;
  options.limit = 256;
  options.capacity = 160;  // 320 in all, for the 256 + reserve that are remote
  Rig rig(options);
  rig.run();
  for (std::uint64_t generation = 1; generation <= 3; generation++) {
    for (std::uint64_t i = 0; i < options.pages; i++) {
      rig.expect_page(i, generation - 1);
      write_pattern(rig.page(i), i, generation);
    }
  }
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, 3);
  EXPECT_FALSE(rig.server(0).overflowed());
  EXPECT_FALSE(rig.server(1).overflowed());
}

// The heart of the matter: threads that read and rewrite everything at random, with 40 % here.
TEST_P(PageOut, StressKeepsEveryByte) {
  for (const std::uint64_t chunk_pages : {1, 16, 128}) {
    RigOptions options = options_;
    options.pages = 2048;
    options.local = 768;
    options.limit = 819;
    options.reserve = 96;
    options.servers = 3;
    options.chunk_pages = chunk_pages;
    Rig rig(options);
    rig.run();
    constexpr unsigned kThreads = 4;
    std::vector<std::uint64_t> generations(options.pages, 0);
    std::atomic<std::uint64_t> wrong{0};
    std::vector<std::thread> threads;
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
    for (unsigned t = 0; t < kThreads; t++) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(t + 1);
        while (std::chrono::steady_clock::now() < until) {
          // Pages are one thread's each, so that a generation is known.
          const std::uint64_t first = random() % options.pages / kThreads * kThreads + t;
          const std::uint64_t run = 1 + random() % 24;
          for (std::uint64_t i = first; i < first + run * kThreads && i < options.pages;
               i += kThreads) {
            if (check_pattern(rig.page(i), i, generations[i]) != kWords) wrong++;
            if (random() % 2 == 0) write_pattern(rig.page(i), i, ++generations[i]);
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, generations[i]);
    EXPECT_EQ(wrong, 0U);
    ASSERT_TRUE(rig.settle());
    const PagerStats stats = rig.pager().stats();
    EXPECT_TRUE(rig.balances());
    RecordProperty("page_ins", static_cast<int>(stats.page_ins + stats.prefetched));
    std::printf(
        "chunk %3lu: %lu faults, %lu page-ins, %lu prefetched, %lu out, %lu from queue, "
        "%lu cancels, %lu hard waits, in p50 %lu us\n",
        chunk_pages, stats.faults, stats.page_ins, stats.prefetched, stats.page_outs,
        stats.queue_hits, stats.write_cancels, stats.hard_waits, stats.page_in_p50_ns / 1000);
  }
}

TEST_P(PageOut, ColdChunksGoFirst) {
  auto history = AccessHistory::create({.pages = PageCount{512}, .chunk_pages = PageCount{16}});
  ASSERT_TRUE(history);
  // Of what is local, chunks 4 to 7 are hot.
  (*history)->tick();
  (*history)->mark_range(PageIndex{64}, PageCount{64});
  RigOptions options = options_;
  options.limit = 200;
  options.history = history->get();
  Rig rig(options);
  rig.run();
  ASSERT_TRUE(rig.settle());
  const std::uint64_t before = rig.pager().stats().page_ins;
  for (std::uint64_t i = 64; i < 128; i++) rig.expect_page(i);
  EXPECT_EQ(rig.pager().stats().page_ins, before);
}

INSTANTIATE_TEST_SUITE_P(Methods, PageOut,
                         testing::Values(PageOutMethod::kMove, PageOutMethod::kWriteProtect,
                                         PageOutMethod::kPageout),
                         [](const testing::TestParamInfo<PageOutMethod>& info) {
                           return info.param == PageOutMethod::kMove           ? "Move"
                                  : info.param == PageOutMethod::kWriteProtect ? "WriteProtect"
                                                                               : "Pageout";
                         });

// From /proc/self: KiB of a field such as "Anonymous:".
std::uint64_t proc_kib(const char* file, const std::string& field) {
  std::ifstream in(file);
  for (std::string word; in >> word;) {
    std::uint64_t kib = 0;
    if (word == field && in >> kib) return kib;
  }
  ADD_FAILURE() << "no " << field << " in " << file;
  return 0;
}

// What paging takes is what is checked against the host's limit, and documented.
TEST(Pager, TakesTheMemoryThatItSays) {
  SKIP_WITHOUT_UFFD();
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer takes memory of its own";
#endif
  constexpr std::uint64_t kHugePage = 512;
  RigOptions options;
  options.pages = 1U << 21;  // 8 GiB
  options.local = 16;
  options.limit = 8192;
  options.servers = 3;
  options.zero = true;
  const auto own_kib = [] {
    return proc_kib("/proc/self/smaps_rollup", "Anonymous:") +
           proc_kib("/proc/self/status", "VmPTE:");
  };
  auto history = AccessHistory::create({.pages = PageCount{options.pages},
                                        .chunk_pages = PageCount{options.chunk_pages},
                                        .policy = AccessPolicy::kAging});
  ASSERT_TRUE(history);
  options.history = history->get();
  Rig rig(options);
  const std::uint64_t before = own_kib();
  rig.run();
  for (std::uint64_t i = 0; i < options.pages; i++) (*history)->mark(PageIndex{i});
  // One page of each table.
  for (std::uint64_t i = 0; i < options.pages; i += kHugePage) rig.page(i)[0] = 1;
  const std::uint64_t guest_kib = rig.pager().stats().resident_pages * 4;
  const double taken = static_cast<double>(own_kib() - before - guest_kib);
  // But for what KVM would have, and the eviction queue.
  const double said = static_cast<double>(
      (paging_memory(PageCount{options.pages}, options.servers, Bytes{0}).value -
       8 * options.pages) >>
      10);
  std::printf("taken %.0f KiB, said %.0f KiB\n", taken, said);
  EXPECT_LE(taken, said);
  EXPECT_GE(taken, said / 2) << "it asks for far more than it takes";
}

TEST(Pager, AfterForkNothingIsLost) {
  SKIP_WITHOUT_UFFD();
  RigOptions options;
  options.limit = 256;
  Rig rig(options);
  rig.run();
  ASSERT_TRUE(rig.settle());
  // The region is kept from children; undone here to have pages that are shared with one, which
  // MOVE refuses until they are made our own.
  madvise(rig.page(0), rig.bytes(), MADV_DOFORK);
  int to_child[2];
  ASSERT_EQ(pipe(to_child), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    char byte = 0;
    close(to_child[1]);
    [[maybe_unused]] const ssize_t n = read(to_child[0], &byte, 1);
    _exit(0);
  }
  close(to_child[0]);
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
  close(to_child[1]);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i);
}

}  // namespace
}  // namespace kintsugi::test
