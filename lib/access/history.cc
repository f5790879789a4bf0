// SPDX-License-Identifier: GPL-2.0-or-later
#include "access/history.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace kintsugi {
namespace {

constexpr std::uint64_t kGroupPages = 64;        // pages of one bitmap word
constexpr std::uint64_t kBytesPerWord = 8;       // pages of one word of ages
constexpr std::uint64_t kMaxPages = 1ULL << 40;  // 4 PiB, more than x86-64 can address
constexpr std::uint64_t kEachByte = 0x0101010101010101;
constexpr std::uint64_t kTopBits = 0x8080808080808080;
constexpr auto kRelaxed = std::memory_order_relaxed;

// The lowest `n` bits, 0 <= n <= 64.
constexpr std::uint64_t low_bits(std::uint64_t n) {
  return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

// Sets bits, and leaves the cache line alone when they are set already.
void set_bits(std::atomic<std::uint64_t>& word, std::uint64_t bits) {
  if ((word.load(kRelaxed) & bits) != bits) word.fetch_or(bits, kRelaxed);
}

// Bit i of eight becomes the top bit of byte i. The product puts a copy of `bits` in each byte, the
// mask keeps bit i of byte i, and adding 0x7f carries any bit up into the top of its own byte.
constexpr std::uint64_t spread_to_top_bits(std::uint64_t bits) {
  return (((bits * kEachByte) & 0x8040201008040201) + ~kTopBits) & kTopBits;
}
static_assert(spread_to_top_bits(0x81) == 0x8000000000000080);
static_assert(spread_to_top_bits(0xff) == kTopBits);

// The larger of each pair of bytes.
constexpr std::uint64_t max_bytes(std::uint64_t x, std::uint64_t y) {
  // Top bit of each byte: whether x's low seven bits are not less than y's.
  const std::uint64_t low_ge = (x | kTopBits) - (y & ~kTopBits);
  const std::uint64_t ge = ((x & ~y) | (~(x ^ y) & low_ge)) & kTopBits;
  const std::uint64_t take_x = (ge >> 7) * 0xff;
  return (x & take_x) | (y & ~take_x);
}
static_assert(max_bytes(0x00ff7f8001fe1000, 0xff007f7f02ff0fff) == 0xffff7f8002ff10ff);

// The largest of eight bytes.
constexpr std::uint16_t max_of_bytes(std::uint64_t x) {
  x = max_bytes(x, x >> 32);
  x = max_bytes(x, x >> 16);
  x = max_bytes(x, x >> 8);
  return x & 0xff;
}
static_assert(max_of_bytes(0x01ff000000000002) == 0xff);

}  // namespace

Result<void> check_chunk_pages(PageCount chunk_pages) {
  if (!std::has_single_bit(chunk_pages.value)) {
    const std::uint64_t below = std::bit_floor(chunk_pages.value);
    return make_error(
        EINVAL, "a chunk of {} pages ({} KiB) is not a power of two pages: use {} KiB",
        chunk_pages.value, chunk_pages.value * (kPageSize >> 10),
        std::clamp<std::uint64_t>(below, 1, kMaxChunkPages.value) * (kPageSize >> 10));
  }
  if (chunk_pages > kMaxChunkPages) {
    return make_error(EINVAL, "a chunk of {} MiB is too large: use at most {} MiB",
                      to_bytes(chunk_pages).value >> 20, to_bytes(kMaxChunkPages).value >> 20);
  }
  return {};
}

Result<std::unique_ptr<AccessHistory>> AccessHistory::create(const AccessHistoryConfig& config) {
  if (config.pages.value == 0 || config.pages.value > kMaxPages) {
    return make_error(EINVAL, "an access history needs 1 to {} pages, not {}", kMaxPages,
                      config.pages.value);
  }
  if (auto ok = check_chunk_pages(config.chunk_pages); !ok) return ok.error();
  if (config.policy != AccessPolicy::kClock && config.policy != AccessPolicy::kAging) {
    return make_error(EINVAL, "access policy {} is unknown: use clock or aging",
                      static_cast<unsigned>(config.policy));
  }
  if (config.shift_period_ticks == 0) {
    return make_error(EINVAL, "the shift period is 0 scans: use 1 or more");
  }
  const std::uint64_t groups = (config.pages.value + kGroupPages - 1) / kGroupPages;
  const std::uint64_t words =
      config.policy == AccessPolicy::kClock ? groups : groups * kBytesPerWord;
  auto array = LazyArray<Word>::create(words, "the access history");
  if (!array) return array.error();
  return std::unique_ptr<AccessHistory>(new AccessHistory(config, std::move(*array)));
}

AccessHistory::AccessHistory(const AccessHistoryConfig& config, LazyArray<Word> words)
    : config_(config),
      chunk_shift_(std::countr_zero(config.chunk_pages.value)),
      groups_((config.pages.value + kGroupPages - 1) / kGroupPages),
      words_(std::move(words)) {}

std::uint64_t AccessHistory::chunks() const {
  return (config_.pages.value + config_.chunk_pages.value - 1) >> chunk_shift_;
}

// Touches the pages of a group whose bits are set. None may lie past the last page.
void AccessHistory::touch_group(std::uint64_t group, std::uint64_t bits) {
  if (config_.policy == AccessPolicy::kClock) {
    set_bits(words_[group], bits);
    return;
  }
  for (std::uint64_t word = group * kBytesPerWord; bits != 0; ++word, bits >>= 8) {
    if ((bits & 0xff) != 0) set_bits(words_[word], spread_to_top_bits(bits & 0xff));
  }
}

void AccessHistory::feed(PageIndex first, const std::uint64_t* bitmap, PageCount count) {
  if (first.value >= config_.pages.value) return;
  const std::uint64_t pages = std::min(count.value, config_.pages.value - first.value);
  const std::uint64_t offset = first.value % kGroupPages;
  std::uint64_t group = first.value / kGroupPages;
  for (std::uint64_t done = 0; done < pages; done += kGroupPages, ++group) {
    std::uint64_t bits = *bitmap++;
    if (bits == 0) continue;
    bits &= low_bits(pages - done);
    if (const std::uint64_t here = bits << offset; here != 0) touch_group(group, here);
    if (offset != 0) {
      const std::uint64_t next = bits >> (kGroupPages - offset);
      if (next != 0) touch_group(group + 1, next);
    }
  }
}

void AccessHistory::mark(PageIndex page) {
  if (page.value >= config_.pages.value) return;
  if (config_.policy == AccessPolicy::kClock) {
    set_bits(words_[page.value / kGroupPages], std::uint64_t{1} << (page.value % kGroupPages));
  } else {
    set_bits(words_[page.value / kBytesPerWord],
             std::uint64_t{0x80} << (8 * (page.value % kBytesPerWord)));
  }
}

void AccessHistory::mark_range(PageIndex first, PageCount count) {
  if (first.value >= config_.pages.value) return;
  std::uint64_t page = first.value;
  const std::uint64_t end = page + std::min(count.value, config_.pages.value - page);
  while (page < end) {
    const std::uint64_t offset = page % kGroupPages;
    const std::uint64_t n = std::min(kGroupPages - offset, end - page);
    touch_group(page / kGroupPages, low_bits(n) << offset);
    page += n;
  }
}

void AccessHistory::tick() {
  if (config_.policy == AccessPolicy::kClock) {
    if (config_.clock_turn_ticks == 0) return;
    const std::uint64_t groups =
        (groups_ + config_.clock_turn_ticks - 1) / config_.clock_turn_ticks;
    advance_hand(PageCount{groups * kGroupPages});
  } else if (++ticks_ >= config_.shift_period_ticks) {
    ticks_ = 0;
    shift_all();
  }
}

void AccessHistory::advance_hand(PageCount count) {
  if (config_.policy != AccessPolicy::kClock) return;
  const std::uint64_t n =
      std::min(count.value / kGroupPages + (count.value % kGroupPages != 0), groups_);
  std::uint64_t at = hand_.fetch_add(n, kRelaxed) % groups_;
  for (std::uint64_t i = 0; i < n; ++i) {
    // The test keeps what was never touched from costing memory.
    if (words_[at].load(kRelaxed) != 0) words_[at].store(0, kRelaxed);
    if (++at == groups_) at = 0;
  }
}

void AccessHistory::shift_all() {
  for (std::uint64_t i = 0; i < words_.size(); ++i) {
    std::uint64_t old = words_[i].load(kRelaxed);
    while (old != 0 && !words_[i].compare_exchange_weak(old, (old >> 1) & ~kTopBits, kRelaxed)) {
    }
  }
}

std::uint16_t AccessHistory::clock_rank(std::uint64_t chunk, unsigned shift) const {
  const std::uint64_t pages = std::uint64_t{1} << shift;
  const std::uint64_t first = chunk << shift;
  const std::uint64_t word = first / kGroupPages;
  if (pages < kGroupPages) {
    const std::uint64_t bits = words_[word].load(kRelaxed) >> (first % kGroupPages);
    return std::popcount(bits & low_bits(pages));
  }
  const std::uint64_t end = std::min(word + pages / kGroupPages, groups_);
  unsigned sum = 0;
  for (std::uint64_t i = word; i < end; ++i) {
    if (const std::uint64_t bits = words_[i].load(kRelaxed); bits != 0) sum += std::popcount(bits);
  }
  return sum;
}

std::uint16_t AccessHistory::aging_rank(std::uint64_t chunk, unsigned shift) const {
  const std::uint64_t pages = std::uint64_t{1} << shift;
  const std::uint64_t first = chunk << shift;
  const std::uint64_t word = first / kBytesPerWord;
  if (pages < kBytesPerWord) {
    const std::uint64_t ages = words_[word].load(kRelaxed) >> (8 * (first % kBytesPerWord));
    return max_of_bytes(ages & low_bits(8 * pages));
  }
  const std::uint64_t end = std::min<std::uint64_t>(word + pages / kBytesPerWord, words_.size());
  std::uint64_t ages = 0;
  for (std::uint64_t i = word; i < end; ++i) {
    if (const std::uint64_t more = words_[i].load(kRelaxed); more != 0) {
      ages = max_bytes(ages, more);
    }
  }
  return ages == 0 ? 0 : max_of_bytes(ages);
}

std::uint16_t AccessHistory::rank(ChunkIndex chunk) const {
  if (chunk.value >= chunks()) return 0;
  return config_.policy == AccessPolicy::kClock ? clock_rank(chunk.value, chunk_shift_)
                                                : aging_rank(chunk.value, chunk_shift_);
}

void AccessHistory::ranks(ChunkIndex first, std::span<std::uint16_t> out) const {
  ranks(config_.chunk_pages, first, out);
}

void AccessHistory::ranks(PageCount chunk_pages, ChunkIndex first,
                          std::span<std::uint16_t> out) const {
  const unsigned shift = std::countr_zero(chunk_pages.value);
  const std::uint64_t total = (config_.pages.value + chunk_pages.value - 1) >> shift;
  const std::uint64_t left = first.value < total ? total - first.value : 0;
  const std::size_t n = std::min<std::uint64_t>(out.size(), left);
  if (config_.policy == AccessPolicy::kClock) {
    for (std::size_t i = 0; i < n; ++i) out[i] = clock_rank(first.value + i, shift);
  } else {
    for (std::size_t i = 0; i < n; ++i) out[i] = aging_rank(first.value + i, shift);
  }
  std::fill(out.begin() + n, out.end(), 0);
}

// Gives the masked bits of a word a new value.
void AccessHistory::replace(std::uint64_t word, std::uint64_t mask, std::uint64_t value) {
  std::uint64_t old = words_[word].load(kRelaxed);
  while ((old & mask) != value &&
         !words_[word].compare_exchange_weak(old, (old & ~mask) | value, kRelaxed)) {
  }
}

void AccessHistory::import_clock(std::uint64_t first, std::uint64_t count, std::uint16_t rank) {
  std::uint64_t due = 0;  // Bresenham: `rank` bits over `count` pages
  for (std::uint64_t page = first; page < first + count;) {
    const std::uint64_t offset = page % kGroupPages;
    const std::uint64_t n = std::min(kGroupPages - offset, first + count - page);
    std::uint64_t bits = 0;
    if (rank == count) {
      bits = low_bits(n);
    } else if (rank != 0) {
      for (std::uint64_t i = 0; i < n; ++i) {
        due += rank;
        if (due >= count) {
          due -= count;
          bits |= std::uint64_t{1} << i;
        }
      }
    }
    replace(page / kGroupPages, low_bits(n) << offset, bits << offset);
    page += n;
  }
}

void AccessHistory::import_aging(std::uint64_t first, std::uint64_t count, std::uint16_t rank) {
  for (std::uint64_t page = first; page < first + count;) {
    const std::uint64_t offset = page % kBytesPerWord;
    const std::uint64_t n = std::min(kBytesPerWord - offset, first + count - page);
    const std::uint64_t mask = low_bits(8 * n) << (8 * offset);
    replace(page / kBytesPerWord, mask, (kEachByte * rank) & mask);
    page += n;
  }
}

bool AccessHistory::import_rank(ChunkIndex chunk, std::uint16_t rank) {
  if (chunk.value >= chunks()) return false;
  const std::uint64_t first = chunk.value << chunk_shift_;
  const std::uint64_t count = std::min(config_.chunk_pages.value, config_.pages.value - first);
  if (config_.policy == AccessPolicy::kClock) {
    if (rank > count) return false;
    import_clock(first, count, rank);
  } else {
    if (rank > 0xff) return false;
    import_aging(first, count, rank);
  }
  return true;
}

Result<void> AccessHistory::import_ranks(ChunkIndex first, std::span<const std::uint16_t> ranks) {
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (!import_rank(ChunkIndex{first.value + i}, ranks[i])) {
      return make_error(EINVAL,
                        "the access history received gives chunk {} the rank {}, which does not "
                        "fit this VM's {} chunks of {} pages",
                        first.value + i, ranks[i], chunks(), config_.chunk_pages.value);
    }
  }
  return {};
}

}  // namespace kintsugi
