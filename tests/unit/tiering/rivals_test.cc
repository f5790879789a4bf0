// SPDX-License-Identifier: GPL-2.0-or-later
// Rivals written anew from their papers: small cases that tell their rules.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tiering/cache_policy.h"
#include "tiering/ranked_policy.h"
#include "tiering/rig.h"
#include "tiering/smq.h"

namespace kintsugi {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// --- S3-FIFO (algorithm 1 of the paper) ---

using S3Fifo = PolicyRig<S3FifoPolicy>;

TEST(S3Fifo, WhatArrivesTakesThePlaceOfWhatWasNeverRequestedFirst) {
  S3Fifo rig(100, {50, 51});
  rig.scan(1, {7, 8, 9});
  EXPECT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(7, 50), pair_of(8, 51)));
}

TEST(S3Fifo, APageOfTheSmallQueueRequestedOnceMoreOrLessGoesAndIsAGhost) {
  S3Fifo rig(100, {50, 51});
  rig.scan(1, {7, 8});
  rig.decide_and_swap();
  rig.scan(2, {7, 9});
  // 7 is the oldest of the small queue, and was requested once since.
  EXPECT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(9, 7)));
  EXPECT_EQ(3U, rig.policy.tracked_pages()) << "8, 9 and the ghost 7";
}

TEST(S3Fifo, APageRequestedMoreThanOnceGoesToTheMainQueueAndStays) {
  S3Fifo rig(100, {50, 51});
  rig.scan(1, {7, 8});
  rig.decide_and_swap();
  rig.scan(2, {7});
  rig.scan(3, {7, 9});
  EXPECT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(9, 8)));
}

TEST(S3Fifo, AGhostThatIsRequestedEntersTheMainQueue) {
  S3Fifo rig(100, {50, 51});
  rig.scan(1, {7, 8});
  rig.decide_and_swap();
  rig.scan(2, {9});
  ASSERT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(9, 7)));
  rig.scan(3, {7});
  ASSERT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(7, 8)));
  // 7 is in the main queue now, 9 in the small one, which is more than a tenth of two.
  rig.scan(4, {10});
  EXPECT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(10, 9)));
}

// --- W-TinyLFU ---

using TinyLfu = PolicyRig<WTinyLfuPolicy>;

TEST(WTinyLfu, TheSketchCountsTo15AndIsHalved) {
  TinyLfu rig(1000, {50, 51, 52, 53});
  for (int i = 0; i < 20; ++i) rig.scan(i, {50});
  EXPECT_EQ(15U, rig.policy.estimate(page(50)));
  // Ten requests a page of the cache: at the 40th all are halved.
  for (int i = 20; i < 40; ++i) rig.scan(i, {50});
  EXPECT_EQ(7U, rig.policy.estimate(page(50)));
  EXPECT_EQ(0U, rig.policy.estimate(page(7)));
}

TEST(WTinyLfu, APageRequestedLessThanTheNextToLeaveIsNotLetIn) {
  // A cache of two pages has no window: what arrives competes itself.
  TinyLfu rig(1000, {50, 51});
  rig.scan(1, {50, 51, 7});
  rig.scan(2, {50, 51});
  rig.scan(3, {50, 51});
  // The window holds 50 and 51 at first, requested three times.
  const auto pairs = rig.decide_and_swap();
  for (const SwapPair& pair : pairs) EXPECT_EQ(page(7), pair.slow);
  for (int i = 4; i < 8; ++i) rig.scan(i, {7});
  rig.decide_and_swap();
  EXPECT_TRUE(rig.placement.is_fast(page(7))) << "requested most";
}

// --- MEMTIS ---

TEST(Memtis, TheHotThresholdIsTheLastClassThatFits) {
  std::array<std::uint64_t, MemtisPolicy::kClasses> pages{};
  EXPECT_EQ(1U, MemtisPolicy::hot_class(pages, 10)) << "nothing to be kept out";
  pages[5] = 4;
  pages[3] = 5;
  pages[1] = 100;
  EXPECT_EQ(2U, MemtisPolicy::hot_class(pages, 10));
  EXPECT_EQ(4U, MemtisPolicy::hot_class(pages, 8));
  EXPECT_EQ(6U, MemtisPolicy::hot_class(pages, 3));
  EXPECT_EQ(1U, MemtisPolicy::hot_class(pages, 109));
}

TEST(Memtis, ClassesArePowersOfTwo) {
  EXPECT_EQ(0U, MemtisPolicy::class_of(0.5F));
  EXPECT_EQ(1U, MemtisPolicy::class_of(1));
  EXPECT_EQ(2U, MemtisPolicy::class_of(3));
  EXPECT_EQ(3U, MemtisPolicy::class_of(4));
  EXPECT_EQ(MemtisPolicy::kClasses - 1, MemtisPolicy::class_of(1e9F));
}

TEST(Memtis, HotSlowPagesGoForTheColdestFastOnes) {
  PolicyRig<MemtisPolicy> rig(100, {50, 51, 52});
  rig.scan(1, {7, 8, 51});
  rig.scan(2, {7, 8});
  rig.scan(3, {7});
  rig.scan(4, {7});
  // 7 was written four times, 8 twice, 51 once: all three fit.
  EXPECT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(7, 50), pair_of(8, 52)));
}

TEST(Memtis, NothingGoesUpThatDoesNotFit) {
  PolicyRig<MemtisPolicy> rig(100, {50});
  rig.scan(1, {7, 8, 9});
  EXPECT_THAT(rig.decide_and_swap(), IsEmpty()) << "three pages alike, and room for one";
}

// --- ARMS ---

TEST(Arms, APageGoesUpAfterTwoDecisionsAmongTheHottest) {
  PolicyRig<ArmsPolicy> rig(100, {50});
  for (int t = 1; t <= 5; ++t) rig.scan(t, {7});
  EXPECT_THAT(rig.decide_and_swap(), IsEmpty());
  for (int t = 6; t <= 10; ++t) rig.scan(t, {7});
  EXPECT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(7, 50)));
}

TEST(Arms, ThereIsNoSwapForWhatDoesNotPay) {
  PolicyRig<ArmsPolicy> rig(100, {50});
  for (int t = 1; t <= 10; ++t) {
    rig.scan(t, {50, 7});
    if (t % 5 == 0) {
      EXPECT_THAT(rig.decide_and_swap(), IsEmpty()) << "both are as hot";
    }
  }
}

TEST(Arms, AFallOfTheHitsIsNoticedAndNoiseIsNot) {
  ArmsPolicy::FallDetector detector;
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(detector.add(i % 2 == 0 ? 0.88 : 0.92)) << i;
  bool noticed = false;
  for (int i = 0; i < 5; ++i) noticed = noticed || detector.add(0.3);
  EXPECT_TRUE(noticed);
}

// --- smq ---

using Smq = PolicyRig<SmqPolicy>;

TEST(Smq, APageThatIsHitChangesPlacesWithTheOldestOfTheLevelAbove) {
  Smq rig(100, {50, 51, 52});
  rig.scan(1, {7, 8});
  EXPECT_EQ(0U, rig.policy.level(page(7)));
  rig.scan(2, {7});
  EXPECT_EQ(1U, rig.policy.level(page(7)));
  rig.scan(3, {8});
  EXPECT_EQ(1U, rig.policy.level(page(8)));
  EXPECT_EQ(0U, rig.policy.level(page(7))) << "it was the oldest of level 1";
}

TEST(Smq, WhatIsHighAmongTheSlowGoesForWhatIsLowAmongTheFast) {
  Smq rig(100, {50, 51});
  for (int t = 1; t <= 20; ++t) rig.scan(t, {7});
  EXPECT_THAT(rig.decide_and_swap(), ElementsAre(pair_of(7, 50)));
  EXPECT_EQ(SmqPolicy::kLevels / 2, rig.policy.level(page(7))) << "it enters in the middle";
}

TEST(Smq, RemembersNoMoreSlowPagesThanTheFastTierHas) {
  Smq rig(1000, {50, 51});
  for (int t = 1; t <= 50; ++t) rig.scan(t, {100 + static_cast<std::uint64_t>(t)});
  rig.decide_and_swap();
  EXPECT_LE(rig.policy.tracked_pages(), 4U);
}

}  // namespace
}  // namespace kintsugi
