// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/text.h"

#include <charconv>
#include <cmath>
#include <system_error>

namespace kintsugi::memserver {

std::string errno_text(int code) { return std::generic_category().message(code); }

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

std::string id_text(const std::array<std::uint8_t, 16>& id) {
  std::string text;
  for (const std::uint8_t byte : id) text += fmt::format("{:02x}", byte);
  return text;
}

std::optional<wire::SessionId> parse_id(std::string_view text) {
  wire::SessionId id;
  if (text.size() != id.size() * 2) return std::nullopt;
  for (std::size_t i = 0; i < id.size(); i++) {
    const char* at = text.data() + i * 2;
    const auto [end, ec] = std::from_chars(at, at + 2, id[i], 16);
    if (ec != std::errc{} || end != at + 2) return std::nullopt;
  }
  return id;
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) out += (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') ? c : '?';
  return out;
}

}  // namespace kintsugi::memserver
