// SPDX-License-Identifier: GPL-2.0-or-later
// Tiering at the C border, as QEMU's memory-tiering uses it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

#include "kintsugi.h"

namespace {

using ::testing::HasSubstr;

TEST(CapiTieringTest, SwapsWhatIsWrittenForWhatIsNot) {
  KsError err{};
  KsTiering* tiering = ks_tiering_new(128, "mq", &err);
  ASSERT_NE(tiering, nullptr) << err.message;
  ASSERT_EQ(0, ks_tiering_set_fast(tiering, 100, 2, true, &err)) << err.message;
  const uint64_t written[2] = {1U << 5 | 1U << 6 | 1U << 7, 0};
  KsTieringPair pairs[8];
  uint32_t count = 0;
  for (int64_t now_ms = 1000; now_ms <= 10000; now_ms += 1000) {
    EXPECT_EQ(0, ks_tiering_begin_scan(tiering, now_ms));
    EXPECT_EQ(0, ks_tiering_feed_written(tiering, 0, written, 128));
    EXPECT_EQ(0, ks_tiering_feed_accessed(tiering, 0, written, 128));
    EXPECT_EQ(0, ks_tiering_end_scan(tiering));
  }
  ASSERT_EQ(0, ks_tiering_decide(tiering, pairs, 8, &count, &err)) << err.message;
  ASSERT_EQ(2U, count);
  EXPECT_EQ(7U, pairs[0].slow_page);
  EXPECT_EQ(100U, pairs[0].fast_page);
  EXPECT_EQ(0, ks_tiering_report(tiering, 0, true));
  EXPECT_EQ(-ENOENT, ks_tiering_report(tiering, 0, true));
  EXPECT_EQ(0, ks_tiering_report(tiering, 1, false));
  EXPECT_TRUE(ks_tiering_is_fast(tiering, 7));
  EXPECT_FALSE(ks_tiering_is_fast(tiering, 6));
  EXPECT_FALSE(ks_tiering_is_fast(tiering, 100));
  EXPECT_FALSE(ks_tiering_is_fast(tiering, 1000)) << "past the end";

  KsTieringStats stats;
  ks_tiering_stats(tiering, &stats);
  EXPECT_EQ(10U, stats.scans);
  EXPECT_EQ(1U, stats.decisions);
  EXPECT_EQ(30U, stats.slow_writes);
  EXPECT_EQ(0U, stats.fast_writes);
  EXPECT_EQ(2U, stats.pairs);
  EXPECT_EQ(1U, stats.swapped);
  EXPECT_EQ(1U, stats.refused);
  EXPECT_EQ(128U, stats.pages);
  EXPECT_EQ(2U, stats.fast_pages);
  EXPECT_GE(stats.tracked_pages, 3U);
  EXPECT_GT(stats.memory_bytes, 0U);
  ks_tiering_free(tiering);
}

TEST(CapiTieringTest, DecideHandsOutNoMoreThanAskedFor) {
  KsError err{};
  KsTiering* tiering = ks_tiering_new(128, "lru", &err);
  ASSERT_NE(tiering, nullptr) << err.message;
  ASSERT_EQ(0, ks_tiering_set_fast(tiering, 64, 64, true, &err));
  const uint64_t written = ~uint64_t{0};
  ks_tiering_begin_scan(tiering, 0);
  ks_tiering_feed_written(tiering, 0, &written, 64);
  ks_tiering_end_scan(tiering);
  std::vector<KsTieringPair> pairs(64);
  uint32_t count = 0;
  EXPECT_EQ(0, ks_tiering_decide(tiering, pairs.data(), 10, &count, &err));
  EXPECT_EQ(10U, count);
  for (uint32_t i = 0; i < count; i++) EXPECT_EQ(0, ks_tiering_report(tiering, i, true));
  EXPECT_EQ(0, ks_tiering_set(tiering, "limit", 3, &err));
  EXPECT_EQ(0, ks_tiering_decide(tiering, pairs.data(), 10, &count, &err));
  EXPECT_EQ(3U, count);
  ks_tiering_free(tiering);
}

TEST(CapiTieringTest, ErrorsAreSentencesWithErrno) {
  KsError err{};
  EXPECT_EQ(nullptr, ks_tiering_new(0, "mq", &err));
  EXPECT_EQ(EINVAL, err.code);
  EXPECT_EQ(nullptr, ks_tiering_new(1, "fastest", &err));
  EXPECT_THAT(err.message, HasSubstr("'fastest' is unknown"));
  KsTiering* tiering = ks_tiering_new(10, "none", nullptr);
  ASSERT_NE(tiering, nullptr);
  EXPECT_EQ(-EINVAL, ks_tiering_set_fast(tiering, 5, 6, true, &err));
  EXPECT_THAT(err.message, HasSubstr("VM's 10 pages"));
  EXPECT_EQ(-EINVAL, ks_tiering_set_policy(tiering, "fastest", &err));
  EXPECT_STREQ("none", ks_tiering_policy(tiering));
  EXPECT_EQ(-ENOENT, ks_tiering_set(tiering, "queues", 4, &err));
  EXPECT_EQ(0, ks_tiering_set_policy(tiering, "mq", &err));
  EXPECT_EQ(0, ks_tiering_set(tiering, "queues", 4, &err));
  EXPECT_EQ(-EINVAL, ks_tiering_set(tiering, "queues", 99, &err));
  double value = 0;
  EXPECT_EQ(0, ks_tiering_get(tiering, "queues", &value, &err));
  EXPECT_EQ(4, value);
  EXPECT_EQ(-ENOENT, ks_tiering_get(tiering, "nothing", &value, &err));
  ks_tiering_free(tiering);
  ks_tiering_free(nullptr);
}

TEST(CapiTieringTest, ListsPoliciesAndParameters) {
  bool has_mq = false;
  unsigned policies = 0;
  const char* about = nullptr;
  for (const char* name; (name = ks_tiering_policy_name(policies, &about)) != nullptr; ++policies) {
    has_mq = has_mq || std::string(name) == "mq";
    EXPECT_GT(std::string(about).size(), 0U);
    KsTiering* tiering = ks_tiering_new(10, name, nullptr);
    ASSERT_NE(tiering, nullptr) << name;
    KsTieringParameter parameter;
    for (unsigned i = 0; ks_tiering_parameter(tiering, i, &parameter); ++i) {
      KsError err{};
      EXPECT_EQ(0, ks_tiering_set(tiering, parameter.name, parameter.max, &err)) << err.message;
      EXPECT_EQ(0, ks_tiering_set(tiering, parameter.name, parameter.min, &err)) << err.message;
      EXPECT_LE(parameter.min, parameter.value);
      EXPECT_LE(parameter.value, parameter.max);
      EXPECT_LT(std::string(parameter.help).size(), sizeof(parameter.help) - 1) << "cut";
      EXPECT_LT(std::string(parameter.name).size(), sizeof(parameter.name) - 1) << "cut";
    }
    ks_tiering_free(tiering);
  }
  EXPECT_TRUE(has_mq);
  EXPECT_GE(policies, 3U);
}

}  // namespace
