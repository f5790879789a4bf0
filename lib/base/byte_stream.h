// SPDX-License-Identifier: GPL-2.0-or-later
// Little-endian bytes in and out, for the blobs that travel in a migration stream. The reader
// trusts nothing: after a short or bad read it is failed, and every later read gives zeros.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace kintsugi {

class ByteWriter {
 public:
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    put_bytes({reinterpret_cast<const std::uint8_t*>(&value), sizeof(value)});
  }
  void put_bytes(std::span<const std::uint8_t> bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
  }
  void put_string(std::string_view text) {
    put(static_cast<std::uint16_t>(text.size()));
    put_bytes({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  }
  [[nodiscard]] std::vector<std::uint8_t>& bytes() { return out_; }

 private:
  std::vector<std::uint8_t> out_;
};

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::uint8_t> bytes) : left_(bytes) {}

  template <typename T>
  requires std::is_trivially_copyable_v<T> T get() {
    T value{};
    const std::span<const std::uint8_t> bytes = get_bytes(sizeof(T));
    if (bytes.size() == sizeof(T)) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  std::span<const std::uint8_t> get_bytes(std::uint64_t count) {
    if (count > left_.size()) {
      failed_ = true;
      left_ = {};
      return {};
    }
    const std::span<const std::uint8_t> taken = left_.first(count);
    left_ = left_.subspan(count);
    return taken;
  }
  std::string get_string() {
    const auto size = get<std::uint16_t>();
    const std::span<const std::uint8_t> bytes = get_bytes(size);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  [[nodiscard]] bool failed() const { return failed_; }
  // Everything was read and nothing was missing.
  [[nodiscard]] bool done() const { return !failed_ && left_.empty(); }

 private:
  std::span<const std::uint8_t> left_;
  bool failed_ = false;
};

}  // namespace kintsugi
