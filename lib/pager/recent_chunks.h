// SPDX-License-Identifier: GPL-2.0-or-later
// Remembers roughly which chunks something happened to lately.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace kintsugi {

// Two generations of a 64 Ki-bit set of hashed chunk numbers: a chunk is remembered for between
// kGeneration and twice as many additions, and another is taken for it once in a while. One thread
// adds, any asks.
class RecentChunks {
 public:
  static constexpr unsigned kGeneration = 4096;

  void add(std::uint64_t chunk) {
    if (contains_in(current_.load(std::memory_order_relaxed), chunk)) return;
    if (++added_ == kGeneration) {
      added_ = 0;
      const unsigned next = 1 - current_.load(std::memory_order_relaxed);
      for (auto& word : sets_[next]) word.store(0, std::memory_order_relaxed);
      current_.store(next, std::memory_order_relaxed);
    }
    auto& word = sets_[current_.load(std::memory_order_relaxed)][hash(chunk) / 64];
    word.store(word.load(std::memory_order_relaxed) | std::uint64_t{1} << hash(chunk) % 64,
               std::memory_order_relaxed);
  }
  // By the thread that adds.
  void clear() {
    for (auto& set : sets_) {
      for (auto& word : set) word.store(0, std::memory_order_relaxed);
    }
    added_ = 0;
  }
  [[nodiscard]] bool contains(std::uint64_t chunk) const {
    return contains_in(0, chunk) || contains_in(1, chunk);
  }

 private:
  static constexpr unsigned kBits = 1U << 16;

  static unsigned hash(std::uint64_t chunk) {
    return static_cast<unsigned>(chunk * 0x9e3779b97f4a7c15ULL >> 48);
  }
  [[nodiscard]] bool contains_in(unsigned set, std::uint64_t chunk) const {
    const unsigned h = hash(chunk);
    return (sets_[set][h / 64].load(std::memory_order_relaxed) >> h % 64 & 1) != 0;
  }

  std::array<std::array<std::atomic<std::uint64_t>, kBits / 64>, 2> sets_{};
  std::atomic<unsigned> current_{0};
  unsigned added_ = 0;
};

}  // namespace kintsugi
