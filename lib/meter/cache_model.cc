// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/cache_model.h"

#include <bit>
#include <utility>

#include "base/size_text.h"

namespace kintsugi::meter {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

// The order of use under kLru: ways as 16 nibbles, the last used lowest. What is stored differs
// from that by kFirstOrder, so that the zeroes of a set never touched stand for 0, 1, 2, ...
constexpr std::uint64_t kFirstOrder = 0xfedcba9876543210;
constexpr std::uint64_t kOnes = 0x1111111111111111;
constexpr unsigned kNibbleBits = 4;
static_assert(kMaxWays == 64 / kNibbleBits);

// The rank of a way: where its nibble is. The lowest nibble of `differing` that is 0; what the
// borrow spoils lies above it.
unsigned rank_of(std::uint64_t ranks, unsigned way) {
  const std::uint64_t differing = ranks ^ (kOnes * way);
  const std::uint64_t zeroes = (differing - kOnes) & ~differing & (kOnes << 3);
  return static_cast<unsigned>(std::countr_zero(zeroes)) / kNibbleBits;
}

std::uint64_t moved_to_front(std::uint64_t ranks, unsigned rank) {
  const unsigned bits = (rank & 0xf) * kNibbleBits;
  const std::uint64_t way = (ranks >> bits) & 0xf;
  const std::uint64_t younger = ranks & ((std::uint64_t{1} << bits) - 1);
  // Two steps, as the last rank would shift by 64.
  const std::uint64_t older = ranks >> bits >> kNibbleBits << bits << kNibbleBits;
  return older | younger << kNibbleBits | way;
}

// The tree under kTreePlru: bit n is node n, the root 1, the children of n 2n and 2n + 1. A bit set
// means that the victim is on the upper side.
std::uint64_t tree_after_use(std::uint64_t tree, unsigned way, unsigned ways) {
  for (unsigned node = ways + way; node > 1; node /= 2) {
    const std::uint64_t bit = std::uint64_t{1} << (node / 2);
    tree = node % 2 == 0 ? tree | bit : tree & ~bit;
  }
  return tree;
}

unsigned tree_victim(std::uint64_t tree, unsigned ways) {
  unsigned node = 1;
  while (node < ways) node = 2 * node + ((tree >> node) & 1);
  return node - ways;
}

// Of `bits` bits, whether the lowest `mirrored` are the highest in reverse.
bool mirrors(unsigned value, unsigned bits, unsigned mirrored) {
  for (unsigned i = 0; i < mirrored; i++) {
    if (((value >> i) & 1) != ((value >> (bits - 1 - i)) & 1)) return false;
  }
  return true;
}

Result<void> check(const CacheGeometry& g) {
  if (!std::has_single_bit(g.line_bytes) || g.line_bytes < kMinLineBytes ||
      g.line_bytes > kMaxLineBytes) {
    return make_error(EINVAL, "line={} must be a power of two from {} to {} bytes", g.line_bytes,
                      kMinLineBytes, kMaxLineBytes);
  }
  if (g.ways == 0 || g.ways > kMaxWays) {
    return make_error(EINVAL, "ways={} must be from 1 to {}", g.ways, kMaxWays);
  }
  if (g.replacement == Replacement::kTreePlru && !std::has_single_bit(g.ways)) {
    return make_error(EINVAL, "ways={} must be a power of two for policy=plru", g.ways);
  }
  const std::uint64_t way_bytes = std::uint64_t{g.ways} * g.line_bytes;
  if (g.size.value % way_bytes != 0 || !std::has_single_bit(g.size.value / way_bytes)) {
    return make_error(EINVAL,
                      "size={} must be ways x line, {}, times a power of two: the number of sets",
                      size_text(g.size), size_text(Bytes{way_bytes}));
  }
  const unsigned sets_bits = std::countr_zero(g.size.value / way_bytes);
  const unsigned place_bits = kPageShift - std::countr_zero(g.line_bytes);
  const unsigned most = 1U << (place_bits / 2);
  if (!std::has_single_bit(g.sample) || g.sample > most) {
    return make_error(EINVAL, "sample={} must be a power of two from 1 to {} for lines of {} bytes",
                      g.sample, most, g.line_bytes);
  }
  if (g.sample > 1 && sets_bits < place_bits) {
    return make_error(EINVAL,
                      "sample={} needs a cache of {} sets at least, not {}: give sample=1, a "
                      "larger size= or fewer ways=",
                      g.sample, 1U << place_bits, std::uint64_t{1} << sets_bits);
  }
  return {};
}

}  // namespace

CacheModel::CacheModel(const CacheGeometry& geometry)
    : geometry_(geometry), line_shift_(std::countr_zero(geometry.line_bytes)) {
  set_mask_ = geometry.size.value / geometry.ways / geometry.line_bytes - 1;
  const unsigned place_bits = kPageShift - line_shift_;
  const unsigned mirrored = std::countr_zero(geometry.sample);
  const unsigned places = 1U << place_bits;
  for (unsigned place = 0; place < places; place++) {
    if (!mirrors(place, place_bits, mirrored)) continue;
    places_[place] |= kSampled;
    places_[(place + places - 1) % places] |= kNextSampled;
  }
}

Result<CacheModel> CacheModel::create(const CacheGeometry& geometry) {
  if (auto good = check(geometry); !good) return good.error();
  CacheModel model(geometry);
  auto words = LazyArray<Word>::create(model.sets() * model.words_per_set(), "the model's sets");
  if (!words) return words.error();
  model.words_ = std::move(*words);
  return model;
}

unsigned CacheModel::find(const Word* ways, std::uint64_t wanted, unsigned first,
                          unsigned& empty) const {
  // Most accesses are to the line used last.
  if ((ways[first].load(kRelaxed) & ~kDirty) == wanted) return first;
  for (unsigned way = 0; way < geometry_.ways; way++) {
    const std::uint64_t word = ways[way].load(kRelaxed);
    if ((word & ~kDirty) == wanted) return way;
    if (word == 0) empty = way;
  }
  return geometry_.ways;
}

void CacheModel::use(Word& order, unsigned way) const {
  std::uint64_t old = order.load(kRelaxed);
  for (;;) {
    std::uint64_t now = 0;
    if (geometry_.replacement == Replacement::kTreePlru) {
      now = tree_after_use(old, way, geometry_.ways);
    } else {
      const std::uint64_t ranks = old ^ kFirstOrder;
      now = moved_to_front(ranks, rank_of(ranks, way)) ^ kFirstOrder;
    }
    if (now == old || order.compare_exchange_weak(old, now, kRelaxed)) return;
  }
}

// Picks the way to replace and makes it the last used, in one step, so that another thread that
// misses in this set takes another.
unsigned CacheModel::take_victim(Word& order, unsigned empty) const {
  if (geometry_.replacement == Replacement::kTreePlru) {
    std::uint64_t old = order.load(kRelaxed);
    for (;;) {
      const unsigned way = empty < geometry_.ways ? empty : tree_victim(old, geometry_.ways);
      const std::uint64_t now = tree_after_use(old, way, geometry_.ways);
      if (order.compare_exchange_weak(old, now, kRelaxed)) return way;
    }
  }
  // Empty ways are the last in the order from the beginning.
  const unsigned last = geometry_.ways - 1;
  std::uint64_t old = order.load(kRelaxed);
  for (;;) {
    const std::uint64_t ranks = old ^ kFirstOrder;
    const unsigned way = (ranks >> (last * kNibbleBits)) & 0xf;
    const std::uint64_t now = moved_to_front(ranks, last) ^ kFirstOrder;
    if (order.compare_exchange_weak(old, now, kRelaxed)) return way;
  }
}

CacheOutcome CacheModel::access(std::uint64_t address, bool write) {
  const std::uint64_t line = address >> line_shift_;
  Word* order = &words_[(line & set_mask_) * words_per_set()];
  Word* ways = order + 1;
  const std::uint64_t wanted = line << kLineAt | kValid;
  const bool lru = geometry_.replacement == Replacement::kLru;
  const unsigned first = lru ? (order->load(kRelaxed) ^ kFirstOrder) & 0xf : 0;
  unsigned empty = geometry_.ways;

  CacheOutcome outcome;
  const unsigned way = find(ways, wanted, first, empty);
  if (way < geometry_.ways) {
    // If another thread has just replaced it, what was a hit is a miss.
    std::uint64_t word = wanted;
    if (!write || ways[way].load(kRelaxed) == (wanted | kDirty) ||
        ways[way].compare_exchange_strong(word, wanted | kDirty, kRelaxed) ||
        word == (wanted | kDirty)) {
      if (!lru || way != first) use(*order, way);
      outcome.hit = true;
      return outcome;
    }
  }
  if (write && !geometry_.write_allocate) {
    outcome.written_past = true;
    return outcome;
  }
  const unsigned victim = take_victim(*order, empty);
  const std::uint64_t old = ways[victim].exchange(write ? wanted | kDirty : wanted, kRelaxed);
  outcome.filled = true;
  if ((old & kDirty) != 0) outcome.written_back = address_of(old);
  return outcome;
}

}  // namespace kintsugi::meter
