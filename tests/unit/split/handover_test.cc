// SPDX-License-Identifier: GPL-2.0-or-later
#include "split/handover.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>

namespace kintsugi {
namespace {

Handover example() {
  SplitRequest request;
  request.pages = PageCount{1000};
  request.chunk_pages = PageCount{16};
  request.main_capacity = PageCount{400};
  request.server_capacities = {PageCount{400}, PageCount{400}};
  Handover handover;
  handover.session.fill(7);
  handover.vm_pages = request.pages;
  handover.chunk_pages = request.chunk_pages;
  handover.main_limit = PageCount{450};
  handover.policy = AccessPolicy::kClock;
  handover.servers = {{"tcp:a:1", PageCount{400}, Epoch{1}}, {"unix:/b", PageCount{400}, Epoch{1}}};
  handover.plan.emplace(*plan_split(request, {}));
  handover.ranks.assign(63, 3);
  return handover;
}

TEST(HandoverTest, DecodesWhatItEncoded) {
  const Handover before = example();
  const Result<Handover> after = Handover::decode(before.encode());
  ASSERT_TRUE(after) << after.error().message;
  EXPECT_EQ(after->session, before.session);
  EXPECT_EQ(after->vm_pages, before.vm_pages);
  EXPECT_EQ(after->chunk_pages, before.chunk_pages);
  EXPECT_EQ(after->main_limit, before.main_limit);
  EXPECT_EQ(after->policy, before.policy);
  ASSERT_EQ(after->servers.size(), 2U);
  EXPECT_EQ(after->servers[1].uri, "unix:/b");
  EXPECT_EQ(*after->plan, *before.plan);
  EXPECT_EQ(after->ranks, before.ranks);
}

TEST(HandoverTest, RefusesEveryTruncation) {
  const std::vector<std::uint8_t> whole = example().encode();
  for (std::size_t size = 0; size < whole.size(); size++) {
    EXPECT_FALSE(Handover::decode({whole.data(), size})) << size;
  }
}

TEST(HandoverTest, SurvivesDamage) {
  const std::vector<std::uint8_t> whole = example().encode();
  EXPECT_TRUE(rc::check("a damaged plan is refused or consistent", [&] {
    std::vector<std::uint8_t> bytes = whole;
    const auto hits = *rc::gen::inRange(1, 8);
    for (int i = 0; i < hits; i++) {
      bytes[*rc::gen::inRange<std::size_t>(0, bytes.size())] = *rc::gen::arbitrary<std::uint8_t>();
    }
    const Result<Handover> handover = Handover::decode(bytes);
    if (handover) {
      RC_ASSERT(handover->plan->pages() == handover->vm_pages);
      RC_ASSERT(handover->plan->servers() <= handover->servers.size());
    }
  }));
}

TEST(HandoverTest, ZeroRunsRoundTrip) {
  const std::vector<ZeroRun> runs = {{PageIndex{3}, 7, true}, {PageIndex{90}, 1, false}};
  const Result<std::vector<ZeroRun>> after =
      decode_zero_runs(encode_zero_runs(runs), PageCount{91});
  ASSERT_TRUE(after) << after.error().message;
  EXPECT_EQ(*after, runs);
}

TEST(HandoverTest, RefusesZeroRunsBeyondTheVm) {
  const std::vector<ZeroRun> runs = {{PageIndex{90}, 2, true}};
  EXPECT_FALSE(decode_zero_runs(encode_zero_runs(runs), PageCount{91}));
  std::vector<std::uint8_t> bytes = encode_zero_runs(runs);
  bytes.pop_back();
  EXPECT_FALSE(decode_zero_runs(bytes, PageCount{1000}));
}

}  // namespace
}  // namespace kintsugi
