// SPDX-License-Identifier: GPL-2.0-or-later
// The quantities that are easily confused, each a type of its own.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>

namespace kintsugi {

// Kintsugi pages guest memory in 4 KiB units, whatever the host's own page size is.
inline constexpr unsigned kPageShift = 12;
inline constexpr std::size_t kPageSize = std::size_t{1} << kPageShift;

// A number that only combines with numbers of the same kind.
template <typename Tag, typename Rep>
struct Strong {
  Rep value = 0;

  constexpr Strong() = default;
  constexpr explicit Strong(Rep v) : value(v) {}
  constexpr auto operator<=>(const Strong&) const = default;  // NOLINT: clang-tidy 14 sees a 0
  constexpr Strong& operator++() {
    ++value;
    return *this;
  }
};

// Index of a page in a VM's paged memory: the split RAMBlocks laid end to end, in the order in
// which the source lists them. Not a gfn: holes of the guest's physical map do not appear.
using PageIndex = Strong<struct PageIndexTag, std::uint64_t>;
// A number of pages.
using PageCount = Strong<struct PageCountTag, std::uint64_t>;
// Index of a chunk: 2^k consecutive pages, the unit of splitting and of eviction (P1).
using ChunkIndex = Strong<struct ChunkIndexTag, std::uint64_t>;
// A number of bytes.
using Bytes = Strong<struct BytesTag, std::uint64_t>;
// Where memory lives: 0 is the main host, 1..kMaxServers the sub-hosts in the order given.
using ServerId = Strong<struct ServerIdTag, std::uint8_t>;
// Ownership generation of a session on a memory server; a request with an older one is fenced.
using Epoch = Strong<struct EpochTag, std::uint64_t>;

inline constexpr ServerId kMainHost{0};
inline constexpr unsigned kMaxServers = 63;

// The least multiple of `to` that is not below `n`.
constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

constexpr Bytes to_bytes(PageCount n) { return Bytes{n.value << kPageShift}; }
constexpr PageCount to_pages(Bytes b) { return PageCount{b.value >> kPageShift}; }
constexpr PageIndex operator+(PageIndex p, PageCount n) { return PageIndex{p.value + n.value}; }
constexpr PageCount operator-(PageIndex a, PageIndex b) { return PageCount{a.value - b.value}; }
constexpr PageCount operator+(PageCount a, PageCount b) { return PageCount{a.value + b.value}; }
constexpr PageCount operator-(PageCount a, PageCount b) { return PageCount{a.value - b.value}; }
constexpr Bytes operator+(Bytes a, Bytes b) { return Bytes{a.value + b.value}; }

}  // namespace kintsugi
