// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/wait_table.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

namespace kintsugi::test {
namespace {

WaitTable make() {
  Result<WaitTable> table = WaitTable::create();
  if (!table) ADD_FAILURE() << table.error().message;
  return std::move(*table);
}

TEST(WaitTable, TellsWhoWaitsLongest) {
  WaitTable table = make();
  const std::uint64_t now = now_ns();
  table.begin(PageIndex{7}, now - 100, 70);
  table.begin(PageIndex{8}, now - 300, 80);
  table.begin(PageIndex{0}, now - 200, 90);
  table.begin(PageIndex{7}, now, 71);  // waits already
  EXPECT_EQ(table.waiting(), 3U);
  const std::vector<PageWait> waits = table.list(2);
  ASSERT_EQ(waits.size(), 2U);
  EXPECT_EQ(waits[0].page, PageIndex{8});
  EXPECT_EQ(waits[0].thread_id, 80U);
  EXPECT_EQ(waits[1].page, PageIndex{0});
  table.end(PageIndex{8});
  table.end(PageIndex{8});
  table.end(PageIndex{9});
  EXPECT_EQ(table.waiting(), 2U);
  EXPECT_EQ(table.list(9).back().since_ns, now - 100);
}

TEST(WaitTable, MeasuresFromTheFirstFault) {
  WaitTable table = make();
  table.begin(PageIndex{5}, now_ns() - 1'000'000'000, 1);
  table.begin(PageIndex{5}, now_ns(), 1);
  table.end(PageIndex{5});
  EXPECT_GE(table.latency().max_ns(), 1'000'000'000U);
  table.end(PageIndex{5});
  table.begin(PageIndex{5}, now_ns(), 1);
  table.end(PageIndex{5});
  EXPECT_LT(table.latency().quantile_ns(0.5), 1'000'000'000U);
}

// As many as the pager lets wait.
TEST(WaitTable, HoldsAllThatMayWait) {
  WaitTable table = make();
  constexpr std::uint64_t kMany = 8192;
  for (std::uint64_t i = 0; i < kMany; i++) table.begin(PageIndex{i}, 1, 1);
  EXPECT_EQ(table.waiting(), kMany);
  for (std::uint64_t i = 0; i < kMany; i++) table.end(PageIndex{i});
  EXPECT_EQ(table.waiting(), 0U);
  // A full bucket leaves out the ninth, and nothing else.
  for (std::uint64_t i = 0; i < 1 << 20; i++) table.begin(PageIndex{i}, 1, 1);
  EXPECT_EQ(table.waiting(), 32768U);
}

// F waits for a page that P is about to complete: whichever is later sees the other.
TEST(WaitTable, NeitherThreadMissesTheOther) {
  WaitTable table = make();
  constexpr std::uint64_t kRounds = 20'000;
  std::atomic<std::uint64_t> round{0};
  std::atomic<std::uint64_t> ready{0};
  std::atomic<bool> complete{false};
  std::thread prefetch([&] {
    for (std::uint64_t i = 1; i <= kRounds; i++) {
      while (round.load() != i) std::this_thread::yield();
      complete.store(true, std::memory_order_release);
      table.fence();
      table.end(PageIndex{i});
      ready.store(i);
    }
  });
  for (std::uint64_t i = 1; i <= kRounds; i++) {
    complete.store(false, std::memory_order_relaxed);
    round.store(i);
    table.begin(PageIndex{i}, now_ns(), 1);
    if (complete.load(std::memory_order_acquire)) table.end(PageIndex{i});
    while (ready.load() != i) std::this_thread::yield();
    ASSERT_EQ(table.waiting(), 0U) << i;
  }
  prefetch.join();
}

// Two pages that are completed while both are put in: neither stays.
TEST(WaitTable, NoneStaysForEver) {
  WaitTable table = make();
  constexpr std::uint64_t kRounds = 100'000;
  std::atomic<std::uint64_t> round{0};
  std::atomic<std::uint64_t> ready{0};
  std::array<std::atomic<bool>, 2> complete{};
  std::thread prefetch([&] {
    for (std::uint64_t i = 1; i <= kRounds; i++) {
      while (round.load() != i) std::this_thread::yield();
      for (const unsigned which : {0U, 1U}) {
        complete[which].store(true, std::memory_order_release);
        table.fence();
        table.end(PageIndex{2 * i + which});
      }
      ready.store(i);
    }
  });
  std::uint64_t stayed = 0;
  for (std::uint64_t i = 1; i <= kRounds; i++) {
    for (std::atomic<bool>& flag : complete) flag.store(false, std::memory_order_relaxed);
    round.store(i);
    for (const unsigned which : {0U, 1U}) {
      const PageIndex page{2 * i + which};
      table.begin(page, now_ns(), 1);
      if (complete[which].load(std::memory_order_acquire)) table.end(page);
    }
    while (ready.load() != i) std::this_thread::yield();
    stayed += table.list(9).size();
    for (const PageWait& wait : table.list(9)) table.end(wait.page);
  }
  prefetch.join();
  EXPECT_EQ(stayed, 0U);
}

TEST(WaitTable, AWaitThatBeganLaterIsAnothers) {
  WaitTable table = make();
  const std::uint64_t now = now_ns();
  table.begin(PageIndex{5}, now, 1);
  table.end(PageIndex{5}, now - 1);
  EXPECT_EQ(table.waiting(), 1U);
  table.end(PageIndex{5}, now);
  EXPECT_EQ(table.waiting(), 0U);
}

}  // namespace
}  // namespace kintsugi::test
