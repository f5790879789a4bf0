// SPDX-License-Identifier: GPL-2.0-or-later
// Sizes as people write and read them.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

// "2 GiB", "1.5 MiB", "512 B".
[[nodiscard]] std::string size_text(Bytes bytes);
// "2G", "512M", "4096", "1.5T" (powers of 1024; an i or iB after the letter is allowed).
[[nodiscard]] Result<Bytes> parse_size(std::string_view text);

}  // namespace kintsugi
