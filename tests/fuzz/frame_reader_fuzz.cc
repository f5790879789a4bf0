// SPDX-License-Identifier: GPL-2.0-or-later
// What a lane reads of a server: frames in any pieces, and the payload of answers to Get.
//
// The first byte is how the rest is cut into pieces; each piece arrives, and all frames that are
// whole are taken. A frame's bytes must be those that were sent, in their order.
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "pager/frame_io.h"

namespace kintsugi {
namespace {

// As a fault thread has it: room for two answers of one page.
constexpr std::size_t kBufferBytes = 4 * (sizeof(wire::FrameHeader) + 8 + kPageSize);

class Taker {
 public:
  Taker(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  // Takes what is whole; false after an error.
  bool take(FrameReader* reader) {
    for (;;) {
      wire::FrameHeader header;
      std::span<const std::uint8_t> payload;
      const Result<bool> more = reader->next(&header, &payload, "fuzzed");
      if (!more) return false;
      if (!*more) return true;
      if (size_ - at_ < sizeof(header) + payload.size()) abort();
      if (std::memcmp(&header, data_ + at_, sizeof(header)) != 0) abort();
      at_ += sizeof(header);
      if (!payload.empty() && std::memcmp(payload.data(), data_ + at_, payload.size()) != 0)
        abort();
      at_ += payload.size();
      look_at_pages(header, payload);
    }
  }

 private:
  static void look_at_pages(const wire::FrameHeader& header,
                            std::span<const std::uint8_t> payload) {
    GetAnswer answer;
    if (!parse_get(header, payload, &answer)) return;
    const std::uint8_t* at = answer.content;
    for (unsigned i = 0; i < wire::kMaxPagesPerFrame; i++) {
      if (!answer.has(i)) continue;
      if (i >= header.count) abort();
      if (at + kPageSize > payload.data() + payload.size()) abort();
      at += kPageSize;
    }
    if (at != payload.data() + payload.size()) abort();
  }

  const std::uint8_t* const data_;
  const std::size_t size_;
  std::size_t at_ = 0;
};

void run(const std::uint8_t* data, std::size_t size, std::size_t piece) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) abort();
  Result<FrameReader> reader = FrameReader::create(kBufferBytes);
  if (!reader) abort();
  Taker taker(data, size);
  bool good = true;
  for (std::size_t at = 0; at < size && good;) {
    const std::size_t n = std::min(piece, size - at);
    const ssize_t sent = send(fds[0], data + at, n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) at += static_cast<std::size_t>(sent);
    do {
      const Result<std::size_t> got = reader->fill(fds[1], "fuzzed");
      if (!got) abort();
      good = taker.take(&*reader);
    } while (good && !reader->drained());
  }
  close(fds[0]);
  if (good && reader->fill(fds[1], "fuzzed").ok()) abort();  // the end is an error
  close(fds[1]);
}

}  // namespace
}  // namespace kintsugi

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  kintsugi::run(data + 1, size - 1, std::size_t{1} << (data[0] % 16));
  return 0;
}
