// SPDX-License-Identifier: GPL-2.0-or-later
#include "placement/reserve.h"

#include <algorithm>

namespace kintsugi {
namespace {

constexpr std::uint64_t kLeastPages = (1 << 20) >> kPageShift;

double mib(PageCount pages) { return static_cast<double>(to_bytes(pages).value) / (1 << 20); }

}  // namespace

PageCount paging_reserve(PageCount limit, PageCount chunk_pages) {
  return PageCount{std::max({limit.value / 64, kLeastPages, 2 * chunk_pages.value})};
}

Result<void> check_main_limit(PageCount limit, PageCount chunk_pages) {
  const PageCount reserve = paging_reserve(limit, chunk_pages);
  if (limit.value / 2 >= reserve.value) return {};
  return make_error(EINVAL,
                    "main-memory of {:.1f} MiB is too little for chunks of {} KiB: paging keeps "
                    "{:.1f} MiB free and needs as much to work in; give {:.1f} MiB or more, or "
                    "lower chunk-size",
                    mib(limit), to_bytes(chunk_pages).value / 1024, mib(reserve),
                    mib(PageCount{2 * reserve.value}));
}

}  // namespace kintsugi
