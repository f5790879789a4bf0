// SPDX-License-Identifier: GPL-2.0-or-later
// Counters and latencies that one thread writes and any thread reads.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>

namespace kintsugi {

inline std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

// One writer.
class Counter {
 public:
  void add(std::uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

// A histogram of nanoseconds with 32 buckets to each power of two, so 3 % wide, as HdrHistogram's.
// Any number of writers.
class LatencyHistogram {
 public:
  void record(std::uint64_t ns) {
    buckets_[bucket_of(ns)].fetch_add(1, std::memory_order_relaxed);
    std::uint64_t max = max_.load(std::memory_order_relaxed);
    while (ns > max && !max_.compare_exchange_weak(max, ns, std::memory_order_relaxed)) {
    }
  }

  // The upper end of the bucket that holds the quantile, `of` in 0..1; 0 when nothing was recorded.
  [[nodiscard]] std::uint64_t quantile_ns(double of) const {
    std::uint64_t total = 0;
    for (const auto& bucket : buckets_) total += bucket.load(std::memory_order_relaxed);
    if (total == 0) return 0;
    const auto wanted =
        std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(total) * of));
    std::uint64_t seen = 0;
    for (unsigned i = 0; i < kBuckets; i++) {
      seen += buckets_[i].load(std::memory_order_relaxed);
      if (seen >= wanted) return std::min(upper_end(i), max_ns());
    }
    return max_ns();
  }
  [[nodiscard]] std::uint64_t max_ns() const { return max_.load(std::memory_order_relaxed); }

 private:
  static constexpr unsigned kSubBits = 5;
  static constexpr unsigned kSub = 1U << kSubBits;
  static constexpr unsigned kBuckets = (64 - kSubBits + 1) * kSub;

  static unsigned bucket_of(std::uint64_t ns) {
    if (ns < kSub) return static_cast<unsigned>(ns);
    const auto shift = static_cast<unsigned>(std::bit_width(ns)) - kSubBits - 1;
    return (shift + 1) * kSub + static_cast<unsigned>((ns >> shift) - kSub);
  }
  static std::uint64_t upper_end(unsigned bucket) {
    if (bucket < kSub) return bucket;
    const unsigned shift = bucket / kSub - 1;
    return ((std::uint64_t{bucket % kSub + kSub} + 1) << shift) - 1;
  }

  std::array<std::atomic<std::uint64_t>, kBuckets> buckets_{};
  std::atomic<std::uint64_t> max_{0};
};

}  // namespace kintsugi
