// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/regions.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <string_view>

namespace kintsugi {

Result<void> Regions::add(const Region& region) {
  const auto address = reinterpret_cast<std::uint64_t>(region.host);
  if (region.host == nullptr || address % kPageSize != 0 || region.pages.value == 0) {
    return make_error(EINVAL, "memory region at {} of {} pages is empty or not aligned to 4 KiB",
                      static_cast<void*>(region.host), region.pages.value);
  }
  if (count_ == kMaxRegions) {
    return make_error(E2BIG, "the VM has more than {} split memory regions", kMaxRegions);
  }
  for (const Region& other : *this) {
    const auto at = reinterpret_cast<std::uint64_t>(other.host);
    if ((address < at + other.bytes() && at < address + region.bytes()) ||
        (region.first < other.first + other.pages && other.first < region.first + region.pages)) {
      return make_error(EEXIST, "memory region of pages {} to {} overlaps another",
                        region.first.value, region.first.value + region.pages.value - 1);
    }
  }
  regions_[count_++] = region;
  return {};
}

PageCount Regions::pages() const {
  PageCount sum{0};
  for (const Region& region : *this) sum = sum + region.pages;
  return sum;
}

PageCount Regions::contiguous(PageIndex first, PageCount count) const {
  for (const Region& region : *this) {
    if (region.contains(first)) {
      return std::min(count, region.first + region.pages - first);
    }
  }
  return PageCount{0};
}

Result<void> check_pageable(const void* host, std::size_t bytes) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> maps(std::fopen("/proc/self/maps", "re"),
                                                             &std::fclose);
  if (!maps) return make_error(errno, "cannot read /proc/self/maps to look at the guest's memory");
  std::uint64_t at = reinterpret_cast<std::uint64_t>(host);
  const std::uint64_t end = at + bytes;
  char line[512];
  while (at < end && std::fgets(line, sizeof(line), maps.get()) != nullptr) {
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    std::uint64_t inode = 0;
    char rights[5] = {};
    if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*s %*s %" SCNu64, &from, &to, rights,
                    &inode) != 4) {
      continue;  // the rest of a line with a long path
    }
    if (to <= at) continue;
    if (from > at) break;
    if (inode != 0) {
      const std::string_view text(line);
      const bool huge = text.find("hugepage") != text.npos || text.find("huge") != text.npos;
      return make_error(
          EOPNOTSUPP,
          "guest memory is backed by {}{}: remote memory needs private anonymous memory of 4 KiB "
          "pages; use memory-backend-ram with share=off and without huge pages",
          rights[3] == 's' ? "shared memory" : "a file", huge ? " of huge pages" : "");
    }
    if (rights[0] != 'r' || rights[1] != 'w') {
      return make_error(EOPNOTSUPP, "guest memory is mapped without read and write access");
    }
    at = to;
  }
  if (at < end) return make_error(EFAULT, "guest memory is not mapped at {:#x}", at);
  return {};
}

}  // namespace kintsugi
