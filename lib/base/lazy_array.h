// SPDX-License-Identifier: GPL-2.0-or-later
// A large array of zeroes that costs memory only where it has been written.
#pragma once

#include <sys/mman.h>

#include <cassert>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/result.h"

namespace kintsugi {

// A 2 TiB VM has 512 Mi pages, and in an idle guest most are never touched. The array is an
// anonymous MAP_NORESERVE mapping: the kernel hands out zeroed memory on the first write, and reads
// of untouched parts cost none. A process under mlockall(MCL_FUTURE) pays for all of it at once.
//
// T is an integer or a lock-free std::atomic of one, whose all-zero bytes mean 0. The array does
// no locking of its own; its owner creates, moves and destroys it while no other thread uses it.
template <typename T>
class LazyArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  LazyArray() = default;
  LazyArray(LazyArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  LazyArray& operator=(LazyArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  LazyArray(const LazyArray&) = delete;
  LazyArray& operator=(const LazyArray&) = delete;
  ~LazyArray() {
    if (data_ != nullptr) munmap(data_, bytes());
  }

  // `count` zeroes. `what` names the array in the error ("the location map").
  static Result<LazyArray> create(std::size_t count, const char* what) {
    LazyArray array;
    if (count == 0) return array;
    if (count > SIZE_MAX / sizeof(T)) {
      return make_error(ENOMEM, "{} of {} entries is larger than the address space", what, count);
    }
    void* at = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
      const int code = errno;
      return make_error(code, "cannot reserve {} MiB of address space for {}: {}",
                        (count * sizeof(T) + 0xfffff) >> 20, what, std::strerror(code));
    }
    array.data_ = static_cast<T*>(at);
    array.size_ = count;
    return array;
  }

  T& operator[](std::size_t i) {
    assert(i < size_);
    return data_[i];
  }
  const T& operator[](std::size_t i) const {
    assert(i < size_);
    return data_[i];
  }
  [[nodiscard]] std::size_t size() const { return size_; }
  // Bytes when every entry has been written.
  [[nodiscard]] std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kintsugi
