// SPDX-License-Identifier: GPL-2.0-or-later
// Small conversions between what people write and read and what the server computes with.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/size_text.h"
#include "base/types.h"
#include "wire/protocol.h"

namespace kintsugi::memserver {

[[nodiscard]] std::string errno_text(int code);
// 16 bytes as 32 hexadecimal digits.
[[nodiscard]] std::string id_text(const std::array<std::uint8_t, 16>& id);
[[nodiscard]] std::optional<wire::SessionId> parse_id(std::string_view text);
// A name from the wire, with what would confuse a terminal or a log replaced.
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace kintsugi::memserver
