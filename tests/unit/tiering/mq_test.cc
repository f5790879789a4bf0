// SPDX-License-Identifier: GPL-2.0-or-later
// P4's rules for MQ (3.4.2), one by one.
#include "tiering/mq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tiering/rig.h"

namespace kintsugi {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Mq = PolicyRig<MqPolicy>;

TEST(MqPolicy, APageWrittenNTimesIsAtTheTailOfQueueLog2N) {
  Mq mq(100);
  const unsigned queue_of[] = {0, 1, 1, 2, 2, 2, 2, 3};
  for (unsigned n = 1; n <= 8; ++n) {
    mq.scan(n, {7});
    EXPECT_EQ(n, mq.policy.count(page(7)));
    for (unsigned queue = 0; queue < 8; ++queue) {
      EXPECT_EQ(queue == queue_of[n - 1] ? pages({7}) : pages({}), mq.policy.queue(queue))
          << n << " writes, queue " << queue;
    }
  }
}

TEST(MqPolicy, TheTopQueueHoldsWhatIsWrittenMoreOften) {
  Mq mq(100);
  mq.policy.set_parameter(0, 2);
  for (unsigned n = 1; n <= 40; ++n) mq.scan(n, {7});
  EXPECT_EQ(pages({7}), mq.policy.queue(1));
}

TEST(MqPolicy, AWrittenPageGoesToTheTail) {
  Mq mq(100, {3});
  mq.scan(1, {1, 2, 3});
  EXPECT_EQ(pages({1, 2, 3}), mq.policy.queue(0));
  mq.scan(2, {2, 1});
  EXPECT_EQ(pages({3}), mq.policy.queue(0));
  EXPECT_EQ(pages({2, 1}), mq.policy.queue(1));
  mq.scan(3, {2});
  EXPECT_EQ(pages({1, 2}), mq.policy.queue(1));
}

TEST(MqPolicy, ThePageOlderThanTheLifeTimeGoesToTheHeadOfTheQueueBelow) {
  Mq mq(100);
  mq.scan(1, {1, 2});
  mq.scan(2, {1, 2, 9});
  mq.scan(3, {9, 8});
  ASSERT_EQ(pages({8}), mq.policy.queue(0));
  ASSERT_EQ(pages({1, 2, 9}), mq.policy.queue(1));
  mq.scan(7, {});  // 1 and 2 were written 5 s ago: not yet longer than that
  EXPECT_EQ(pages({1, 2, 9}), mq.policy.queue(1));
  mq.scan(8, {});  // 1 first, then 2, each to the head
  EXPECT_EQ(pages({2, 1, 8}), mq.policy.queue(0));
  EXPECT_EQ(pages({9}), mq.policy.queue(1));
}

TEST(MqPolicy, APageFallsOneLevelAScanAndKeepsItsCount) {
  Mq mq(100);
  for (unsigned n = 1; n <= 4; ++n) mq.scan(n, {7});
  mq.scan(10, {});
  EXPECT_EQ(pages({7}), mq.policy.queue(1));
  mq.scan(11, {});
  EXPECT_EQ(pages({7}), mq.policy.queue(0));
  EXPECT_EQ(4U, mq.policy.count(page(7)));
  mq.scan(12, {7});
  EXPECT_EQ(pages({7}), mq.policy.queue(2)) << "its fifth write";
}

TEST(MqPolicy, ASlowPageThatLeavesTheLowestQueueIsForgotten) {
  Mq mq(100);
  mq.scan(1, {7});
  mq.scan(7, {});
  EXPECT_EQ(0U, mq.policy.tracked_pages());
  mq.scan(8, {7});
  EXPECT_EQ(1U, mq.policy.count(page(7))) << "counted anew";
}

TEST(MqPolicy, AFastPageThatLeavesTheLowestQueueIsAVictimAndKeepsItsCount) {
  Mq mq(100, {3, 4});
  mq.scan(1, {4, 3});
  mq.scan(2, {3});
  mq.scan(7, {});
  EXPECT_EQ(pages({4}), mq.policy.victims());
  mq.scan(8, {});
  mq.scan(9, {});
  EXPECT_EQ(pages({4, 3}), mq.policy.victims()) << "to the tail";
  mq.scan(10, {3});
  EXPECT_EQ(pages({4}), mq.policy.victims());
  EXPECT_EQ(pages({3}), mq.policy.queue(1)) << "its third write";
}

TEST(MqPolicy, NoPageIsAVictimWithinTheLifeTimeOfTheStart) {
  Mq mq(100, {3, 4});
  mq.scan(1, {7});
  EXPECT_THAT(mq.decide(), IsEmpty());
  mq.scan(6, {7});
  EXPECT_THAT(mq.decide(), IsEmpty());
  mq.scan(7, {7});
  EXPECT_THAT(mq.decide(), ElementsAre(pair_of(7, 3)));
}

TEST(MqPolicy, PairsFromTheTopQueueDownAndFromTailToHeadWithTheHeadOfTheVictims) {
  Mq mq(100, {50, 51, 52, 53, 54, 55});
  mq.scan(1, {54, 53});
  mq.scan(7, {});  // Q0's fast pages leave: the untouched ones first, then 54, 53
  mq.scan(8, {1, 2, 3, 4, 55});
  mq.scan(9, {3, 1, 55});
  // Q1: 3 1 55, Q0: 2 4. 55 is fast already, and no victim as it was written.
  EXPECT_THAT(mq.decide(3), ElementsAre(pair_of(1, 50), pair_of(3, 51), pair_of(4, 52)));
}

TEST(MqPolicy, VictimsThatWereWrittenOnceComeInTheOrderInWhichTheyLeftTheLowestQueue) {
  Mq mq(100, {50, 51, 52});
  mq.scan(1, {52, 50, 51});
  mq.scan(7, {1, 2, 3, 4});
  EXPECT_THAT(mq.decide(), ElementsAre(pair_of(4, 52), pair_of(3, 50), pair_of(2, 51)));
}

TEST(MqPolicy, AtMostTheLimit) {
  Mq mq(100, {50, 51, 52});
  mq.scan(1, {});
  mq.scan(7, {1, 2, 3});
  EXPECT_EQ(0U, mq.decide(0).size());
  EXPECT_EQ(2U, mq.decide(2).size());
}

TEST(MqPolicy, AfterASwapTheSlowPageKeepsItsPlaceAndCountAndTheFastOneIsForgotten) {
  Mq mq(100, {50});
  mq.scan(1, {50});
  mq.scan(6, {7, 8});
  mq.scan(7, {7, 8});
  EXPECT_THAT(mq.decide_and_swap(), ElementsAre(pair_of(8, 50)));
  EXPECT_EQ(pages({7, 8}), mq.policy.queue(1));
  EXPECT_EQ(2U, mq.policy.count(page(8)));
  EXPECT_EQ(0U, mq.policy.count(page(50)));
  EXPECT_EQ(2U, mq.policy.tracked_pages());
  mq.scan(13, {50});
  EXPECT_EQ(1U, mq.policy.count(page(50)));
  mq.scan(14, {});
  mq.scan(15, {});
  EXPECT_EQ(pages({8}), mq.policy.victims()) << "8 is fast now, and 7 forgotten";
}

TEST(MqPolicy, ARefusedVictimGoesToTheTailOfTheVictims) {
  Mq mq(100, {50, 51});
  mq.scan(1, {51, 50});
  mq.scan(7, {7});
  ASSERT_THAT(mq.decide(), ElementsAre(pair_of(7, 51)));
  mq.policy.refused(pair_of(7, 51));
  EXPECT_EQ(pages({50, 51}), mq.policy.victims());
  EXPECT_EQ(pages({7}), mq.policy.queue(0));
  EXPECT_EQ(1U, mq.policy.count(page(51))) << "a refusal is no write, and loses none";
}

TEST(MqPolicy, AnUntouchedVictimThatWasRefusedIsTriedAgainAfterTheOthers) {
  Mq mq(100, {50, 51});
  mq.scan(1, {});
  mq.scan(7, {7});
  ASSERT_THAT(mq.decide(), ElementsAre(pair_of(7, 50)));
  mq.policy.refused(pair_of(7, 50));
  EXPECT_THAT(mq.decide(), ElementsAre(pair_of(7, 51)));
  mq.policy.refused(pair_of(7, 51));
  EXPECT_THAT(mq.decide(), ElementsAre(pair_of(7, 50)));
}

TEST(MqPolicy, AVictimWrittenBeforeItIsSwappedStaysInItsQueue) {
  Mq mq(100, {50});
  mq.scan(1, {50});
  mq.scan(7, {7});
  ASSERT_THAT(mq.decide(), ElementsAre(pair_of(7, 50)));
  mq.scan(8, {50});
  mq.swap(pair_of(7, 50));
  EXPECT_EQ(pages({50}), mq.policy.queue(1));
  EXPECT_EQ(2U, mq.policy.count(page(50)));
}

TEST(MqPolicy, FewerQueuesPutThePagesOfTheOthersAtTheTailOfTheTop) {
  Mq mq(100);
  for (unsigned n = 1; n <= 4; ++n) mq.scan(n, {7});
  mq.scan(5, {1});
  mq.scan(6, {1});
  mq.policy.set_parameter(0, 2);
  EXPECT_EQ(pages({1, 7}), mq.policy.queue(1));
  mq.policy.set_parameter(0, 1);
  EXPECT_EQ(pages({1, 7}), mq.policy.queue(0));
}

TEST(MqPolicy, TheLifeTimeCountsAtOnce) {
  Mq mq(100);
  mq.scan(1, {7});
  mq.policy.set_parameter(1, 2000);
  mq.scan(3, {});
  EXPECT_EQ(1U, mq.policy.tracked_pages());
  mq.scan(4, {});
  EXPECT_EQ(0U, mq.policy.tracked_pages());
}

TEST(MqPolicy, APageThatSomebodyElseMadeFastIsAVictim) {
  Mq mq(100, {50});
  mq.scan(1, {});
  mq.scan(7, {7, 8});
  ASSERT_THAT(mq.decide_and_swap(), ElementsAre(pair_of(8, 50)));
  mq.placement.set(page(20), true);
  mq.policy.placement_changed(page(20), PageCount{1});
  EXPECT_THAT(mq.decide(), ElementsAre(pair_of(7, 20)));
}

TEST(MqPolicy, AVictimThatSomebodyElseMadeSlowIsNone) {
  Mq mq(100, {50, 51});
  mq.scan(1, {50, 51});
  mq.scan(7, {7});
  mq.placement.set(page(50), false);
  mq.policy.placement_changed(page(50), PageCount{1});
  EXPECT_THAT(mq.decide(), ElementsAre(pair_of(7, 51)));
}

TEST(MqPolicy, OnlyPagesThatWereWrittenTakeMemory) {
  Mq mq(1 << 20, {});
  for (std::uint64_t i = 0; i < (1 << 18); ++i) mq.placement.set(page(i), true);
  mq.scan(1, {});
  mq.scan(7, {1 << 19});
  EXPECT_EQ(1U, mq.policy.tracked_pages());
}

}  // namespace
}  // namespace kintsugi
