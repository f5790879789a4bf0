// SPDX-License-Identifier: GPL-2.0-or-later
#include "access/history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

namespace kintsugi {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<AccessHistory> make(AccessPolicy policy, std::uint64_t pages, std::uint64_t chunk,
                                    unsigned shift_period = 1, unsigned turn = 0) {
  auto made = AccessHistory::create({.pages = PageCount{pages},
                                     .chunk_pages = PageCount{chunk},
                                     .policy = policy,
                                     .shift_period_ticks = shift_period,
                                     .clock_turn_ticks = turn});
  EXPECT_TRUE(made.ok()) << made.error().message;
  return std::move(*made);
}

std::vector<std::uint16_t> all_ranks(const AccessHistory& history) {
  std::vector<std::uint16_t> ranks(history.chunks());
  history.ranks(ChunkIndex{0}, ranks);
  return ranks;
}

void feed(AccessHistory& history, std::uint64_t first, std::uint64_t bits, std::uint64_t count) {
  history.feed(PageIndex{first}, &bits, PageCount{count});
}

std::uint64_t resident_bytes() {
  unsigned long size = 0;
  unsigned long resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  EXPECT_EQ(2, std::fscanf(file, "%lu %lu", &size, &resident));
  std::fclose(file);
  return resident * 4096;
}

TEST(AccessHistoryCreate, RefusesChunkSizesThatAreNotPowersOfTwo) {
  for (const std::uint64_t bad : {0, 3, 24, 65535}) {
    const auto made =
        AccessHistory::create({.pages = PageCount{64}, .chunk_pages = PageCount{bad}});
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(EINVAL, made.error().code);
    EXPECT_THAT(made.error().message, HasSubstr("not a power of two"));
  }
  EXPECT_THAT(check_chunk_pages(PageCount{24}).error().message, HasSubstr("use 64 KiB"));
  EXPECT_THAT(check_chunk_pages(PageCount{65536}).error().message, HasSubstr("at most 128 MiB"));
}

TEST(AccessHistoryCreate, RefusesNoPagesAndNoShiftPeriod) {
  EXPECT_FALSE(AccessHistory::create({.pages = PageCount{0}}).ok());
  EXPECT_FALSE(AccessHistory::create({.pages = PageCount{1ULL << 60}}).ok());
  EXPECT_FALSE(AccessHistory::create({.pages = PageCount{1}, .shift_period_ticks = 0}).ok());
  EXPECT_FALSE(
      AccessHistory::create({.pages = PageCount{1}, .policy = static_cast<AccessPolicy>(7)}).ok());
}

// P1 figure 6 (a): an accessed bit of 1 sets the page's bit, 0 leaves it.
TEST(AccessHistoryClock, AccumulatesBits) {
  auto history = make(AccessPolicy::kClock, 8, 1);
  feed(*history, 0, 0b00010010, 8);
  history->tick();
  feed(*history, 0, 0b00010001, 8);
  EXPECT_THAT(all_ranks(*history), ElementsAre(1, 1, 0, 0, 1, 0, 0, 0));
}

// P1 4-4: the sum of the bits.
TEST(AccessHistoryClock, RanksAChunkByItsSum) {
  auto history = make(AccessPolicy::kClock, 12, 4);
  feed(*history, 0, 0b1000'1011'0000, 12);
  EXPECT_THAT(all_ranks(*history), ElementsAre(0, 3, 1));
  EXPECT_EQ(3, history->rank(ChunkIndex{1}));
  EXPECT_EQ(0, history->rank(ChunkIndex{3}));
}

// P1 figure 6 (b): bits gather in the top bit, and the byte shifts right each period.
TEST(AccessHistoryAging, GathersInTheTopBitAndShifts) {
  auto history = make(AccessPolicy::kAging, 4, 1, 2);
  feed(*history, 0, 0b0001, 4);
  history->tick();
  feed(*history, 0, 0b0010, 4);  // the same period: no shift yet
  EXPECT_THAT(all_ranks(*history), ElementsAre(0x80, 0x80, 0, 0));
  history->tick();
  EXPECT_THAT(all_ranks(*history), ElementsAre(0x40, 0x40, 0, 0));
  feed(*history, 0, 0b0101, 4);
  EXPECT_THAT(all_ranks(*history), ElementsAre(0xc0, 0x40, 0x80, 0));
  for (int i = 0; i < 14; ++i) history->tick();
  EXPECT_THAT(all_ranks(*history), ElementsAre(0x01, 0, 0x01, 0));
  history->tick();
  history->tick();
  EXPECT_THAT(all_ranks(*history), Each(0));
}

// P1 4-4: the maximum, so that one recent access outranks many old ones.
TEST(AccessHistoryAging, RanksAChunkByItsMaximum) {
  auto history = make(AccessPolicy::kAging, 32, 16);
  history->mark_range(PageIndex{0}, PageCount{16});
  history->tick();
  history->mark(PageIndex{31});
  EXPECT_THAT(all_ranks(*history), ElementsAre(0x40, 0x80));
}

TEST(AccessHistoryClock, HandClearsABoundedPartPerTickAndTheWholeInATurn) {
  constexpr std::uint64_t kPages = 64 * 100;
  auto history = make(AccessPolicy::kClock, kPages, 64, 1, 10);
  history->mark_range(PageIndex{0}, PageCount{kPages});
  for (unsigned tick = 1; tick <= 10; ++tick) {
    history->tick();
    const auto ranks = all_ranks(*history);
    EXPECT_EQ(tick * 10, std::ranges::count(ranks, 0));
    EXPECT_TRUE(std::is_sorted(ranks.begin(), ranks.end()));
  }
}

TEST(AccessHistoryClock, AnEvictorCanMoveTheHand) {
  auto history = make(AccessPolicy::kClock, 256, 64);
  history->mark_range(PageIndex{0}, PageCount{256});
  history->tick();  // a turn of 0 ticks: only by hand
  EXPECT_THAT(all_ranks(*history), ElementsAre(64, 64, 64, 64));
  history->advance_hand(PageCount{65});
  EXPECT_THAT(all_ranks(*history), ElementsAre(0, 0, 64, 64));
  history->mark(PageIndex{0});
  history->advance_hand(PageCount{~0ULL});  // at most one turn
  EXPECT_THAT(all_ranks(*history), Each(0));
}

TEST(AccessHistoryFeed, IgnoresWhatLiesOutside) {
  for (const AccessPolicy policy : {AccessPolicy::kClock, AccessPolicy::kAging}) {
    auto history = make(policy, 70, 1);
    feed(*history, 68, ~0ULL, 64);
    feed(*history, 70, ~0ULL, 64);
    feed(*history, 0, ~0ULL, 2);
    feed(*history, 5, ~0ULL, 0);
    history->mark(PageIndex{70});
    history->mark_range(PageIndex{69}, PageCount{~0ULL});
    history->mark_range(PageIndex{1000}, PageCount{1});
    const auto ranks = all_ranks(*history);
    EXPECT_EQ(4, std::ranges::count_if(ranks, [](auto rank) { return rank != 0; }));
    EXPECT_NE(0, history->rank(ChunkIndex{69}));
    EXPECT_EQ(0, history->rank(ChunkIndex{70}));
    std::vector<std::uint16_t> past(4, 7);
    history->ranks(ChunkIndex{69}, past);
    EXPECT_THAT(past, ElementsAre(ranks[69], 0, 0, 0));
    history->ranks(ChunkIndex{1ULL << 60}, past);
    EXPECT_THAT(past, Each(0));
  }
}

TEST(AccessHistoryMemory, IsPaidForOnlyWhereTouched) {
  const std::uint64_t before = resident_bytes();
  constexpr std::uint64_t kPages = 1ULL << 29;  // 2 TiB
  auto aging = make(AccessPolicy::kAging, kPages, 16);
  auto clock = make(AccessPolicy::kClock, kPages, 16);
  EXPECT_EQ(Bytes{kPages}, aging->memory_at_rest());
  EXPECT_EQ(Bytes{kPages / 8}, clock->memory_at_rest());
  aging->mark(PageIndex{kPages - 1});
  clock->mark(PageIndex{kPages - 1});
  EXPECT_EQ(0x80, aging->rank(ChunkIndex{aging->chunks() - 1}));
  EXPECT_EQ(1, clock->rank(ChunkIndex{clock->chunks() - 1}));
  EXPECT_LT(resident_bytes(), before + (8 << 20));
}

// A byte (or bit) a page, kept the obvious way.
struct Model {
  AccessPolicy policy;
  std::vector<std::uint8_t> ages;
  unsigned shift_period;
  unsigned turn;
  unsigned ticks = 0;
  std::uint64_t hand = 0;

  void mark(std::uint64_t page) {
    if (page < ages.size()) ages[page] |= policy == AccessPolicy::kClock ? 1 : 0x80;
  }
  void advance(std::uint64_t groups) {
    const std::uint64_t all = (ages.size() + 63) / 64;
    for (std::uint64_t i = 0; i < groups; ++i, hand = (hand + 1) % all) {
      for (std::uint64_t page = hand * 64; page < std::min(ages.size(), (hand + 1) * 64); ++page) {
        ages[page] = 0;
      }
    }
  }
  void tick() {
    if (policy == AccessPolicy::kClock) {
      if (turn != 0) advance(((ages.size() + 63) / 64 + turn - 1) / turn);
    } else if (++ticks % shift_period == 0) {
      for (std::uint8_t& age : ages) age >>= 1;
    }
  }
  [[nodiscard]] std::vector<std::uint16_t> ranks(std::uint64_t chunk) const {
    std::vector<std::uint16_t> out;
    for (std::uint64_t first = 0; first < ages.size(); first += chunk) {
      const auto begin = ages.begin() + first;
      const auto end = ages.begin() + std::min<std::uint64_t>(first + chunk, ages.size());
      out.push_back(policy == AccessPolicy::kClock ? std::accumulate(begin, end, 0)
                                                   : *std::max_element(begin, end));
    }
    return out;
  }
};

struct Pair {
  std::unique_ptr<AccessHistory> history;
  Model model;
  std::uint64_t chunk;
};

// A history and its model after random scans, marks and ticks.
Pair random_history() {
  const auto policy = *rc::gen::element(AccessPolicy::kClock, AccessPolicy::kAging);
  const auto pages = *rc::gen::inRange<std::uint64_t>(1, 1500);
  const std::uint64_t chunk = 1ULL << *rc::gen::inRange(0, 12);
  const auto shift_period = *rc::gen::inRange(1U, 4U);
  const auto turn = *rc::gen::inRange(0U, 12U);
  Pair pair{make(policy, pages, chunk, shift_period, turn),
            Model{policy, std::vector<std::uint8_t>(pages), shift_period, turn}, chunk};
  const int steps = *rc::gen::inRange(0, 25);
  for (int step = 0; step < steps; ++step) {
    const auto first = *rc::gen::inRange<std::uint64_t>(0, pages + 80);
    switch (*rc::gen::inRange(0, 5)) {
      case 0:
        pair.history->mark(PageIndex{first});
        pair.model.mark(first);
        break;
      case 1: {
        const auto count = *rc::gen::inRange<std::uint64_t>(0, pages + 80);
        pair.history->mark_range(PageIndex{first}, PageCount{count});
        for (std::uint64_t i = 0; i < count; ++i) pair.model.mark(first + i);
        break;
      }
      case 2:
        pair.history->tick();
        pair.model.tick();
        break;
      default: {
        const auto words = *rc::gen::container<std::vector<std::uint64_t>>(
            rc::gen::oneOf(rc::gen::just(std::uint64_t{0}), rc::gen::arbitrary<std::uint64_t>(),
                           rc::gen::just(~std::uint64_t{0})));
        const auto count = *rc::gen::inRange<std::uint64_t>(0, words.size() * 64 + 1);
        pair.history->feed(PageIndex{first}, words.data(), PageCount{count});
        for (std::uint64_t i = 0; i < count; ++i) {
          if ((words[i / 64] >> (i % 64) & 1) != 0) pair.model.mark(first + i);
        }
      }
    }
  }
  return pair;
}

RC_GTEST_PROP(AccessHistoryProperty, RanksAsTheModelDoesForEveryChunkSize, ()) {
  const Pair pair = random_history();
  const auto ranks = all_ranks(*pair.history);
  RC_ASSERT(ranks == pair.model.ranks(pair.chunk));
  for (std::uint64_t i = 0; i < ranks.size(); ++i) {
    RC_ASSERT(pair.history->rank(ChunkIndex{i}) == ranks[i]);
  }
  for (std::uint64_t chunk = 1; chunk <= 4096; chunk *= 2) {
    const auto expected = pair.model.ranks(chunk);
    std::vector<std::uint16_t> got(expected.size());
    pair.history->ranks(PageCount{chunk}, ChunkIndex{0}, got);
    RC_ASSERT(got == expected);
  }
}

RC_GTEST_PROP(AccessHistoryProperty, TransferKeepsEveryRank, ()) {
  const Pair source = random_history();
  // The destination has a past of its own, which must not show.
  auto destination = make(source.model.policy, source.model.ages.size(), source.chunk,
                          source.model.shift_period, 0);
  destination->mark_range(PageIndex{*rc::gen::inRange<std::uint64_t>(0, 1500)}, PageCount{700});
  destination->tick();

  std::vector<std::uint16_t> sent(source.history->chunks());
  source.history->export_ranks(ChunkIndex{0}, sent);
  RC_ASSERT(destination->import_ranks(ChunkIndex{0}, sent).ok());
  RC_ASSERT(all_ranks(*destination) == sent);

  // And it ages on from there as the source does.
  if (source.model.policy == AccessPolicy::kAging) {
    for (unsigned i = 0; i < source.model.shift_period; ++i) {
      source.history->tick();
      destination->tick();
    }
    RC_ASSERT(all_ranks(*destination) == all_ranks(*source.history));
  }
}

TEST(AccessHistoryImport, SpreadsTheRankOverTheChunk) {
  auto clock = make(AccessPolicy::kClock, 128, 64);
  ASSERT_TRUE(clock->import_rank(ChunkIndex{1}, 8));
  std::vector<std::uint16_t> parts(16);
  clock->ranks(PageCount{8}, ChunkIndex{0}, parts);
  EXPECT_THAT(parts, ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));

  auto aging = make(AccessPolicy::kAging, 8, 4);
  ASSERT_TRUE(aging->import_rank(ChunkIndex{0}, 0x21));
  std::vector<std::uint16_t> pages(8);
  aging->ranks(PageCount{1}, ChunkIndex{0}, pages);
  EXPECT_THAT(pages, ElementsAre(0x21, 0x21, 0x21, 0x21, 0, 0, 0, 0));
}

TEST(AccessHistoryImport, RefusesRanksThatCannotBe) {
  auto clock = make(AccessPolicy::kClock, 20, 16);
  EXPECT_TRUE(clock->import_rank(ChunkIndex{0}, 16));
  EXPECT_FALSE(clock->import_rank(ChunkIndex{0}, 17));
  EXPECT_TRUE(clock->import_rank(ChunkIndex{1}, 4));
  EXPECT_FALSE(clock->import_rank(ChunkIndex{1}, 5));  // the last chunk has four pages
  EXPECT_FALSE(clock->import_rank(ChunkIndex{2}, 0));
  EXPECT_THAT(all_ranks(*clock), ElementsAre(16, 4));

  auto aging = make(AccessPolicy::kAging, 20, 16);
  EXPECT_TRUE(aging->import_rank(ChunkIndex{1}, 255));
  EXPECT_FALSE(aging->import_rank(ChunkIndex{1}, 256));
  const std::vector<std::uint16_t> ranks = {1, 300};
  const auto result = aging->import_ranks(ChunkIndex{0}, ranks);
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("chunk 1 the rank 300"));
}

// Marks from several threads, in the same words as a scan and shifts, are all kept.
TEST(AccessHistoryThreads, AgingLosesNoMark) {
  constexpr std::uint64_t kPages = 4096;
  constexpr unsigned kThreads = 3;
  auto history = make(AccessPolicy::kAging, kPages, 16);
  std::vector<std::thread> markers;
  markers.reserve(kThreads);
  for (unsigned t = 0; t < kThreads; ++t) {
    markers.emplace_back([&, t] {
      for (std::uint64_t page = t; page < kPages; page += kThreads + 1) {
        history->mark(PageIndex{page});
        (void)history->rank(ChunkIndex{page / 16});
      }
    });
  }
  // Every fourth page belongs to the scan. Seven shifts: no bit falls off the end.
  const std::vector<std::uint64_t> scan(kPages / 64, 0x8888888888888888);
  for (int tick = 0; tick < 7; ++tick) {
    history->tick();
    history->feed(PageIndex{0}, scan.data(), PageCount{kPages});
  }
  for (std::thread& marker : markers) marker.join();
  std::vector<std::uint16_t> pages(kPages);
  history->ranks(PageCount{1}, ChunkIndex{0}, pages);
  EXPECT_THAT(pages, Each(::testing::Ge(1)));
}

TEST(AccessHistoryThreads, ClockWithTheHandMovedByAnother) {
  constexpr std::uint64_t kPages = 4096;
  auto history = make(AccessPolicy::kClock, kPages, 16, 1, 8);
  std::thread evictor([&] {
    for (int i = 0; i < 2000; ++i) {
      history->advance_hand(PageCount{64});
      (void)history->rank(ChunkIndex{static_cast<std::uint64_t>(i) % 256});
    }
  });
  std::thread marker([&] {
    for (std::uint64_t i = 0; i < 20000; ++i) history->mark(PageIndex{i * 37 % kPages});
  });
  const std::vector<std::uint64_t> scan(kPages / 64, ~0ULL);
  for (int i = 0; i < 200; ++i) {
    history->tick();
    history->feed(PageIndex{0}, scan.data(), PageCount{kPages});
  }
  evictor.join();
  marker.join();
  history->feed(PageIndex{0}, scan.data(), PageCount{kPages});
  EXPECT_THAT(all_ranks(*history), Each(16));
}

}  // namespace
}  // namespace kintsugi
