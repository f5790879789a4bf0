// SPDX-License-Identifier: GPL-2.0-or-later
// A bounded queue from one thread to one other, without locks.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/lazy_array.h"

namespace kintsugi {

// Capacity is a power of two. push() belongs to one thread, pop() to another; empty() and size()
// are for any and may be old by the time they return.
template <typename T>
class SpscRing {
 public:
  static Result<SpscRing> create(std::size_t capacity, const char* what) {
    auto slots = LazyArray<T>::create(std::bit_ceil(capacity), what);
    if (!slots) return slots.error();
    return SpscRing(std::move(*slots));
  }
  SpscRing() = default;
  // Only before the threads start.
  SpscRing(SpscRing&& other) noexcept : slots_(std::move(other.slots_)) {}
  SpscRing& operator=(SpscRing&& other) noexcept {
    slots_ = std::move(other.slots_);
    return *this;
  }

  // False when full.
  [[nodiscard]] bool push(const T& item) {
    const std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_.load(std::memory_order_acquire) == slots_.size()) return false;
    slots_[tail & (slots_.size() - 1)] = item;
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }

  // False when empty.
  [[nodiscard]] bool pop(T* item) {
    const std::uint64_t head = head_.load(std::memory_order_relaxed);
    if (head == tail_.load(std::memory_order_acquire)) return false;
    *item = slots_[head & (slots_.size() - 1)];
    head_.store(head + 1, std::memory_order_release);
    return true;
  }

  [[nodiscard]] std::size_t size() const {
    return tail_.load(std::memory_order_acquire) - head_.load(std::memory_order_acquire);
  }
  [[nodiscard]] bool empty() const { return size() == 0; }

 private:
  explicit SpscRing(LazyArray<T> slots) : slots_(std::move(slots)) {}

  LazyArray<T> slots_;
  alignas(64) std::atomic<std::uint64_t> head_{0};
  alignas(64) std::atomic<std::uint64_t> tail_{0};
};

}  // namespace kintsugi
