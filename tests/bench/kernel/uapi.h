// SPDX-License-Identifier: GPL-2.0-or-later
// What linux-patches/ adds to the kernel's interface, and what headers older than it lack.
#pragma once

#include <linux/kvm.h>
#include <linux/userfaultfd.h>

#include <cstdint>

namespace kintsugi {

constexpr int kCapAccessBits = 4200;
constexpr std::uint32_t kClearAccessed = 1 << 0;
constexpr std::uint32_t kClearDirty = 1 << 1;
constexpr std::uint32_t kFlush = 1 << 2;

struct KvmAccessBits {
  std::uint64_t first_gfn;
  std::uint64_t num_pages;
  std::uint32_t flags;
  std::uint32_t as_id;
  std::uint64_t accessed_bitmap;
  std::uint64_t dirty_bitmap;
  std::uint64_t page_shifts;
  std::uint64_t pages_done;
  std::uint64_t reserved[3];
};
constexpr unsigned long kGetAccessBits = _IOWR(KVMIO, 0xdd, KvmAccessBits);

struct UffdMove {
  std::uint64_t dst;
  std::uint64_t src;
  std::uint64_t len;
  std::uint64_t mode;
  std::int64_t move;
};
constexpr std::uint64_t kFeatureMove = std::uint64_t{1} << 16;
constexpr unsigned long kUffdMove = _IOWR(UFFDIO, 0x05, UffdMove);

struct UffdPageoutRange {
  std::uint64_t src;
  std::uint64_t dst;
  std::uint64_t len;
};
struct UffdPageout {
  std::uint64_t vec;
  std::uint64_t status;
  std::uint64_t start;
  std::uint64_t mode;
  std::uint32_t nr;
  std::uint32_t reserved;
  std::uint64_t taken;
  std::int64_t done;
};
constexpr std::uint8_t kPageoutDone = 1;
constexpr std::uint64_t kFeaturePageout = std::uint64_t{1} << 62;
constexpr unsigned long kUffdPageout = _IOWR(UFFDIO, 0x3e, UffdPageout);

}  // namespace kintsugi
