// SPDX-License-Identifier: GPL-2.0-or-later
// What a server counts. One block per event loop, so that loops do not share cache lines; whoever
// reports adds them up.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace kintsugi::memserver {

using Counter = std::atomic<std::uint64_t>;

inline void count(Counter& counter, std::uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}
[[nodiscard]] inline std::uint64_t read(const Counter& counter) {
  return counter.load(std::memory_order_relaxed);
}

struct alignas(64) Stats {
  static constexpr std::size_t kStatuses = 16;

  Counter requests{0};
  Counter pages_put{0};
  Counter pages_got{0};
  Counter pages_missing{0};  // asked for by Get, not stored
  Counter pages_discarded{0};
  Counter bytes_received{0};
  Counter bytes_sent{0};
  Counter fenced{0};           // requests in an old epoch
  Counter protocol_errors{0};  // connections closed for what they sent
  Counter bounced_puts{0};     // received into a buffer because no slot was free
  std::array<Counter, kStatuses> refused_opens{};  // by status
  Counter connections_accepted{0};
  Counter connections_closed{0};
};

}  // namespace kintsugi::memserver
