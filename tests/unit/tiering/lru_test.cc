// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/lru.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tiering/rig.h"

namespace kintsugi {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Lru = PolicyRig<LruPolicy>;

TEST(LruPolicy, TheMostRecentSlowPageAndTheLeastRecentFastOne) {
  Lru lru(100, {50, 51, 52});
  lru.scan(1, {51, 50, 52});
  lru.scan(2, {50, 1});
  lru.scan(3, {2, 3});
  EXPECT_THAT(lru.decide(), ElementsAre(pair_of(3, 51), pair_of(2, 52)))
      << "1 is no younger than 50";
}

TEST(LruPolicy, FastPagesThatWereNeverWrittenGoFirst) {
  Lru lru(100, {50, 51, 52});
  lru.scan(1, {51});
  lru.scan(2, {1, 2, 3});
  EXPECT_THAT(lru.decide(), ElementsAre(pair_of(3, 50), pair_of(2, 52), pair_of(1, 51)));
}

TEST(LruPolicy, AtMostTheLimit) {
  Lru lru(100, {50, 51, 52});
  lru.scan(1, {1, 2, 3});
  EXPECT_THAT(lru.decide(2), ElementsAre(pair_of(3, 50), pair_of(2, 51)));
}

TEST(LruPolicy, NothingIsDoneWhenTheFastTierHasTheRecentPages) {
  Lru lru(100, {50, 51});
  lru.scan(1, {1, 2});
  lru.scan(2, {50, 51});
  EXPECT_THAT(lru.decide(), IsEmpty());
}

TEST(LruPolicy, SlowPagesOlderThanEveryFastOneAreForgotten) {
  Lru lru(100, {50});
  lru.scan(1, {1, 2});
  EXPECT_EQ(2U, lru.policy.tracked_pages()) << "50 may still go for one";
  lru.scan(2, {50, 3});
  EXPECT_EQ(2U, lru.policy.tracked_pages());
  lru.scan(3, {4});
  EXPECT_THAT(lru.decide_and_swap(), ElementsAre(pair_of(4, 50)));
  lru.scan(4, {});
  EXPECT_EQ(1U, lru.policy.tracked_pages());
}

TEST(LruPolicy, ARefusedPageIsTriedAgainLast) {
  Lru lru(100, {50, 51});
  lru.scan(1, {51});
  lru.scan(2, {1});
  ASSERT_THAT(lru.decide(), ElementsAre(pair_of(1, 50)));
  lru.policy.refused(pair_of(1, 50));
  EXPECT_THAT(lru.decide(), ElementsAre(pair_of(1, 51)));
}

}  // namespace
}  // namespace kintsugi
