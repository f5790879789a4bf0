// SPDX-License-Identifier: GPL-2.0-or-later
// Where the VM's pages are mapped in this process.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

// QEMU has few split RAM blocks: looked up one after the other.
inline constexpr unsigned kMaxRegions = 64;

struct Region {
  char* host = nullptr;
  PageIndex first;
  PageCount pages;

  [[nodiscard]] std::size_t bytes() const { return pages.value * kPageSize; }
  [[nodiscard]] bool contains(PageIndex page) const {
    return page.value - first.value < pages.value;
  }
};

// Regions do not overlap, neither in page indices nor in addresses. Filled before the threads
// start, then only read.
class Regions {
 public:
  // Errors: not aligned, empty, overlap, too many.
  [[nodiscard]] Result<void> add(const Region& region);

  [[nodiscard]] const Region* begin() const { return regions_.data(); }
  [[nodiscard]] const Region* end() const { return regions_.data() + count_; }
  [[nodiscard]] PageCount pages() const;

  // Null when the page is in no region.
  [[nodiscard]] char* host(PageIndex page) const {
    for (const Region& region : *this) {
      if (region.contains(page)) {
        return region.host + (page.value - region.first.value) * kPageSize;
      }
    }
    return nullptr;
  }
  // Null when the address is in no region.
  [[nodiscard]] const Region* of_address(std::uint64_t address) const {
    for (const Region& region : *this) {
      if (address - reinterpret_cast<std::uint64_t>(region.host) < region.bytes()) return &region;
    }
    return nullptr;
  }
  // Of [first, first + count), how many pages from `first` on lie in the region of `first`.
  [[nodiscard]] PageCount contiguous(PageIndex first, PageCount count) const;

 private:
  std::array<Region, kMaxRegions> regions_;
  unsigned count_ = 0;
};

// Whether userfaultfd can page the range: it must be private anonymous memory of 4 KiB pages. The
// error says what it is and what to change. Reads /proc/self/maps.
[[nodiscard]] Result<void> check_pageable(const void* host, std::size_t bytes);

}  // namespace kintsugi
