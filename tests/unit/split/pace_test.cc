// SPDX-License-Identifier: GPL-2.0-or-later
#include "split/pace.h"

#include <gtest/gtest.h>

namespace kintsugi {
namespace {

TEST(SplitPace, QemuIsBelievedUntilAPeriodHasEnded) {
  const SplitPace pace(2);
  EXPECT_EQ(pace.slowdown(0), 1);
  EXPECT_EQ(pace.slowdown(1), 1);
}

TEST(SplitPace, WhatGoesOneWayTakesAsMuchLongerAsThatWayMovedLess) {
  SplitPace pace(4);
  pace.period(100, 600, 200);
  EXPECT_DOUBLE_EQ(pace.slowdown(0), 800.0 / 600);
  EXPECT_DOUBLE_EQ(pace.slowdown(0.5), 2);
  EXPECT_DOUBLE_EQ(pace.slowdown(0.75 * 0.5), 1.5);
}

TEST(SplitPace, WhatIsLeftAsItWentTakesNoLonger) {
  SplitPace pace(3);
  pace.period(100, 600, 200);
  EXPECT_DOUBLE_EQ(pace.slowdown(0.25), 1);
}

TEST(SplitPace, AWayThatLittleWentIsSlowerByTheNumberOfHostsAtMost) {
  SplitPace pace(2);
  pace.period(100, 1000, 0);
  EXPECT_DOUBLE_EQ(pace.slowdown(1), 3);
  EXPECT_DOUBLE_EQ(pace.slowdown(0), 1);
  pace.period(200, 1000, 0);  // nothing went at all
  EXPECT_DOUBLE_EQ(pace.slowdown(0.5), 1);
}

TEST(SplitPace, EachPeriodCountsByItselfAndOnce) {
  SplitPace pace(2);
  pace.period(100, 600, 200);
  pace.period(100, 600, 1000);  // the same one
  EXPECT_DOUBLE_EQ(pace.slowdown(1), 3);
  pace.period(200, 800, 800);  // 200 and 600 in it
  EXPECT_DOUBLE_EQ(pace.slowdown(0), 3);
  EXPECT_DOUBLE_EQ(pace.slowdown(1), 800.0 / 600);
}

}  // namespace
}  // namespace kintsugi
