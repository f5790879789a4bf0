// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/size_text.h"

#include <array>
#include <charconv>
#include <cmath>
#include <system_error>

namespace kintsugi {

std::string size_text(Bytes bytes) {
  constexpr std::array<const char*, 7> kUnits{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  std::size_t unit = 0;
  auto value = static_cast<double>(bytes.value);
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    unit++;
  }
  if (value == std::floor(value)) return fmt::format("{:.0f} {}", value, kUnits[unit]);
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

Result<Bytes> parse_size(std::string_view text) {
  const auto refuse = [&] {
    return make_error(EINVAL, "'{}' is not a size: write 512M, 16G or 1.5T, say", text);
  };
  double value = 0;
  const auto [rest, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc{} || !(value >= 0)) return refuse();
  std::string_view unit(rest, static_cast<std::size_t>(text.data() + text.size() - rest));
  if (!unit.empty()) {
    constexpr std::string_view kLetters = "BKMGTPE";
    const std::size_t power = kLetters.find(static_cast<char>(unit.front() & ~0x20));
    if (power == std::string_view::npos) return refuse();
    unit.remove_prefix(1);
    if (power > 0 && !unit.empty() && unit != "i" && unit != "iB" && unit != "B") return refuse();
    if (power == 0 && !unit.empty()) return refuse();
    value = std::ldexp(value, static_cast<int>(10 * power));
  }
  if (value >= 0x1p63) return refuse();
  return Bytes{static_cast<std::uint64_t>(value)};
}

}  // namespace kintsugi
