// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/out_queue.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>

namespace kintsugi {
namespace {

// Frames in one sendmsg().
constexpr std::size_t kBatchFrames = 16;
// A Discard's count is 32 bits, but a run this long is long enough.
constexpr std::uint32_t kMaxDiscardPages = 1U << 20;

std::size_t frame_bytes(const OutQueue::Item& item) {
  return sizeof(wire::FrameHeader) +
         (item.kind == OutQueue::Kind::kPut ? item.pages * kPageSize : 0);
}

}  // namespace

Result<OutQueue> OutQueue::create() {
  auto items = LazyArray<Item>::create(kMaxOutItems, "the queue of pages out");
  if (!items) return items.error();
  return OutQueue(std::move(*items));
}

void OutQueue::put(PageIndex page, unsigned pages, std::uint64_t version, unsigned frame,
                   unsigned place) {
  at(tail_++) = Item{page,
                     version,
                     pages,
                     static_cast<std::uint16_t>(frame),
                     static_cast<std::uint8_t>(place),
                     Kind::kPut,
                     false};
}

void OutQueue::discard(PageIndex page, unsigned pages, std::uint64_t version) {
  if (tail_ != cursor_ && !(tail_ - 1 == cursor_ && sent_bytes_ > 0)) {
    Item& last = at(tail_ - 1);
    if (last.kind == Kind::kDiscard && !last.done && last.pages + pages <= kMaxDiscardPages) {
      if (last.page.value + last.pages == page.value) {
        last.pages += pages;
        return;
      }
      if (page.value + pages == last.page.value) {
        last.page = page;
        last.pages += pages;
        return;
      }
    }
  }
  at(tail_++) = Item{page, version, pages, 0, 0, Kind::kDiscard, false};
}

Result<std::size_t> OutQueue::send(const wire::Connection& connection, const Staging& staging) {
  std::array<wire::FrameHeader, kBatchFrames> headers;
  std::array<iovec, 2 * kBatchFrames> parts;
  std::size_t total = 0;
  while (cursor_ != tail_) {
    if (at(cursor_).done && sent_bytes_ == 0) {
      cursor_++;
      continue;
    }
    std::size_t frames = 0;
    std::size_t count = 0;
    for (std::uint64_t i = cursor_; i != tail_ && frames < kBatchFrames; i++) {
      const Item& item = at(i);
      if (item.done && i != cursor_) break;
      wire::FrameHeader& header = headers[frames];
      header = connection.request(item.kind == Kind::kPut ? wire::Op::kPut : wire::Op::kDiscard, i);
      header.page = item.page.value;
      header.count = item.pages;
      header.version = item.version;
      header.length = static_cast<std::uint32_t>(frame_bytes(item) - sizeof(header));
      std::size_t skip = frames == 0 ? sent_bytes_ : 0;
      frames++;
      if (skip < sizeof(header)) {
        parts[count++] = {reinterpret_cast<char*>(&header) + skip, sizeof(header) - skip};
        skip = 0;
      } else {
        skip -= sizeof(header);
      }
      if (item.kind == Kind::kPut) {
        parts[count++] = {staging.place(item.frame, item.place) + skip, header.length - skip};
      }
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const ssize_t sent = sendmsg(connection.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return total;
      return wire::connection_lost(connection.name(), errno);
    }
    total += static_cast<std::size_t>(sent);
    sent_bytes_ += static_cast<std::size_t>(sent);
    while (cursor_ != tail_ && sent_bytes_ >= frame_bytes(at(cursor_))) {
      sent_bytes_ -= frame_bytes(at(cursor_));
      cursor_++;
    }
  }
  return total;
}

OutQueue::Item* OutQueue::answered(std::uint64_t seq) {
  if (seq < head_ || seq >= cursor_ || at(seq).done) return nullptr;
  return &at(seq);
}

void OutQueue::settle_discards_before(std::uint64_t seq) {
  for (std::uint64_t i = head_; i < seq; i++) {
    if (at(i).kind == Kind::kDiscard) at(i).done = true;
  }
}

void OutQueue::trim() {
  while (head_ != cursor_ && at(head_).done) head_++;
}

void OutQueue::rewind() {
  cursor_ = head_;
  sent_bytes_ = 0;
}

}  // namespace kintsugi
