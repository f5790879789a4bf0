// SPDX-License-Identifier: GPL-2.0-or-later
#include <gtest/gtest.h>

#include "memserver/text.h"

namespace kintsugi::memserver {
namespace {

TEST(Text, IdsAreHexadecimal) {
  const std::string text = "00112233445566778899aabbccddeeff";
  EXPECT_EQ(id_text(*parse_id(text)), text);
  for (const char* bad :
       {"", "00", "00112233445566778899aabbccddeefg", "00112233445566778899aabbccddeeff00",
        "+0112233445566778899aabbccddeeff"}) {
    EXPECT_FALSE(parse_id(bad).has_value()) << bad;
  }
}

TEST(Text, NamesAreMadePrintable) {
  EXPECT_EQ(printable("db-1 \x1b[31m\n\"\\\x7f\xff"), "db-1 ?[31m?????");
}

}  // namespace
}  // namespace kintsugi::memserver
