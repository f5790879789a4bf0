// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/frame_io.h"

#include <sys/socket.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "wire/connection.h"

namespace kintsugi {

Result<FrameReader> FrameReader::create(std::size_t buffer_bytes) {
  auto buffer = LazyArray<std::uint8_t>::create(buffer_bytes, "a receive buffer");
  if (!buffer) return buffer.error();
  return FrameReader(std::move(*buffer));
}

void FrameReader::reset() { begin_ = end_ = 0; }

Result<std::size_t> FrameReader::fill(int fd, const char* name) {
  if (begin_ == end_) begin_ = end_ = 0;
  // Whole frames have been taken, so what is left is the start of one: make room for its rest.
  if (buffer_.size() - end_ < buffer_.size() / 2 && begin_ > 0) {
    std::memmove(&buffer_[0], &buffer_[begin_], end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  for (;;) {
    const std::size_t room = buffer_.size() - end_;
    const ssize_t got = recv(fd, &buffer_[end_], room, MSG_DONTWAIT);
    drained_ = got < static_cast<ssize_t>(room);
    if (got > 0) {
      end_ += static_cast<std::size_t>(got);
      return static_cast<std::size_t>(got);
    }
    if (got == 0) return wire::connection_lost(name, 0);
    if (errno == EAGAIN) return std::size_t{0};
    if (errno != EINTR) return wire::connection_lost(name, errno);
  }
}

Result<bool> FrameReader::next(wire::FrameHeader* header, std::span<const std::uint8_t>* payload,
                               const char* name) {
  if (end_ - begin_ < sizeof(*header)) return false;
  std::memcpy(header, &buffer_[begin_], sizeof(*header));
  if (Result<void> checked = wire::check_header(*header, true, 0); !checked) {
    return make_error(checked.error().code, "memory server {}: {}", name, checked.error().message);
  }
  const std::size_t frame_bytes = sizeof(*header) + header->length;
  if (frame_bytes > buffer_.size() / 2) {
    return make_error(EPROTO, "memory server {} sent {} bytes where {} at most were asked for",
                      name, header->length, buffer_.size() / 2);
  }
  if (end_ - begin_ < frame_bytes) return false;
  *payload = {&buffer_[begin_] + sizeof(*header), header->length};
  begin_ += frame_bytes;
  return true;
}

Result<bool> HeaderSender::flush(int fd, const char* name) {
  const std::size_t total = count_ * sizeof(wire::FrameHeader);
  while (sent_bytes_ < total) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(headers_.data());
    const ssize_t sent =
        send(fd, bytes + sent_bytes_, total - sent_bytes_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return false;
      return wire::connection_lost(name, errno);
    }
    sent_bytes_ += static_cast<std::size_t>(sent);
  }
  reset();
  return true;
}

bool parse_get(const wire::FrameHeader& header, std::span<const std::uint8_t> payload,
               GetAnswer* answer) {
  const std::uint32_t bitmap_bytes = wire::get_bitmap_bytes(header.count);
  if (header.count > wire::kMaxPagesPerFrame || payload.size() < bitmap_bytes) return false;
  std::memcpy(answer->present, payload.data(), bitmap_bytes);
  std::size_t pages = 0;
  for (std::uint32_t i = 0; i < bitmap_bytes / 8; i++) {
    const std::uint32_t bits = std::min<std::uint32_t>(64, header.count - i * 64);
    const std::uint64_t valid = bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
    if ((answer->present[i] & ~valid) != 0) return false;
    pages += static_cast<std::size_t>(std::popcount(answer->present[i]));
  }
  if (payload.size() != bitmap_bytes + pages * kPageSize) return false;
  answer->content = payload.data() + bitmap_bytes;
  return true;
}

}  // namespace kintsugi
