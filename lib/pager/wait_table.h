// SPDX-License-Identifier: GPL-2.0-or-later
// Which pages somebody waits for: since when, and which thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"
#include "pager/latency.h"

namespace kintsugi {

// A fault that has been read and not been answered.
struct PageWait {
  PageIndex page;
  std::uint64_t since_ns = 0;   // of now_ns()
  std::uint32_t thread_id = 0;  // the first of those that wait; 0: the kernel does not tell
};

// The fault thread (F) puts a page in when a fault on it cannot be answered at once; whoever
// installs the page or wakes its waiters takes it out, F or the prefetch thread (P). So each wait
// is measured from the fault to the waking, whoever fetched the page and whatever it waited for.
//
// A hash table of buckets as long as a cache line, without locks. The two threads cannot miss each
// other: F puts a page in and then looks whether the page is still on its way, P completes a page
// and then looks here, and both go through `waiting_` in between (fence()).
//
// A page whose bucket is full is not measured: 8 others of the same 4,096th of all pages wait then.
class WaitTable {
 public:
  [[nodiscard]] static Result<WaitTable> create() {
    WaitTable table;
    auto keys = LazyArray<std::atomic<std::uint64_t>>::create(kSlots, "the pages waited for");
    if (!keys) return keys.error();
    auto since = LazyArray<std::atomic<std::uint64_t>>::create(kSlots, "the pages waited for");
    if (!since) return since.error();
    auto threads = LazyArray<std::atomic<std::uint32_t>>::create(kSlots, "the pages waited for");
    if (!threads) return threads.error();
    table.keys_ = std::move(*keys);
    table.since_ = std::move(*since);
    table.threads_ = std::move(*threads);
    return table;
  }

  WaitTable() = default;
  // While no other thread uses either.
  WaitTable(WaitTable&& other) noexcept { *this = std::move(other); }
  WaitTable& operator=(WaitTable&& other) noexcept {
    std::swap(keys_, other.keys_);
    std::swap(since_, other.since_);
    std::swap(threads_, other.threads_);
    return *this;
  }

  // On F. A page that is waited for already keeps its first time and thread.
  void begin(PageIndex page, std::uint64_t now, std::uint32_t thread_id) {
    const std::size_t first = bucket(page);
    std::size_t free = kSlots;
    for (std::size_t slot = first; slot < first + kWays; slot++) {
      const std::uint64_t key = keys_[slot].load(std::memory_order_relaxed);
      if (key == page.value + 1) return;
      if (key == 0) free = slot;
    }
    if (free == kSlots) return;
    // Before the key: whoever sees that nobody waits must not leave one in.
    waiting_.fetch_add(1, std::memory_order_acq_rel);
    since_[free].store(now, std::memory_order_relaxed);
    threads_[free].store(thread_id, std::memory_order_relaxed);
    keys_[free].store(page.value + 1, std::memory_order_release);
    fence();
  }

  // After the page was installed or its waiters woken, at `at`: notes how long the wait was. One
  // that began later is another's. F or P.
  void end(PageIndex page, std::uint64_t at = UINT64_MAX) {
    if (waiting_.load(std::memory_order_relaxed) > 0) take(page, at);
  }
  // Between the page's state in the location map and the table: on P before end(), on F in begin().
  void fence() { waiting_.fetch_add(0, std::memory_order_acq_rel); }

  [[nodiscard]] const LatencyHistogram& latency() const { return latency_; }
  // Those that have waited longest first, `max` at most. Any thread.
  [[nodiscard]] std::vector<PageWait> list(std::size_t max) const {
    std::vector<PageWait> waits;
    if (waiting_.load(std::memory_order_acquire) == 0) return waits;
    for (std::size_t slot = 0; slot < kSlots; slot++) {
      const std::uint64_t key = keys_[slot].load(std::memory_order_acquire);
      if (key == 0) continue;
      const PageWait wait{PageIndex{key - 1}, since_[slot].load(std::memory_order_relaxed),
                          threads_[slot].load(std::memory_order_relaxed)};
      if (keys_[slot].load(std::memory_order_acquire) == key) waits.push_back(wait);
    }
    std::ranges::sort(waits, {}, &PageWait::since_ns);
    if (waits.size() > max) waits.resize(max);
    return waits;
  }
  // Pages that are waited for. Any thread.
  [[nodiscard]] std::uint64_t waiting() const {
    return static_cast<std::uint64_t>(
        std::max<std::int64_t>(waiting_.load(std::memory_order_relaxed), 0));
  }

 private:
  static constexpr std::size_t kWays = 8;
  static constexpr unsigned kBucketBits = 12;
  static constexpr std::size_t kSlots = kWays << kBucketBits;

  static std::size_t bucket(PageIndex page) {
    // Fibonacci hashing: neighbours go to buckets far apart.
    return (page.value * 0x9e3779b97f4a7c15U >> (64 - kBucketBits)) * kWays;
  }

  void take(PageIndex page, std::uint64_t at) {
    const std::size_t first = bucket(page);
    for (std::size_t slot = first; slot < first + kWays; slot++) {
      std::uint64_t key = keys_[slot].load(std::memory_order_acquire);
      if (key != page.value + 1) continue;
      const std::uint64_t since = since_[slot].load(std::memory_order_relaxed);
      if (since > at) return;
      // The other thread may be at it as well.
      if (!keys_[slot].compare_exchange_strong(key, 0, std::memory_order_acq_rel)) return;
      const std::uint64_t now = now_ns();
      latency_.record(now > since ? now - since : 0);
      waiting_.fetch_sub(1, std::memory_order_acq_rel);
      return;
    }
  }

  LazyArray<std::atomic<std::uint64_t>> keys_;  // page + 1; 0: free
  LazyArray<std::atomic<std::uint64_t>> since_;
  LazyArray<std::atomic<std::uint32_t>> threads_;
  std::atomic<std::int64_t> waiting_{0};
  LatencyHistogram latency_;
};

}  // namespace kintsugi
