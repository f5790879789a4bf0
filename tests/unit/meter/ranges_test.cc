// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/ranges.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace kintsugi::meter {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t kGib = std::uint64_t{1} << 30;

// P4's table 1.
RangeMap table_1() {
  std::vector<Piece> pieces;
  for (const char* text : {"host:0x0:2G", "host:0xd00000000:14G", "host1:0x100000000:16G",
                           "dram:0x500000000:16G", "mram:0x900000000:16G"}) {
    auto piece = parse_piece(text);
    EXPECT_TRUE(piece.ok()) << text;
    pieces.push_back(std::move(*piece));
  }
  auto map = RangeMap::create(std::move(pieces));
  EXPECT_TRUE(map.ok());
  return std::move(*map);
}

std::string refusal(std::vector<Piece> pieces) {
  const auto map = RangeMap::create(std::move(pieces));
  return map.ok() ? "accepted" : map.error().message;
}

TEST(RangeMap, FindsTheNameOfAnAddress) {
  const RangeMap map = table_1();
  EXPECT_THAT(map.names(), ElementsAre("host", "host1", "dram", "mram", "other"));
  const std::vector<std::pair<std::uint64_t, std::size_t>> expected{
      {0, 0},           {2 * kGib - 1, 0}, {2 * kGib, 4},     {0x100000000, 1},
      {0x4ffffffff, 1}, {0x500000000, 2},  {0x8ffffffff, 2},  {0x900000000, 3},
      {0xcffffffff, 3}, {0xd00000000, 0},  {0x107fffffff, 0}, {0x1080000000, 4},
      {~0ULL >> 12, 4},
  };
  for (const auto& [address, name] : expected) EXPECT_EQ(map.find(address), name) << address;
}

TEST(RangeMap, NumbersPagesDensely) {
  const RangeMap map = table_1();
  EXPECT_EQ(map.pages().value, 64 * kGib >> 12);
  EXPECT_EQ(map.page_of(0), 0);
  EXPECT_EQ(map.page_of(2 * kGib - 1), (2 * kGib >> 12) - 1);
  EXPECT_EQ(map.page_of(2 * kGib), map.pages().value);
  EXPECT_EQ(map.page_of(0x100000123), 2 * kGib >> 12);
  for (const std::uint64_t address : {0ULL, 0x7ffff000ULL, 0x500000000ULL, 0x107ffff000ULL}) {
    EXPECT_EQ(map.address_of_page(map.page_of(address)), address);
  }
}

TEST(RangeMap, WithoutRangesAllIsOther) {
  const auto map = RangeMap::create({});
  ASSERT_TRUE(map.ok());
  EXPECT_THAT(map->names(), ElementsAre("other"));
  EXPECT_EQ(map->find(0), 0);
  EXPECT_EQ(map->page_of(0), 0);
  EXPECT_EQ(map->pages().value, 0);
}

TEST(RangeMap, RefusesWhatIsAmbiguous) {
  EXPECT_THAT(refusal({{"a", 0, Bytes{8192}}, {"b", 4096, Bytes{4096}}}), HasSubstr("overlaps"));
  EXPECT_EQ(refusal({{"a", 4096, Bytes{4096}}, {"b", 0, Bytes{4096}}}), "accepted");
  std::vector<Piece> many;
  for (unsigned i = 0; i < 16; i++)
    many.push_back({"n" + std::to_string(i), i * 4096, Bytes{4096}});
  EXPECT_THAT(refusal(many), HasSubstr("16 names"));
  for (Piece& piece : many) piece.name = "same";
  EXPECT_EQ(refusal(many), "accepted");
  std::vector<Piece> pieces;
  for (unsigned i = 0; i < 65; i++) pieces.push_back({"same", i * 4096, Bytes{4096}});
  EXPECT_THAT(refusal(pieces), HasSubstr("65 ranges"));
}

TEST(ParsePiece, SaysWhatIsWrong) {
  const auto refused = [](const char* text) {
    const auto piece = parse_piece(text);
    return piece.ok() ? "accepted" : piece.error().message;
  };
  EXPECT_EQ(refused("dram:4G:100M"), "accepted");
  EXPECT_THAT(refused("dram"), HasSubstr("NAME:START:SIZE"));
  EXPECT_THAT(refused("dram:0x1000"), HasSubstr("NAME:START:SIZE"));
  EXPECT_THAT(refused("dram:0xg:4K"), HasSubstr("'0xg'"));
  EXPECT_THAT(refused("dram:0x:4K"), HasSubstr("'0x'"));
  EXPECT_THAT(refused("dram:0:4K:5"), HasSubstr("'4K:5'"));
  EXPECT_THAT(refused("dram:0x10000000000000000:4K"), HasSubstr("64 bits"));
  EXPECT_THAT(refused("dram:0:0"), HasSubstr("empty"));
  EXPECT_THAT(refused("dram:0xfffffffffffff000:4K"), HasSubstr("52 bits"));
  EXPECT_THAT(refused("dram:0:4097"), HasSubstr("whole pages"));
  EXPECT_THAT(refused("dram:0x800:4K"), HasSubstr("whole pages"));
  EXPECT_THAT(refused(":0:4K"), HasSubstr("not a name"));
  EXPECT_THAT(refused("a\"b:0:4K"), HasSubstr("not a name"));
  EXPECT_THAT(refused("other:0:4K"), HasSubstr("taken"));
}

}  // namespace
}  // namespace kintsugi::meter
