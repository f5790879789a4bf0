// SPDX-License-Identifier: GPL-2.0-or-later
// Small conversions between what people write and read and what the server computes with.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/types.h"
#include "wire/protocol.h"

namespace kintsugi::memserver {

[[nodiscard]] std::string errno_text(int code);
// "2 GiB", "1.5 MiB", "512 B".
[[nodiscard]] std::string size_text(Bytes bytes);
// "2G", "512M", "4096", "1.5T" (powers of 1024; an i or iB after the letter is allowed).
[[nodiscard]] Result<Bytes> parse_size(std::string_view text);
// 16 bytes as 32 hexadecimal digits.
[[nodiscard]] std::string id_text(const std::array<std::uint8_t, 16>& id);
[[nodiscard]] std::optional<wire::SessionId> parse_id(std::string_view text);
// A name from the wire, with what would confuse a terminal or a log replaced.
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace kintsugi::memserver
