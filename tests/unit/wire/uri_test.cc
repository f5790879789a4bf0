// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/uri.h"

#include <gtest/gtest.h>

namespace kintsugi::wire {
namespace {

TEST(UriTest, ParsesWhatItPrints) {
  for (const char* text :
       {"tcp:host:1", "tcp:127.0.0.1:65535", "tcp:[::1]:0", "unix:/run/a b.sock", "unix:rel"}) {
    const Result<Uri> uri = parse_uri(text);
    ASSERT_TRUE(uri) << text << ": " << uri.error().message;
    EXPECT_EQ(uri->text(), text);
  }
}

TEST(UriTest, RefusesTheRestAndNamesIt) {
  const std::string long_path = "unix:/" + std::string(200, 'x');
  for (const std::string& text :
       {std::string(""), std::string("host:1"), std::string("tcp:host"), std::string("tcp::1"),
        std::string("tcp:host:"), std::string("tcp:host:65536"), std::string("tcp:host:1x"),
        std::string("tcp:::1:5"), std::string("tcp:[::1:5"), std::string("unix:"), long_path}) {
    const Result<Uri> uri = parse_uri(text);
    ASSERT_FALSE(uri) << text;
    EXPECT_NE(uri.error().message.find("'" + text + "'"), std::string::npos);
    EXPECT_NE(uri.error().message.find("tcp:HOST:PORT"), std::string::npos);
  }
}

}  // namespace
}  // namespace kintsugi::wire
