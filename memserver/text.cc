// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/text.h"

#include <charconv>
#include <system_error>

namespace kintsugi::memserver {

std::string errno_text(int code) { return std::generic_category().message(code); }

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
