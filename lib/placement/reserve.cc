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

Bytes paging_memory(PageCount vm_pages, std::size_t servers, Bytes eviction_queue) {
  constexpr std::uint64_t kPageBytes = 3 + 8 + 8;
  constexpr std::uint64_t kFixed_bytes = std::uint64_t{4} << 20;
  constexpr std::uint64_t kServer_bytes = std::uint64_t{2} << 20;
  return Bytes{vm_pages.value * kPageBytes + eviction_queue.value + kFixed_bytes +
               servers * kServer_bytes};
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
