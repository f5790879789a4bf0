// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/size_text.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace kintsugi {
namespace {

TEST(SizeText, SizesAreReadAndWritten) {
  const std::vector<std::pair<const char*, std::uint64_t>> good{
      {"0", 0},           {"4096", 4096},      {"4K", 4096},
      {"4k", 4096},       {"1.5M", 3 << 19},   {"2GiB", std::uint64_t{2} << 30},
      {"2G", 2ULL << 30}, {"3Ti", 3ULL << 40}, {"512B", 512},
  };
  for (const auto& [text, bytes] : good) {
    const Result<Bytes> size = parse_size(text);
    ASSERT_TRUE(size.ok()) << text;
    EXPECT_EQ(size->value, bytes) << text;
  }
  for (const char* text : {"", "x", "G", "-1", "1Z", "1GG", "1 G", "nan", "1e30", "9E", "4Bi"}) {
    EXPECT_FALSE(parse_size(text).ok()) << text;
  }
  EXPECT_EQ(size_text(Bytes{0}), "0 B");
  EXPECT_EQ(size_text(Bytes{1536}), "1.5 KiB");
  EXPECT_EQ(size_text(Bytes{std::uint64_t{2} << 40}), "2 TiB");
}

}  // namespace
}  // namespace kintsugi
