// SPDX-License-Identifier: GPL-2.0-or-later
// A last-level cache without its data: which accesses reach memory, and as what.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"

namespace kintsugi::meter {

enum class Replacement : std::uint8_t {
  kLru,      // the line unused for longest
  kTreePlru  // a binary tree of "the other half was used last" bits, as processors have it
};

inline constexpr unsigned kMinLineBytes = 32;
inline constexpr unsigned kMaxLineBytes = 256;
inline constexpr unsigned kMaxWays = 16;
inline constexpr unsigned kMaxAddressBits = 52;  // of a physical address on x86

struct CacheGeometry {
  Bytes size{std::uint64_t{8} << 20};  // ways * line_bytes * a power of two
  unsigned ways = 16;                  // 1 to kMaxWays; a power of two for kTreePlru
  unsigned line_bytes = 64;            // a power of two, kMinLineBytes to kMaxLineBytes
  unsigned sample = 8;                 // one set of this many is simulated: a power of two
  Replacement replacement = Replacement::kLru;
  bool write_allocate = true;  // a write that misses brings its line in; else it goes past
};

// What one access did to memory.
struct CacheOutcome {
  bool hit = false;
  bool filled = false;                        // its line was read
  bool written_past = false;                  // it was a write, and went to memory itself
  std::optional<std::uint64_t> written_back;  // the physical address of a line that was written
};

// A set-associative write-back cache, indexed by the physical address's low line bits, that all
// processors share. Nothing is in front of it: a hit in a first-level cache would be a hit here
// too, but for what that does to the order of use.
//
// Sets are sampled by the place of their lines in a page: those whose lowest log2(sample) bits
// mirror its highest (0, 12, 18, 30, 33, 45, 51 and 63 of the 64 places, for one of eight). So
//   - a virtual address tells whether its set is simulated, and nobody translates the others;
//   - each page has the same number of lines in the sample, and each stride below the page too, as
//     far as the number of lines allows. Strides of whole pages have not.
// Counts of a sample stand for `sample` times as much.
//
// Threads: access() by any number at once, without a lock and without waiting. A way of a set is
// one atomic word (line, dirty); whoever replaces it gets the old word, so each dirty line is
// written back exactly once, whatever races. The order of use is another word. Two threads that
// miss on one line at the same moment may both bring it in, and the set then holds it twice for a
// while: one fill too many, and one write-back if both copies were written to.
class CacheModel {
 public:
  // The error names the parameter and what it may be.
  static Result<CacheModel> create(const CacheGeometry& geometry);

  // Whether the set of this address is simulated. A virtual address will do.
  [[nodiscard]] bool sampled(std::uint64_t address) const {
    return (places_[place_of(address)] & kSampled) != 0;
  }
  // False if neither the line of this address is in the sample nor the one after it, so that an
  // access of any size that begins here is none of the model's business: most are not, and a test
  // of one byte says so.
  [[nodiscard]] bool concerns(std::uint64_t address) const {
    return places_[place_of(address)] != 0;
  }
  // An access within one line of a sampled set; `address` is physical, below 2^kMaxAddressBits.
  CacheOutcome access(std::uint64_t address, bool write);

  // Calls body(address of a line) for each dirty line of the sampled sets. While others call
  // access(), what it sees is of no single moment.
  template <typename Body>
  void for_each_dirty(const Body& body) const {
    for (std::size_t i = 0; i < words_.size(); i++) {
      const std::uint64_t word = words_[i].load(std::memory_order_relaxed);
      if (i % words_per_set() != 0 && (word & kDirty) != 0) body(address_of(word));
    }
  }

  [[nodiscard]] const CacheGeometry& geometry() const { return geometry_; }
  [[nodiscard]] std::uint64_t sets() const { return set_mask_ + 1; }

 private:
  using Word = std::atomic<std::uint64_t>;

  // A way: the line's number, and two bits. All zero: nothing in it.
  static constexpr std::uint64_t kDirty = 1;
  static constexpr std::uint64_t kValid = 2;
  static constexpr unsigned kLineAt = 2;

  explicit CacheModel(const CacheGeometry& geometry);

  // A place in a page.
  static constexpr std::uint8_t kSampled = 1;
  static constexpr std::uint8_t kNextSampled =
      2;  // the place after it is, or the next page's first

  [[nodiscard]] std::size_t place_of(std::uint64_t address) const {
    return (address & (kPageSize - 1)) >> line_shift_;
  }
  [[nodiscard]] std::size_t words_per_set() const { return geometry_.ways + 1; }
  [[nodiscard]] std::uint64_t address_of(std::uint64_t word) const {
    return word >> kLineAt << line_shift_;
  }
  // The way that holds `wanted`, or ways; an empty way's number goes to `empty`.
  unsigned find(const Word* ways, std::uint64_t wanted, unsigned first, unsigned& empty) const;
  void use(Word& order, unsigned way) const;
  unsigned take_victim(Word& order, unsigned empty) const;

  CacheGeometry geometry_;
  unsigned line_shift_ = 0;
  std::uint64_t set_mask_ = 0;
  std::array<std::uint8_t, kPageSize / kMinLineBytes> places_{};
  LazyArray<Word> words_;  // for each set its order of use, then its ways; untouched if not sampled
};

}  // namespace kintsugi::meter
