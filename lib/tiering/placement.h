// SPDX-License-Identifier: GPL-2.0-or-later
// Which pages of a VM lie on the fast tier.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

// Pages have 32-bit numbers in the nodes of a policy; one number is kept back for "none". That is
// a VM of just below 16 TiB.
inline constexpr PageCount kMaxTieringPages{0xffffffffULL};

// Calls f(page) for each page of group `group` whose bit is set; a group is 64 pages, as is a word
// of a bitmap.
template <typename F>
void for_each_page(std::uint64_t group, std::uint64_t bits, F&& f) {
  for (; bits != 0; bits &= bits - 1) {
    f(PageIndex{group * 64 + static_cast<unsigned>(std::countr_zero(bits))});
  }
}

// One bit a page, fast or slow; all pages begin slow. Memory is paid only near pages that were ever
// fast. One thread at a time.
class Placement {
 public:
  // Errors: no pages, more than kMaxTieringPages, no address space.
  static Result<Placement> create(PageCount pages) {
    if (pages.value == 0 || pages > kMaxTieringPages) {
      return make_error(EINVAL, "tiering needs a VM of 1 to {} pages, not {}",
                        kMaxTieringPages.value, pages.value);
    }
    auto words = LazyArray<std::uint64_t>::create((pages.value + 63) / 64, "the tiers of pages");
    if (!words) return words.error();
    return Placement(pages, std::move(*words));
  }

  [[nodiscard]] PageCount pages() const { return pages_; }
  [[nodiscard]] PageCount fast_pages() const { return fast_pages_; }
  // `page` must be below pages().
  [[nodiscard]] bool is_fast(PageIndex page) const {
    return (words_[page.value / 64] >> (page.value % 64) & 1) != 0;
  }
  // The bits of a group of 64 pages.
  [[nodiscard]] std::uint64_t fast_bits(std::uint64_t group) const { return words_[group]; }
  void set(PageIndex page, bool fast) {
    if (is_fast(page) == fast) return;
    words_[page.value / 64] ^= std::uint64_t{1} << (page.value % 64);
    fast_pages_.value += fast ? 1 : std::uint64_t{0} - 1;
  }
  // The first fast page that is not below `from`; pages() if there is none.
  [[nodiscard]] PageIndex next_fast(PageIndex from) const {
    if (from.value >= pages_.value) return PageIndex{pages_.value};
    std::uint64_t group = from.value / 64;
    std::uint64_t bits = words_[group] & (~std::uint64_t{0} << (from.value % 64));
    while (bits == 0) {
      if (++group == words_.size()) return PageIndex{pages_.value};
      bits = words_[group];
    }
    return PageIndex{group * 64 + static_cast<unsigned>(std::countr_zero(bits))};
  }

 private:
  Placement(PageCount pages, LazyArray<std::uint64_t> words)
      : pages_(pages), words_(std::move(words)) {}

  PageCount pages_;
  PageCount fast_pages_;
  LazyArray<std::uint64_t> words_;
};

}  // namespace kintsugi
