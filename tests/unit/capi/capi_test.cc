// SPDX-License-Identifier: GPL-2.0-or-later
// What QEMU relies on at the C border: errors as sentences, nothing thrown, nothing trusted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "kintsugi.h"

namespace {

using ::testing::HasSubstr;

KsSplitConfig config_with(const KsSubHost* sub_hosts, uint32_t count) {
  KsSplitConfig config{};
  config.vm_name = "test";
  config.vm_pages = 4096;
  config.chunk_pages = 16;
  config.main_capacity_bytes = 8 << 20;
  config.sub_hosts = sub_hosts;
  config.sub_host_count = count;
  config.policy = KS_POLICY_AGING;
  config.connect_timeout_ms = 1000;
  config.io_timeout_ms = 1000;
  return config;
}

TEST(CapiTest, ErrorsAreSentencesWithErrno) {
  const KsSubHost sub_host{"nonsense", 16 << 20};
  const KsSplitConfig config = config_with(&sub_host, 1);
  KsError err{};
  EXPECT_EQ(ks_split_check(&config, &err), -EINVAL);
  EXPECT_EQ(err.code, EINVAL);
  EXPECT_THAT(err.message, HasSubstr("'nonsense'"));
  EXPECT_EQ(ks_split_new(&config, &err), nullptr);
  EXPECT_EQ(ks_split_check(&config, nullptr), -EINVAL) << "the error may be left out";
}

TEST(CapiTest, LongErrorsAreCut) {
  const std::string uri(4000, 'x');
  const KsSubHost sub_host{uri.c_str(), 16 << 20};
  const KsSplitConfig config = config_with(&sub_host, 1);
  KsError err{};
  EXPECT_EQ(ks_split_check(&config, &err), -EINVAL);
  EXPECT_EQ(strlen(err.message), sizeof(err.message) - 1);
}

TEST(CapiTest, FailedOpenCanBeFreed) {
  const KsSubHost sub_host{"unix:/nonexistent/socket", 16 << 20};
  const KsSplitConfig config = config_with(&sub_host, 1);
  KsError err{};
  KsSplit* split = ks_split_new(&config, &err);
  ASSERT_NE(split, nullptr) << err.message;
  EXPECT_LT(ks_split_open(split, &err), 0);
  EXPECT_THAT(err.message, HasSubstr("unix:/nonexistent/socket"));
  ks_split_free(split, true);
}

TEST(CapiTest, HistoryFeedsAndRanks) {
  KsError err{};
  KsHistory* history = ks_history_new(64, 16, KS_POLICY_AGING, 1, &err);
  ASSERT_NE(history, nullptr) << err.message;
  const uint64_t accessed = uint64_t{1} << 20;
  ks_history_tick(history);
  ks_history_feed(history, 0, &accessed, 64);
  EXPECT_EQ(ks_history_rank(history, 0), 0);
  EXPECT_EQ(ks_history_rank(history, 1), 0x80);
  ks_history_tick(history);
  EXPECT_EQ(ks_history_rank(history, 1), 0x40);
  ks_history_free(history);
  EXPECT_EQ(ks_history_new(64, 12, KS_POLICY_AGING, 1, &err), nullptr);
  EXPECT_THAT(err.message, HasSubstr("power of two"));
}

TEST(CapiTest, PagerTrustsNoPlan) {
  KsPagerConfig config{};
  config.vm_pages = 4096;
  KsError err{};
  EXPECT_EQ(ks_pager_new("", 0, &config, &err), nullptr);
  EXPECT_NE(err.code, 0);
  const std::vector<uint8_t> noise(1000, 0x5a);
  EXPECT_EQ(ks_pager_new(noise.data(), noise.size(), &config, &err), nullptr);
  EXPECT_THAT(err.message, HasSubstr("cannot be read"));
}

}  // namespace
