// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <cstring>

#include "base/types.h"

namespace kintsugi {

// Whether a page is all zero. Looks at one word of every quarter first: pages that hold data mostly
// show it there. The page may be written meanwhile; then the answer is stale like the page.
inline bool is_zero_page(const void* page) {
  const auto* bytes = static_cast<const unsigned char*>(page);
  std::uint64_t sample = 0;
  for (std::size_t at = 0; at < kPageSize; at += kPageSize / 4) {
    std::uint64_t word;
    std::memcpy(&word, bytes + at, sizeof(word));
    sample |= word;
  }
  if (sample != 0) return false;
  constexpr std::size_t kStep = 256;
  for (std::size_t at = 0; at < kPageSize; at += kStep) {
    std::uint64_t any = 0;
    for (std::size_t i = 0; i < kStep; i += sizeof(std::uint64_t)) {
      std::uint64_t word;
      std::memcpy(&word, bytes + at + i, sizeof(word));
      any |= word;
    }
    if (any != 0) return false;
  }
  return true;
}

}  // namespace kintsugi
