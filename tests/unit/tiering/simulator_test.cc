// SPDX-License-Identifier: GPL-2.0-or-later
// The simulator and its bounds, against what can be counted by hand or tried exhaustively.
#include "tiering/simulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "tiering/bounds.h"
#include "tiering/policy.h"
#include "tiering/synthetic.h"

namespace kintsugi {
namespace {

using ::testing::HasSubstr;

TraceRun run(std::uint64_t first, std::uint64_t count, TraceAccess access = TraceAccess::kWritten,
             std::uint32_t lines = 0) {
  return {PageIndex{first}, PageCount{count}, access, lines};
}

TEST(Simulator, CountsBytesByTierAndCopies) {
  // Pages 8 and 9 are fast. lru takes 0 and 1 for them after two scans.
  const Workload workload{.name = "t",
                          .pages = PageCount{10},
                          .scans = {{run(0, 2), run(9, 1)}, {run(0, 2)}, {run(0, 3)}}};
  SimulationOptions options;
  options.fast_pages = PageCount{2};
  options.scans_per_decision = 2;
  options.bytes_per_write = 100;
  const auto result = simulate(workload, "lru", options);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(2U, result->swaps);
  EXPECT_EQ(100U + 200, result->fast_bytes);
  EXPECT_EQ(200U + 200 + 100, result->slow_bytes);
  EXPECT_EQ(500U + 2 * 4096, result->slow_bytes_with_copies());
  EXPECT_EQ(3U, result->fast_writes);
  EXPECT_EQ(5U, result->slow_writes);
  EXPECT_EQ(2U, result->scans[1].swaps);
  EXPECT_EQ(200U, result->scans[2].fast_bytes);
}

TEST(Simulator, TakesCountedBytesWhereThereAreSome) {
  const Workload workload{.name = "t",
                          .pages = PageCount{10},
                          .metered = true,
                          .scans = {{run(0, 2, TraceAccess::kWritten, 3),
                                     run(5, 1, TraceAccess::kNone, 1), run(9, 1)}}};
  SimulationOptions options;
  options.fast_pages = PageCount{1};
  options.fast_at_end = false;
  const auto result = simulate(workload, "none", options);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(3U * 64, result->fast_bytes);
  EXPECT_EQ(3U * 64 + 64, result->slow_bytes);
  EXPECT_EQ(2U, result->slow_writes) << "a write-back is no write";
}

TEST(Simulator, RefusesWhatCannotBe) {
  const Workload workload{.name = "t", .pages = PageCount{10}, .scans = {{}}};
  SimulationOptions options;
  options.fast_pages = PageCount{11};
  EXPECT_THAT(simulate(workload, "mq", options).error().message,
              HasSubstr("more than the VM's 10"));
  options.fast_pages = PageCount{1};
  EXPECT_FALSE(simulate(workload, "best", options).ok());
  options.parameters = {{"queues", 0}};
  EXPECT_FALSE(simulate(workload, "mq", options).ok());
}

// The least cost of all, by trying every placement of every period.
double least_cost(const Workload& workload, const SimulationOptions& options) {
  const auto pages = static_cast<unsigned>(workload.pages.value);
  const auto k = static_cast<int>(options.fast_pages.value);
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> cost(1U << pages, kNever);
  cost[((1U << k) - 1) << (pages - static_cast<unsigned>(k))] = 0;
  for (std::size_t t = 0; t < workload.scans.size(); ++t) {
    std::vector<double> next(cost.size(), kNever);
    for (unsigned to = 0; to < cost.size(); ++to) {
      if (std::popcount(to) != k) continue;
      double slow = 0;
      for (const TraceRun& r : workload.scans[t]) {
        for (std::uint64_t p = r.first.value; p < r.first.value + r.count.value; ++p) {
          if ((to >> p & 1) == 0) slow += options.bytes_per_write;
        }
      }
      for (unsigned from = 0; from < cost.size(); ++from) {
        if (cost[from] == kNever || (t == 0 && from != to)) continue;
        const double swaps = std::popcount(from & ~to);
        next[to] = std::min(next[to], cost[from] + swaps * kPageSize + slow);
      }
    }
    cost = next;
  }
  return *std::min_element(cost.begin(), cost.end());
}

RC_GTEST_PROP(BoundsProperty, BoundsAreBelowTheLeastCostAndBelowEveryPolicy, ()) {
  Workload workload{.name = "t", .pages = PageCount{*rc::gen::inRange<std::uint64_t>(1, 6)}};
  const auto scans = *rc::gen::inRange(1, 8);
  for (int t = 0; t < scans; ++t) {
    std::vector<TraceRun> runs;
    for (std::uint64_t p = 0; p < workload.pages.value; ++p) {
      if (*rc::gen::arbitrary<bool>()) runs.push_back(run(p, 1));
    }
    workload.scans.push_back(runs);
  }
  SimulationOptions options;
  options.fast_pages = PageCount{*rc::gen::inRange<std::uint64_t>(0, workload.pages.value + 1)};
  options.scans_per_decision = 1;
  options.bytes_per_write = *rc::gen::element(4096U, 10000U, 500U);
  const TieringBounds bounds = tiering_bounds(workload, options);
  const double least = least_cost(workload, options);
  RC_ASSERT(bounds.top_k_bytes <= bounds.lagrangian_bytes);
  RC_ASSERT(bounds.lagrangian_bytes <= least * (1 + 1e-9));
  for (const PolicyName& policy : policy_names()) {
    const auto result = simulate(workload, std::string(policy.name), options);
    RC_ASSERT(result.ok());
    RC_ASSERT(static_cast<double>(result->slow_bytes_with_copies()) >= least * (1 - 1e-9));
  }
}

// One page is written all the time: it is worth one swap, and nothing more can be saved.
TEST(Bounds, TheLagrangianBoundCountsTheSwap) {
  Workload workload{.name = "t", .pages = PageCount{4}};
  for (int t = 0; t < 20; ++t) workload.scans.push_back({run(0, 1)});
  SimulationOptions options;
  options.fast_pages = PageCount{1};
  options.scans_per_decision = 1;
  const TieringBounds bounds = tiering_bounds(workload, options);
  EXPECT_EQ(4096, bounds.top_k_bytes) << "the first scan";
  EXPECT_NEAR(2 * 4096, bounds.lagrangian_bytes, 100) << "and one swap";
}

TEST(Synthetic, IsTheSameAtEachCallAndWithinTheVm) {
  for (const SyntheticName& name : synthetic_names()) {
    const SyntheticOptions options{.pages = PageCount{4096}, .scans = 100};
    const auto one = make_synthetic(name.name, options);
    const auto two = make_synthetic(name.name, options);
    ASSERT_TRUE(one.ok());
    EXPECT_EQ(one->scans, two->scans) << name.name;
    ASSERT_EQ(100U, one->scans.size());
    for (const auto& runs : one->scans) {
      std::uint64_t free_from = 0;
      for (const TraceRun& r : runs) {
        ASSERT_GE(r.first.value, free_from) << name.name;
        free_from = r.first.value + r.count.value;
      }
      ASSERT_LE(free_from, 4096U) << name.name;
    }
    EXPECT_FALSE(one->scans.back().empty()) << name.name;
  }
  EXPECT_THAT(make_synthetic("calm", {}).error().message, HasSubstr("use one of stress, zipf"));
  EXPECT_FALSE(make_synthetic("zipf", {.pages = PageCount{10}}).ok());
}

}  // namespace
}  // namespace kintsugi
