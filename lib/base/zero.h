// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <cstring>

#include "base/types.h"

namespace kintsugi {

// Whether a page is all zero. Looks at its first word, and at one of every quarter, before all the
// rest: pages that hold data mostly show it there. The page may be written meanwhile; then the
// answer is stale like the page.
inline bool is_zero_page(const void* page) {
  const auto* bytes = static_cast<const unsigned char*>(page);
  const auto word_at = [bytes](std::size_t at) {
    std::uint64_t word;
    std::memcpy(&word, bytes + at, sizeof(word));
    return word;
  };
  if (word_at(0) != 0) return false;
  if ((word_at(kPageSize / 4) | word_at(kPageSize / 2) | word_at(kPageSize / 4 * 3)) != 0) {
    return false;
  }
  constexpr std::size_t kStep = 256;
  for (std::size_t at = 0; at < kPageSize; at += kStep) {
    std::uint64_t any = 0;
    for (std::size_t i = 0; i < kStep; i += sizeof(std::uint64_t)) any |= word_at(at + i);
    if (any != 0) return false;
  }
  return true;
}

}  // namespace kintsugi
