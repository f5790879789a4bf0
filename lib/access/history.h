// SPDX-License-Identifier: GPL-2.0-or-later
// What the guest has touched lately, page by page, and how hot that makes each chunk (P1 4-3, 4-4).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

// The two LRU approximations of P1.
enum class AccessPolicy : std::uint8_t {
  // One bit a page: touched since the clock hand last passed. A chunk's rank is the *sum* of its
  // bits: many touched pages count for more than few.
  kClock = 0,
  // Eight bits a page. Accessed bits gather in the top bit; every `shift_period_ticks` the byte
  // shifts right by one. A chunk's rank is the *maximum* of its bytes: its most recently touched
  // page counts.
  kAging = 1,
};

// A rank is 16 bits and clock's rank is a sum of one bit a page, so a chunk is at most 128 MiB.
inline constexpr PageCount kMaxChunkPages{32768};

struct AccessHistoryConfig {
  PageCount pages;
  // A power of two, 1..kMaxChunkPages.
  PageCount chunk_pages{16};
  AccessPolicy policy = AccessPolicy::kAging;
  // Aging: ticks for which accesses gather in the top bit. P1: "several seconds" at one scan a
  // second, because one scan a bit would remember only 8 s. 1 or more.
  unsigned shift_period_ticks = 4;
  // Clock: ticks for one turn of the hand over all pages; 0 leaves the hand to advance_hand()
  // alone. P1 moves the hand only while it looks for a page to evict. A VM that has not been split
  // yet evicts nothing, so its bits would all become 1 in time and the first split would be blind;
  // hence the slow turn by default: a bit then speaks of the last minute at most.
  unsigned clock_turn_ticks = 60;
};

// True if `chunk_pages` can be a chunk size; the error says what would be.
[[nodiscard]] Result<void> check_chunk_pages(PageCount chunk_pages);

// The access history of one VM.
//
// Use, once per scan period:  tick();  feed(...) for each range scanned;  then rank as needed.
// tick() comes first so that what the newest scan saw is never cleared or shifted away before
// anyone has ranked by it.
//
// Threads: tick(), feed() and import_*() belong to one thread, the owner. mark(), mark_range(),
// advance_hand(), rank(), ranks() and export_ranks() may be called from any thread at any time.
// All words are relaxed atomics: a rank read during a scan mixes old and new, which is as good as
// either; aging never loses a mark, clock loses one only when the hand passes in that instant.
//
// Memory at rest: clock 1 bit a page, aging 1 byte a page (64 MiB and 512 MiB for 2 TiB), reserved
// at creation and paid for only where something was touched.
class AccessHistory {
 public:
  // Errors: no pages, a chunk size that is not a power of two or too large, a shift period of 0,
  // no address space.
  static Result<std::unique_ptr<AccessHistory>> create(const AccessHistoryConfig& config);

  AccessHistory(const AccessHistory&) = delete;
  AccessHistory& operator=(const AccessHistory&) = delete;

  // One scan's accessed bits of pages [first, first + count): page first + i is bit i % 64 of
  // bitmap[i / 64] (QEMU's bitmap layout on a 64-bit host). Sets what is 1 and leaves what is 0
  // (P1 figure 6). Bits past `count` and pages past the end of the VM are ignored. Cost is one
  // test for each 64 untouched pages.
  void feed(PageIndex first, const std::uint64_t* bitmap, PageCount count);
  // One page was touched: a fault on it, say. Wait-free. A page past the end is ignored.
  void mark(PageIndex page);
  // Pages [first, first + count) were touched.
  void mark_range(PageIndex first, PageCount count);

  // A scan period is over. Aging: shifts every byte at each shift_period_ticks-th call. Clock:
  // moves the hand by one clock_turn_ticks-th of the VM.
  void tick();
  // Clock: moves the hand over the next `count` pages (rounded up to 64) and clears their bits; an
  // evictor that finds no cold chunk calls it, as P1's does. Aging: does nothing.
  void advance_hand(PageCount count);

  // How hot a chunk is: 0 is untouched; clock 0..chunk_pages, aging 0..255. 0 past the end.
  [[nodiscard]] std::uint16_t rank(ChunkIndex chunk) const;
  // The ranks of out.size() chunks from `first` on; the fast way to many.
  void ranks(ChunkIndex first, std::span<std::uint16_t> out) const;
  // The same with another chunk size: for a plan whose chunks are not this history's. The size
  // must have passed check_chunk_pages().
  void ranks(PageCount chunk_pages, ChunkIndex first, std::span<std::uint16_t> out) const;

  // The history travels with the pages (P1 4-1), one rank a chunk: 2 bytes for each 64 KiB say.
  // What export_ranks() writes at the source, import_ranks() gives the destination, which then
  // ranks every chunk exactly as the source did and ages it on from there. Which page of a chunk
  // was touched is not sent, so import spreads the rank: aging gives every page of the chunk the
  // byte, clock sets `rank` bits at even distances. The phase of the shift period is not sent
  // either: the first shift may come up to one period early or late. Both sides need the same
  // policy, chunk size and number of pages; the caller's stream header has to say so.
  void export_ranks(ChunkIndex first, std::span<std::uint16_t> out) const { ranks(first, out); }
  // Replaces what is known of the chunk. False, and nothing changed, if there is no such chunk or
  // the policy cannot have produced the rank: what comes from a peer is checked here.
  [[nodiscard]] bool import_rank(ChunkIndex chunk, std::uint16_t rank);
  // import_rank() of consecutive chunks; stops at the first bad one and names it.
  [[nodiscard]] Result<void> import_ranks(ChunkIndex first, std::span<const std::uint16_t> ranks);

  [[nodiscard]] PageCount pages() const { return config_.pages; }
  [[nodiscard]] PageCount chunk_pages() const { return config_.chunk_pages; }
  // Chunks, the last of which may be partial.
  [[nodiscard]] std::uint64_t chunks() const;
  [[nodiscard]] AccessPolicy policy() const { return config_.policy; }
  // Bytes once every page has been touched.
  [[nodiscard]] Bytes memory_at_rest() const { return Bytes{words_.bytes()}; }

 private:
  using Word = std::atomic<std::uint64_t>;
  static_assert(sizeof(Word) == 8 && Word::is_always_lock_free);

  AccessHistory(const AccessHistoryConfig& config, LazyArray<Word> words);

  void touch_group(std::uint64_t group, std::uint64_t bits);
  void shift_all();
  void replace(std::uint64_t word, std::uint64_t mask, std::uint64_t value);
  [[nodiscard]] std::uint16_t clock_rank(std::uint64_t chunk, unsigned shift) const;
  [[nodiscard]] std::uint16_t aging_rank(std::uint64_t chunk, unsigned shift) const;
  void import_clock(std::uint64_t first, std::uint64_t count, std::uint16_t rank);
  void import_aging(std::uint64_t first, std::uint64_t count, std::uint16_t rank);

  const AccessHistoryConfig config_;
  const unsigned chunk_shift_;
  // Groups of 64 pages: one word each for clock, eight for aging. Whole groups are allocated; what
  // lies past the last page stays zero.
  const std::uint64_t groups_;
  LazyArray<Word> words_;
  // Ticks since the last shift.
  unsigned ticks_ = 0;
  // Groups the hand has passed since the start; modulo groups_ is where it stands.
  std::atomic<std::uint64_t> hand_{0};
};

}  // namespace kintsugi
