// SPDX-License-Identifier: GPL-2.0-or-later
// The write meter's arguments, as QEMU hands them on: docs/write-meter.md lists them.
#pragma once

#include <chrono>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "meter/cache_model.h"
#include "meter/ranges.h"

namespace kintsugi::meter {

struct Options {
  CacheGeometry cache;
  std::vector<Piece> pieces;
  std::string out;    // where the meter's file goes
  std::string pages;  // where writes page by page go; empty: nowhere
  std::chrono::milliseconds interval{1000};
};

// "name=value" each; `range` may come several times, of others the last one counts. The error says
// which argument is wrong and what it may be; that the cache can be built is not checked here.
[[nodiscard]] Result<Options> parse_options(std::span<const char* const> arguments);

}  // namespace kintsugi::meter
