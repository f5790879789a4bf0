// SPDX-License-Identifier: GPL-2.0-or-later
// What holds for every policy: pairs that are true, bounded and repeatable, and a placement that
// stays true.
#include "tiering/tiering.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cerrno>
#include <set>
#include <string>
#include <vector>

#include "tiering/mq.h"
#include "tiering/rig.h"

namespace kintsugi {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A guest and a host for some decision periods, small enough to shrink well.
struct Scenario {
  std::uint64_t pages;
  std::set<std::uint64_t> fast;
  std::size_t limit;
  std::vector<std::set<std::uint64_t>> scans;
  std::vector<bool> outcomes;  // of pairs, in turn
};

Scenario any_scenario() {
  Scenario s;
  s.pages = *rc::gen::inRange<std::uint64_t>(1, 200);
  const auto some_page = rc::gen::inRange<std::uint64_t>(0, s.pages);
  s.fast = *rc::gen::container<std::set<std::uint64_t>>(some_page);
  s.limit = *rc::gen::inRange<std::size_t>(0, 12);
  s.scans = *rc::gen::container<std::vector<std::set<std::uint64_t>>>(
      rc::gen::container<std::set<std::uint64_t>>(some_page));
  s.outcomes = *rc::gen::container<std::vector<bool>>(
      16, rc::gen::weightedOneOf<bool>({{4, rc::gen::just(true)}, {1, rc::gen::just(false)}}));
  return s;
}

std::string any_policy() {
  std::vector<std::string> names;
  for (const PolicyName& policy : policy_names()) names.emplace_back(policy.name);
  return *rc::gen::elementOf(names);
}

// Plays the scenario, a decision every second scan, and returns every pair; checks on the way.
std::vector<SwapPair> play(const Scenario& s, const std::string& policy) {
  const auto tiering = make_tiering(s.pages, policy);
  std::set<std::uint64_t> fast = s.fast;
  for (const std::uint64_t number : fast) {
    RC_ASSERT(tiering->set_fast(page(number), PageCount{1}, true).ok());
  }
  RC_ASSERT(tiering->set("limit", static_cast<double>(s.limit)).ok());
  std::vector<SwapPair> all;
  std::uint64_t fast_writes = 0;
  std::uint64_t slow_writes = 0;
  std::uint64_t swapped = 0;
  std::int64_t now_s = 0;
  for (const auto& written : s.scans) {
    scan(*tiering, now_s += 3, written);
    for (const std::uint64_t number : written)
      ++(fast.contains(number) ? fast_writes : slow_writes);
    if (now_s % 2 != 0) continue;
    const std::vector<SwapPair> pairs = decide(*tiering);
    RC_ASSERT(pairs.size() <= s.limit);
    std::set<PageIndex> named;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      RC_ASSERT(named.insert(pairs[i].slow).second);
      RC_ASSERT(named.insert(pairs[i].fast).second);
      RC_ASSERT(!fast.contains(pairs[i].slow.value));
      RC_ASSERT(fast.contains(pairs[i].fast.value));
    }
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const bool outcome = s.outcomes[(all.size() + i) % s.outcomes.size()];
      RC_ASSERT(tiering->report(i, outcome));
      if (!outcome) continue;
      fast.erase(pairs[i].fast.value);
      fast.insert(pairs[i].slow.value);
      ++swapped;
    }
    all.insert(all.end(), pairs.begin(), pairs.end());
  }
  for (std::uint64_t number = 0; number < s.pages; ++number) {
    RC_ASSERT(tiering->is_fast(page(number)) == fast.contains(number));
  }
  const TieringStats stats = tiering->stats();
  RC_ASSERT(stats.fast_writes == fast_writes);
  RC_ASSERT(stats.slow_writes == slow_writes);
  RC_ASSERT(stats.fast_pages == PageCount{s.fast.size()});
  RC_ASSERT(stats.pairs == all.size());
  RC_ASSERT(stats.swapped == swapped);
  RC_ASSERT(stats.refused == all.size() - swapped);
  return all;
}

RC_GTEST_PROP(TieringProperty, PairsAreTrueApartAndBoundedAndThePlacementStaysTrue, ()) {
  const Scenario s = any_scenario();
  play(s, any_policy());
}

RC_GTEST_PROP(TieringProperty, TheSameCallsGiveTheSamePairs, ()) {
  const Scenario s = any_scenario();
  const std::string policy = any_policy();
  RC_ASSERT(play(s, policy) == play(s, policy));
}

// A model of P4's counts beside MQ: pages are in one queue at most, and counts survive.
RC_GTEST_PROP(MqProperty, APageIsInOneQueueAtMostAndCountsSurvive, ()) {
  const Scenario s = any_scenario();
  PolicyRig<MqPolicy> mq(s.pages);
  for (const std::uint64_t number : s.fast) mq.placement.set(page(number), true);
  std::map<PageIndex, std::uint32_t> counts;
  std::int64_t now_s = 0;
  for (const auto& written : s.scans) {
    mq.policy.begin_scan(1000 * (now_s += 3));
    for (const std::uint64_t number : written) {
      mq.policy.written(number / 64, std::uint64_t{1} << (number % 64));
      ++counts[page(number)];
    }
    mq.policy.end_scan();
    std::set<PageIndex> seen;
    for (unsigned queue = 0; queue < 8; ++queue) {
      for (const PageIndex p : mq.policy.queue(queue)) RC_ASSERT(seen.insert(p).second);
    }
    for (const PageIndex p : mq.policy.victims()) {
      RC_ASSERT(seen.insert(p).second);
      RC_ASSERT(mq.placement.is_fast(p));
    }
    for (auto& [p, count] : counts) {
      // P4 clears the count of a slow page that leaves the queues, and of no other.
      if (!seen.contains(p) && !mq.placement.is_fast(p)) count = 0;
      RC_ASSERT(mq.policy.count(p) == count);
    }
    if (now_s % 2 == 0) {
      for (const SwapPair& pair : mq.decide_and_swap(s.limit)) counts[pair.fast] = 0;
    }
  }
}

TEST(Tiering, RefusesWhatIsNoVmAndNoPolicy) {
  EXPECT_THAT(Tiering::create(PageCount{0}, "mq").error().message, HasSubstr("1 to 4294967295"));
  EXPECT_FALSE(Tiering::create(PageCount{std::uint64_t{1} << 32}, "mq").ok());
  const auto none = Tiering::create(PageCount{1}, "best");
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(EINVAL, none.error().code);
  EXPECT_THAT(none.error().message, HasSubstr("'best' is unknown: use one of none, "));
}

TEST(Tiering, RefusesRangesPastTheEnd) {
  const auto tiering = make_tiering(100, "mq");
  EXPECT_TRUE(tiering->set_fast(page(90), PageCount{10}, true).ok());
  EXPECT_THAT(tiering->set_fast(page(90), PageCount{11}, true).error().message,
              HasSubstr("within the VM's 100 pages"));
  EXPECT_FALSE(tiering->set_fast(page(1), PageCount{~std::uint64_t{0}}, true).ok());
  EXPECT_EQ(PageCount{10}, tiering->stats().fast_pages);
}

TEST(Tiering, BitmapsMayBeginAnywhereAndEndInAWord) {
  const auto tiering = make_tiering(130, "mq");
  const std::uint64_t bits[] = {0xf000000000000001, 0xffffffffffffffff};
  tiering->begin_scan(0);
  tiering->feed_written(page(10), bits, PageCount{66});       // 10, 70 to 73, 74, 75
  tiering->feed_written(page(128), bits + 1, PageCount{64});  // 128, 129, and past the end
  tiering->feed_written(page(1000), bits, PageCount{64});
  tiering->end_scan();
  EXPECT_EQ(9U, tiering->stats().slow_writes);
  EXPECT_EQ(9U, tiering->stats().tracked_pages);
}

TEST(Tiering, ParametersAreCheckedAndKeptByName) {
  const auto tiering = make_tiering(100, "mq");
  ASSERT_TRUE(tiering->set("life-time-ms", 3000).ok());
  EXPECT_EQ(3000, *tiering->get("life-time-ms"));
  EXPECT_EQ(8, *tiering->get("queues"));
  EXPECT_EQ(1000, *tiering->get("limit"));
  EXPECT_THAT(tiering->set("queues", 0).error().message,
              HasSubstr("queues cannot be 0: use a whole number from 1 to 16"));
  EXPECT_EQ(EINVAL, tiering->set("queues", 2.5).error().code);
  EXPECT_EQ(EINVAL, tiering->set("queues", std::numeric_limits<double>::quiet_NaN()).error().code);
  const auto unknown = tiering->set("queue", 1);
  EXPECT_EQ(ENOENT, unknown.error().code);
  EXPECT_THAT(unknown.error().message,
              HasSubstr("it has limit, ping-pong-gate, refused-wait, queues, life-time-ms"));
}

TEST(Tiering, AnotherPolicyFindsThePlacementAsItIs) {
  const auto tiering = make_tiering(100, "mq");
  ASSERT_TRUE(tiering->set_fast(page(50), PageCount{1}, true).ok());
  ASSERT_TRUE(tiering->set("limit", 7).ok());
  scan(*tiering, 1, {});
  scan(*tiering, 7, {3});
  ASSERT_THAT(decide(*tiering), ElementsAre(pair_of(3, 50)));
  ASSERT_TRUE(tiering->set_policy("lru").ok());
  EXPECT_EQ("lru", tiering->policy());
  EXPECT_TRUE(tiering->report(0, true)) << "a pair of the old policy";
  EXPECT_TRUE(tiering->is_fast(page(3)));
  EXPECT_FALSE(tiering->is_fast(page(50)));
  EXPECT_EQ(7, *tiering->get("limit"));
  EXPECT_FALSE(tiering->get("queues").ok());
  EXPECT_FALSE(tiering->set_policy("best").ok());
  EXPECT_EQ("lru", tiering->policy());
  scan(*tiering, 8, {4});
  EXPECT_THAT(decide(*tiering), ElementsAre(pair_of(4, 3)));
}

TEST(Tiering, APairIsReportedOnOnce) {
  const auto tiering = make_tiering(100, "lru");
  ASSERT_TRUE(tiering->set_fast(page(50), PageCount{2}, true).ok());
  scan(*tiering, 1, {3, 4});
  ASSERT_EQ(2U, decide(*tiering).size());
  EXPECT_FALSE(tiering->report(2, true));
  EXPECT_TRUE(tiering->report(1, true));
  EXPECT_FALSE(tiering->report(1, true));
  decide(*tiering);
  EXPECT_EQ(1U, tiering->stats().refused) << "the one that nobody reported on";
}

TEST(Tiering, TheGateKeepsSwappedPagesWhereTheyAre) {
  const auto tiering = make_tiering(100, "lru");
  ASSERT_TRUE(tiering->set("ping-pong-gate", 2).ok());
  ASSERT_TRUE(tiering->set_fast(page(50), PageCount{1}, true).ok());
  const auto moved = [&](std::int64_t now_s, std::uint64_t written) {
    scan(*tiering, now_s, {written});
    const auto pairs = decide(*tiering);
    for (std::size_t i = 0; i < pairs.size(); ++i) tiering->report(i, true);
    return pairs;
  };
  EXPECT_THAT(moved(1, 3), ElementsAre(pair_of(3, 50)));
  EXPECT_THAT(moved(2, 50), ElementsAre());
  EXPECT_THAT(moved(3, 4), ElementsAre()) << "3 is kept too";
  EXPECT_THAT(moved(4, 5), ElementsAre(pair_of(5, 3)));
  EXPECT_EQ(2U, tiering->stats().pairs) << "what is held back is no pair";
  EXPECT_EQ(0U, tiering->stats().refused);
}

TEST(Tiering, RefusedPagesAreLeftAloneForAWhile) {
  const auto tiering = make_tiering(100, "mq");
  ASSERT_TRUE(tiering->set("refused-wait", 1).ok());
  ASSERT_TRUE(tiering->set_fast(page(50), PageCount{3}, true).ok());
  scan(*tiering, 1, {});
  scan(*tiering, 7, {3});
  ASSERT_THAT(decide(*tiering), ElementsAre(pair_of(3, 50)));
  EXPECT_TRUE(tiering->report(0, false));
  EXPECT_THAT(decide(*tiering), ElementsAre()) << "3 would be next with 51";
  EXPECT_THAT(decide(*tiering), ElementsAre(pair_of(3, 52)));
}

TEST(Tiering, RefusedPagesTakeNoRoomFromOthers) {
  const auto tiering = make_tiering(100, "lru");
  ASSERT_TRUE(tiering->set("limit", 2).ok());
  ASSERT_TRUE(tiering->set_fast(page(50), PageCount{10}, true).ok());
  scan(*tiering, 1, {3, 4, 5, 6, 7});
  ASSERT_THAT(decide(*tiering), ElementsAre(pair_of(7, 50), pair_of(6, 51)));
  EXPECT_THAT(decide(*tiering), ElementsAre(pair_of(5, 54), pair_of(4, 55)));
}

TEST(Tiering, TimeDoesNotGoBack) {
  const auto tiering = make_tiering(100, "mq");
  scan(*tiering, 10, {3});
  scan(*tiering, 1, {});
  EXPECT_EQ(1U, tiering->stats().tracked_pages);
  scan(*tiering, 16, {});
  EXPECT_EQ(0U, tiering->stats().tracked_pages);
}

}  // namespace
}  // namespace kintsugi
