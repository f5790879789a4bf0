// SPDX-License-Identifier: GPL-2.0-or-later
#include "placement/reserve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kintsugi {
namespace {

constexpr PageCount mib(std::uint64_t n) { return PageCount{n << 8}; }

TEST(Reserve, IsAShareAndAtLeastTwoChunks) {
  EXPECT_EQ(paging_reserve(mib(6400), PageCount{16}), mib(100));
  EXPECT_EQ(paging_reserve(mib(10), PageCount{16}), mib(1));
  EXPECT_EQ(paging_reserve(mib(48), mib(16)), mib(32));
}

TEST(Reserve, AMainHostHasRoomForTwice) {
  EXPECT_TRUE(check_main_limit(mib(64), mib(16)));
  EXPECT_TRUE(check_main_limit(mib(2), PageCount{16}));
  const Result<void> little = check_main_limit(mib(48), mib(16));
  ASSERT_FALSE(little);
  EXPECT_THAT(little.error().message, testing::HasSubstr("give 64.0 MiB or more"));
  EXPECT_FALSE(check_main_limit(PageCount{0}, PageCount{1}));
  EXPECT_FALSE(check_main_limit(mib(64), PageCount{UINT64_MAX / 4}));
}

}  // namespace
}  // namespace kintsugi
