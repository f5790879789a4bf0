// SPDX-License-Identifier: GPL-2.0-or-later
// Frames over a non-blocking socket: the hot halves of a lane.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/lazy_array.h"
#include "base/result.h"
#include "wire/protocol.h"

namespace kintsugi {

// Collects answers: one recv() takes as many as have come, and their payload is used where it lies.
class FrameReader {
 public:
  // The buffer must hold the longest frame that is expected; longer ones are errors.
  static Result<FrameReader> create(std::size_t buffer_bytes);
  FrameReader() = default;

  // Forgets everything: a new connection.
  void reset();
  // Takes what the socket has, without waiting; the bytes, 0 when there is nothing. Invalidates
  // what next() gave.
  [[nodiscard]] Result<std::size_t> fill(int fd, const char* name);
  // Whether the last fill() took all that the socket had.
  [[nodiscard]] bool drained() const { return drained_; }
  // The next whole answer. False when it has not come yet.
  [[nodiscard]] Result<bool> next(wire::FrameHeader* header, std::span<const std::uint8_t>* payload,
                                  const char* name);

 private:
  explicit FrameReader(LazyArray<std::uint8_t> buffer) : buffer_(std::move(buffer)) {}

  LazyArray<std::uint8_t> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool drained_ = true;
};

// Collects requests without payload (Get), to go out in one send().
class HeaderSender {
 public:
  static constexpr std::size_t kMaxHeaders = 64;

  void reset() { count_ = sent_bytes_ = 0; }
  [[nodiscard]] bool full() const { return count_ == kMaxHeaders; }
  [[nodiscard]] bool empty() const { return count_ == 0; }
  void add(const wire::FrameHeader& header) { headers_[count_++] = header; }
  // True when all are gone, false when the socket would block.
  [[nodiscard]] Result<bool> flush(int fd, const char* name);

 private:
  std::array<wire::FrameHeader, kMaxHeaders> headers_;
  std::size_t count_ = 0;
  std::size_t sent_bytes_ = 0;
};

// The payload of an answer to Get. Bits are of pages that the server has; content follows in order.
struct GetAnswer {
  std::uint64_t present[wire::kMaxPagesPerFrame / 64] = {};
  const std::uint8_t* content = nullptr;

  [[nodiscard]] bool has(unsigned i) const { return (present[i / 64] >> (i % 64) & 1) != 0; }
};
// False when bitmap and length do not agree.
[[nodiscard]] bool parse_get(const wire::FrameHeader& header, std::span<const std::uint8_t> payload,
                             GetAnswer* answer);

}  // namespace kintsugi
