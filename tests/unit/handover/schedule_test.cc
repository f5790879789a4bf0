// SPDX-License-Identifier: GPL-2.0-or-later
// Random schedules of faults on the real ownership code: see world.h. Every seed is a schedule; one
// that fails is printed with its history. The model in tests/model/ searches all schedules of an
// abstraction of this code; this test tries many on the code itself.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include "handover/world.h"

namespace kintsugi::handover::testing {
namespace {

class Schedules : public ::testing::Test {
 protected:
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
};

TEST_F(Schedules, KeepEveryInvariant) {
  std::set<std::string> seen;
  for (unsigned seed = 1; seed <= 3000; seed++) {
    Plan plan;
    plan.seed = seed;
    plan.breaks = static_cast<int>(seed % 5);
    plan.crashes = static_cast<int>(seed / 5 % 2);
    plan.restarts = static_cast<int>(seed / 10 % 2);
    World world(plan);
    const std::string broken = world.run();
    ASSERT_EQ(broken, "") << "seed " << seed << "\n" << world.history();
    seen.insert(world.seen().begin(), world.seen().end());
  }
  // A schedule in which nothing happens proves nothing.
  for (const char* what :
       {"it moved", "it moved twice", "a late Claim", "a late Put", "a late Discard",
        "an answer was lost", "a restart", "a session died of age", "the stream broke after END",
        "somebody runs the VM at the end"}) {
    EXPECT_TRUE(seen.contains(what)) << what;
  }
}

class Mutants : public ::testing::TestWithParam<Mutant> {
 protected:
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
};

TEST_P(Mutants, AreCaught) {
  std::string broken;
  unsigned seed = 0;
  while (broken.empty() && ++seed <= 20000) {
    Plan plan;
    plan.seed = seed;
    plan.mutant = GetParam();
    World world(plan);
    broken = world.run();
  }
  ASSERT_NE(broken, "");
  std::printf("seed %u: %s\n", seed, broken.c_str());
}

INSTANTIATE_TEST_SUITE_P(, Mutants,
                         ::testing::Values(Mutant::kClaimInAnyEpoch, Mutant::kReclaimRaisesNothing,
                                           Mutant::kSourceDoesNotAsk,
                                           Mutant::kDestinationRunsOnClaim,
                                           Mutant::kGivesUpUnanswered, Mutant::kClaimedDiesOfAge,
                                           Mutant::kDiscardWithoutVersion,
                                           Mutant::kWritesBeforeCommit));

}  // namespace
}  // namespace kintsugi::handover::testing
