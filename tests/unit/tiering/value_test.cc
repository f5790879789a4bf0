// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/value.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "tiering/rig.h"
#include "tiering/simulator.h"
#include "tiering/synthetic.h"

namespace kintsugi {
namespace {

TEST(ValueModel, StatesTellPastsApart) {
  std::set<PageState> states;
  for (const float average : {0.01F, 0.03F, 0.07F, 0.15F, 0.3F, 0.5F, 0.7F, 1.0F}) {
    for (const float longer : {0.001F, 0.01F, 0.02F, 0.03F, 0.07F, 0.15F, 0.3F, 1.0F}) {
      states.insert(state_of(average, longer));
    }
  }
  EXPECT_EQ(64U, states.size());
  EXPECT_FALSE(states.contains(0));
  EXPECT_LT(*states.rbegin(), kStates);
}

TEST(ValueModel, BeforeThereIsEvidenceAPageGetsAsManyWritesAsItHad) {
  const ValueModel model;
  EXPECT_EQ(0, model.value(0));
  EXPECT_GT(model.value(state_of(1, 1)), model.value(state_of(1, 0.1F)));
}

// A page that stays as it is and gets 5 writes a decision is worth 5 + 0.9 * 5 + ... = 50.
TEST(ValueModel, AStateThatLastsIsWorthItsDiscountedSum) {
  ValueModel model;
  const PageState hot = state_of(1, 1);
  for (int i = 0; i < 20; ++i) {
    model.observe(hot, hot, 10000, 50000);
    model.solve(10, 1000);
  }
  EXPECT_NEAR(50, model.value(hot), 0.5);
}

// From `once` every page goes to nothing, so it is worth what it got on the way.
TEST(ValueModel, AStateThatEndsIsWorthLittle) {
  ValueModel model;
  const PageState once = state_of(0.1F, 0.01F);
  for (int i = 0; i < 20; ++i) {
    model.observe(0, 0, 100000, 0);
    model.observe(once, 0, 10000, 1000);
    model.solve(10, 1000);
  }
  EXPECT_NEAR(0.1, model.value(once), 0.01);
  EXPECT_NEAR(0, model.value(0), 0.01);
}

TEST(ValueModel, WhatIsOlderCountsLess) {
  ValueModel model;
  const PageState state = state_of(1, 1);
  model.observe(state, 0, 10000, 50000);
  model.solve(10, 1);
  EXPECT_NEAR(5, model.value(state), 0.2);
  for (int i = 0; i < 12; ++i) {
    model.observe(state, 0, 10000, 0);
    model.solve(10, 1);
  }
  EXPECT_LT(model.value(state), 0.1);
}

std::uint64_t slow_bytes(const Workload& workload, const std::string& policy,
                         const SimulationOptions& options) {
  const auto result = simulate(workload, policy, options);
  EXPECT_TRUE(result.ok()) << result.error().message;
  return result->slow_bytes_with_copies();
}

SimulationOptions small_vm() {
  SimulationOptions options;
  options.fast_pages = PageCount{1 << 11};
  return options;
}

// One set of constants for whatever comes: this is the promise of the policy.
TEST(ValuePolicy, IsNeverAboveNoneButForNoiseAndBelowTheOthersOverWorkloadsOfAllKinds) {
  std::map<std::string, double> total;
  for (const SyntheticName& name : synthetic_names()) {
    const auto workload =
        make_synthetic(name.name, {.pages = PageCount{1 << 16}, .scans = 200, .seed = 3});
    ASSERT_TRUE(workload.ok());
    const auto none = static_cast<double>(slow_bytes(*workload, "none", small_vm()));
    std::map<std::string, double> here;
    for (const char* policy : {"kintsugi", "lru", "mq"}) {
      here[policy] = static_cast<double>(slow_bytes(*workload, policy, small_vm()));
      total[policy] += here[policy] / none;
    }
    EXPECT_LE(here["kintsugi"], none * 1.001) << name.name;
  }
  EXPECT_LT(total["kintsugi"], total["lru"]);
  EXPECT_LT(total["kintsugi"], total["mq"]);
}

TEST(ValuePolicy, MovesNothingWhereNothingIsToBeGained) {
  const auto workload = make_synthetic("stream", {.pages = PageCount{1 << 16}, .scans = 200});
  ASSERT_TRUE(workload.ok());
  const auto result = simulate(*workload, "kintsugi", small_vm());
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(0U, result->swaps);
}

// A workload made to fool it: pages that look hot until they are moved, and are not written again.
TEST(ValuePolicy, LosesNoMoreThanItsBudget) {
  PolicyRig<ValuePolicy> rig(1 << 16);
  for (std::uint64_t i = 0; i < 8192; ++i) rig.placement.set(page(i), true);
  std::uint64_t written = 0;
  std::uint64_t swapped = 0;
  std::uint64_t first = 8192;
  for (std::int64_t t = 1; t <= 200; ++t) {
    rig.policy.begin_scan(t * 1000);
    for (std::uint64_t i = first; i < first + 512; i += 64) {
      rig.policy.written(i / 64, ~std::uint64_t{0});
    }
    written += 512;
    rig.policy.end_scan();
    if (t % 5 != 0) continue;
    const auto pairs = rig.decide_and_swap();
    swapped += pairs.size();
    // The next set of pages is slow again.
    if (!pairs.empty() && first + 1024 <= (1 << 16)) first += 512;
  }
  EXPECT_GT(swapped, 0U) << "or this shows nothing";
  EXPECT_LE(swapped, written / 5) << "nothing was saved";
}

TEST(ValuePolicy, FollowsTheBytesThatAWriteIsWorth) {
  for (const double bytes : {64.0, 1e6}) {
    PolicyRig<ValuePolicy> rig(1 << 16, {0, 1, 2, 3, 4, 5, 6, 7});
    rig.policy.set_parameter(0, bytes);
    std::size_t pairs = 0;
    for (std::int64_t t = 1; t <= 30; ++t) {
      rig.policy.begin_scan(t * 1000);
      // Each of 640 pages every tenth second.
      rig.policy.written(16 + static_cast<std::uint64_t>(t) % 10, ~std::uint64_t{0});
      rig.policy.end_scan();
      if (t % 5 == 0) pairs += rig.decide_and_swap().size();
    }
    EXPECT_EQ(bytes > 64, pairs > 0) << bytes << " bytes a write";
  }
}

TEST(ValuePolicy, TakesAtMost32BytesAPageAndForgetsWhatIsNotWritten) {
  PolicyRig<ValuePolicy> rig(1 << 20);
  std::int64_t t = 1;
  rig.policy.begin_scan(t * 1000);
  for (std::uint64_t group = 0; group < 4096; ++group) rig.policy.written(group, ~std::uint64_t{0});
  rig.policy.end_scan();
  EXPECT_EQ(1U << 18, rig.policy.tracked_pages());
  EXPECT_LE(rig.policy.memory_bytes(), (1U << 18) * 32);
  for (; t < 300; ++t) {
    rig.policy.begin_scan(t * 1000);
    rig.policy.end_scan();
    if (t % 5 == 0) rig.decide();
  }
  EXPECT_EQ(0U, rig.policy.tracked_pages());
}

}  // namespace
}  // namespace kintsugi
