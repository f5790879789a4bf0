// SPDX-License-Identifier: GPL-2.0-or-later
// Named ranges of physical addresses: the tiers, as the meter reports them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace kintsugi::meter {

inline constexpr std::size_t kMaxNames = 15;
inline constexpr std::size_t kMaxPieces = 64;
inline constexpr std::size_t kMaxNameBytes = 32;
// What lies in no range is reported under this name.
inline constexpr std::string_view kOther = "other";

struct Piece {
  std::string name;
  std::uint64_t start = 0;  // physical address, whole pages
  Bytes size;               // whole pages
};

// "dram0:0x100000000:100M", "host:0:2G", or "host:4G:4G". Names are letters, digits and "._-".
[[nodiscard]] Result<Piece> parse_piece(std::string_view text);

// Which name an address belongs to. A name may have several pieces, as a memory channel may be
// mapped in two places (P4, table 1). Immutable once made; find() by any thread.
class RangeMap {
 public:
  // Refuses pieces that overlap, are not of whole pages, or are too many.
  static Result<RangeMap> create(std::vector<Piece> pieces);

  // The index of the address's name; names().size() - 1, kOther, if it is in no piece.
  [[nodiscard]] std::size_t find(std::uint64_t address) const;

  // In the order in which they were first given, then kOther.
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }
  // By address.
  [[nodiscard]] const std::vector<Piece>& pieces() const { return pieces_; }
  // The bytes of all pieces.
  [[nodiscard]] Bytes size() const;

  // Pages of all pieces laid end to end, by address: a dense number for the page of an address, or
  // pages().value if it is in no piece; and back.
  [[nodiscard]] PageCount pages() const { return to_pages(size()); }
  [[nodiscard]] std::uint64_t page_of(std::uint64_t address) const;
  [[nodiscard]] std::uint64_t address_of_page(std::uint64_t page) const;

 private:
  struct Span {
    std::uint64_t start, end;  // end: the first address behind it
    std::size_t name;
    std::uint64_t first_page;  // of the dense numbers
  };
  RangeMap() = default;
  [[nodiscard]] const Span* span_of(std::uint64_t address) const;

  std::vector<Piece> pieces_;
  std::vector<Span> spans_;  // by address
  std::vector<std::string> names_;
};

}  // namespace kintsugi::meter
