// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/ranges.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

#include "base/size_text.h"
#include "meter/cache_model.h"

namespace kintsugi::meter {
namespace {

constexpr std::string_view kNameLetters =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

// A physical address or a size: hexadecimal with 0x, else as parse_size() has it.
Result<std::uint64_t> parse_number(std::string_view text) {
  if (!text.starts_with("0x") && !text.starts_with("0X")) {
    auto size = parse_size(text);
    if (!size) return size.error();
    return size->value;
  }
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, ec] = std::from_chars(text.data() + 2, end, value, 16);
  if (ec != std::errc{} || rest != end) {
    return make_error(EINVAL, "'{}' is not a hexadecimal number of at most 64 bits", text);
  }
  return value;
}

Result<void> check_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes ||
      name.find_first_not_of(kNameLetters) != std::string_view::npos) {
    return make_error(EINVAL, "'{}' is not a name: 1 to {} letters, digits, '.', '_' or '-'", name,
                      kMaxNameBytes);
  }
  if (name == kOther) {
    return make_error(EINVAL, "the name '{}' is taken for what lies in no range", kOther);
  }
  return {};
}

Result<void> check_piece(const Piece& piece) {
  if (auto good = check_name(piece.name); !good) return good.error();
  const std::uint64_t most = std::uint64_t{1} << kMaxAddressBits;
  if (piece.size.value == 0 || piece.start >= most || piece.size.value > most - piece.start) {
    return make_error(EINVAL, "range {} of {} at {:#x} is empty, or past {} bits of address",
                      piece.name, size_text(piece.size), piece.start, kMaxAddressBits);
  }
  if (piece.start % kPageSize != 0 || piece.size.value % kPageSize != 0) {
    return make_error(EINVAL, "range {} of {} at {:#x} is not of whole pages of {} bytes",
                      piece.name, size_text(piece.size), piece.start, kPageSize);
  }
  return {};
}

}  // namespace

Result<Piece> parse_piece(std::string_view text) {
  const std::size_t first = text.find(':');
  const std::size_t second = first == text.npos ? text.npos : text.find(':', first + 1);
  if (second == text.npos) {
    return make_error(EINVAL, "'{}' is not a range: write NAME:START:SIZE, dram:0x100000000:100M",
                      text);
  }
  auto start = parse_number(text.substr(first + 1, second - first - 1));
  auto size = parse_number(text.substr(second + 1));
  for (const auto* number : {&start, &size}) {
    if (!*number) return make_error(EINVAL, "range '{}': {}", text, number->error().message);
  }
  Piece piece{std::string(text.substr(0, first)), *start, Bytes{*size}};
  if (auto good = check_piece(piece); !good) return good.error();
  return piece;
}

Result<RangeMap> RangeMap::create(std::vector<Piece> pieces) {
  if (pieces.size() > kMaxPieces) {
    return make_error(EINVAL, "{} ranges are more than the {} that there may be", pieces.size(),
                      kMaxPieces);
  }
  RangeMap map;
  for (const Piece& piece : pieces) {
    if (auto good = check_piece(piece); !good) return good.error();
    if (std::find(map.names_.begin(), map.names_.end(), piece.name) == map.names_.end()) {
      map.names_.push_back(piece.name);
    }
  }
  if (map.names_.size() > kMaxNames) {
    return make_error(EINVAL, "{} names of ranges are more than the {} that there may be",
                      map.names_.size(), kMaxNames);
  }
  std::sort(pieces.begin(), pieces.end(),
            [](const Piece& a, const Piece& b) { return a.start < b.start; });
  std::uint64_t page = 0;
  for (const Piece& piece : pieces) {
    if (!map.spans_.empty() && piece.start < map.spans_.back().end) {
      return make_error(EINVAL, "range {} at {:#x} overlaps one that ends at {:#x}", piece.name,
                        piece.start, map.spans_.back().end);
    }
    const auto name = std::find(map.names_.begin(), map.names_.end(), piece.name);
    map.spans_.push_back({piece.start, piece.start + piece.size.value,
                          static_cast<std::size_t>(name - map.names_.begin()), page});
    page += to_pages(piece.size).value;
  }
  map.names_.emplace_back(kOther);
  map.pieces_ = std::move(pieces);
  return map;
}

const RangeMap::Span* RangeMap::span_of(std::uint64_t address) const {
  const auto after =
      std::upper_bound(spans_.begin(), spans_.end(), address,
                       [](std::uint64_t at, const Span& span) { return at < span.start; });
  if (after == spans_.begin() || address >= std::prev(after)->end) return nullptr;
  return &*std::prev(after);
}

std::size_t RangeMap::find(std::uint64_t address) const {
  const Span* span = span_of(address);
  return span == nullptr ? names_.size() - 1 : span->name;
}

Bytes RangeMap::size() const {
  Bytes sum{};
  for (const Piece& piece : pieces_) sum = sum + piece.size;
  return sum;
}

std::uint64_t RangeMap::page_of(std::uint64_t address) const {
  const Span* span = span_of(address);
  if (span == nullptr) return pages().value;
  return span->first_page + ((address - span->start) >> kPageShift);
}

std::uint64_t RangeMap::address_of_page(std::uint64_t page) const {
  const auto after =
      std::upper_bound(spans_.begin(), spans_.end(), page,
                       [](std::uint64_t at, const Span& span) { return at < span.first_page; });
  const Span& span = *std::prev(after);
  return span.start + ((page - span.first_page) << kPageShift);
}

}  // namespace kintsugi::meter
