// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/options.h"

#include <charconv>
#include <system_error>
#include <utility>

#include "base/size_text.h"

namespace kintsugi::meter {
namespace {

constexpr double kMinInterval_s = 0.01;
constexpr double kMaxInterval_s = 3600;

template <typename T>
bool read_number(std::string_view text, T& number) {
  const auto [rest, ec] = std::from_chars(text.data(), text.data() + text.size(), number);
  return ec == std::errc{} && rest == text.data() + text.size();
}

Error wrong(std::string_view name, std::string_view value, std::string_view may_be) {
  return make_error(EINVAL, "{}={}: it may be {}", name, value, may_be);
}

// The argument's `name` is one of those of CacheGeometry, or is unknown.
Result<void> parse_cache(CacheGeometry& cache, std::string_view name, std::string_view value) {
  if (name == "size") {
    auto size = parse_size(value);
    if (!size) return make_error(EINVAL, "size={}: {}", value, size.error().message);
    cache.size = *size;
  } else if (name == "ways" || name == "line" || name == "sample") {
    unsigned& number = name == "ways"   ? cache.ways
                       : name == "line" ? cache.line_bytes
                                        : cache.sample;
    if (!read_number(value, number)) return wrong(name, value, "a whole number");
  } else if (name == "policy") {
    if (value != "lru" && value != "plru") return wrong(name, value, "lru or plru");
    cache.replacement = value == "lru" ? Replacement::kLru : Replacement::kTreePlru;
  } else if (name == "write-allocate") {
    if (value != "on" && value != "off") return wrong(name, value, "on or off");
    cache.write_allocate = value == "on";
  } else {
    return make_error(EINVAL,
                      "unknown argument {}=: there are out, range, interval, pages, size, ways, "
                      "line, sample, policy and write-allocate",
                      name);
  }
  return {};
}

Result<void> parse_one(Options& options, std::string_view name, std::string_view value) {
  if (name == "out") {
    options.out = value;
  } else if (name == "pages") {
    options.pages = value;
  } else if (name == "range") {
    auto piece = parse_piece(value);
    if (!piece) return piece.error();
    options.pieces.push_back(std::move(*piece));
  } else if (name == "interval") {
    double interval_s = 0;
    if (!read_number(value, interval_s) || !(interval_s >= kMinInterval_s) ||
        interval_s > kMaxInterval_s) {
      return wrong(name, value, fmt::format("{} to {} seconds", kMinInterval_s, kMaxInterval_s));
    }
    options.interval = std::chrono::milliseconds(static_cast<std::int64_t>(interval_s * 1000));
  } else {
    return parse_cache(options.cache, name, value);
  }
  return {};
}

}  // namespace

Result<Options> parse_options(std::span<const char* const> arguments) {
  Options options;
  for (const std::string_view argument : arguments) {
    const std::size_t equals = argument.find('=');
    if (equals == argument.npos) return make_error(EINVAL, "'{}' is not NAME=VALUE", argument);
    auto good = parse_one(options, argument.substr(0, equals), argument.substr(equals + 1));
    if (!good) return good.error();
  }
  if (options.out.empty()) return make_error(EINVAL, "out= is missing: the file to write to");
  if (options.out == options.pages) {
    return make_error(EINVAL, "out= and pages= name the same file, {}", options.out);
  }
  return options;
}

}  // namespace kintsugi::meter
