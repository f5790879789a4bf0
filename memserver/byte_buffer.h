// SPDX-License-Identifier: GPL-2.0-or-later
// Bytes on their way out: grows at the end without zeroing what is about to be written.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

namespace kintsugi::memserver {

class ByteBuffer {
 public:
  // Room for `bytes` more at the end; valid until the next call. append() makes them count.
  std::uint8_t* room(std::size_t bytes) {
    if (capacity_ - size_ < bytes) {
      const std::size_t wanted = std::max({size_ + bytes, capacity_ * 2, kSmallest});
      std::unique_ptr<std::uint8_t[]> bigger(new std::uint8_t[wanted]);
      if (size_ > 0) std::memcpy(bigger.get(), data_.get(), size_);
      data_ = std::move(bigger);
      capacity_ = wanted;
    }
    return data_.get() + size_;
  }
  void append(std::size_t bytes) { size_ += bytes; }
  // Empties it, and gives memory back that one big answer took.
  void clear() {
    size_ = 0;
    if (capacity_ > kKept) {
      data_.reset();
      capacity_ = 0;
    }
  }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::span<const std::uint8_t> bytes() const { return {data_.get(), size_}; }

 private:
  static constexpr std::size_t kSmallest = std::size_t{16} << 10;
  static constexpr std::size_t kKept = std::size_t{256} << 10;

  std::unique_ptr<std::uint8_t[]> data_;
  std::size_t capacity_ = 0;
  std::size_t size_ = 0;
};

}  // namespace kintsugi::memserver
