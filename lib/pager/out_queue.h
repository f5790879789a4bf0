// SPDX-License-Identifier: GPL-2.0-or-later
// What a server is to be told in order: pages to keep, pages to forget. Kept until acknowledged.
#pragma once

#include <cstdint>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"
#include "pager/staging.h"
#include "wire/connection.h"
#include "wire/protocol.h"

namespace kintsugi {

// Puts and Discards that may wait or be unanswered, for one server.
inline constexpr std::uint32_t kMaxOutItems = 1U << 16;

// E's. The server handles one connection's requests in their order, so a Discard that stands before
// a Put of the same page is safe. A request's seq is its position here, and stays the same when it
// is sent again over a new connection.
class OutQueue {
 public:
  enum class Kind : std::uint8_t { kPut, kDiscard };
  struct Item {
    PageIndex page;
    std::uint64_t version = 0;
    std::uint32_t pages = 0;
    std::uint16_t frame = 0;  // kPut: where the content is
    std::uint8_t place = 0;
    Kind kind = Kind::kDiscard;
    bool done = false;
  };

  [[nodiscard]] static Result<OutQueue> create();
  OutQueue() = default;

  [[nodiscard]] std::uint32_t room() const {
    return kMaxOutItems - static_cast<std::uint32_t>(tail_ - head_);
  }
  [[nodiscard]] bool unanswered() const { return head_ != cursor_; }
  [[nodiscard]] bool unsent() const { return cursor_ != tail_; }
  [[nodiscard]] bool empty() const { return head_ == tail_; }

  // Both need room().
  void put(PageIndex page, unsigned pages, std::uint64_t version, unsigned frame, unsigned place);
  // Pages of a version above `version` stay: no Put queued before may have a higher one, and every
  // later one must. Joins the run before it when that has not gone out.
  void discard(PageIndex page, unsigned pages, std::uint64_t version);

  // Sends what the socket takes. The bytes that went; 0 when it would block.
  [[nodiscard]] Result<std::size_t> send(const wire::Connection& connection,
                                         const Staging& staging);
  // The request that an answer with this seq is for; null when there is none. Mark it done.
  [[nodiscard]] Item* answered(std::uint64_t seq);
  // Whether it was for one that is settled already: a Discard acknowledged behind a later Put.
  [[nodiscard]] bool was_answered(std::uint64_t seq) const { return seq < cursor_; }
  // A Put was acknowledged, so the server has seen every Discard before it.
  void settle_discards_before(std::uint64_t seq);
  // Forgets what is done.
  void trim();
  // A new connection: everything not done goes out again.
  void rewind();

 private:
  explicit OutQueue(LazyArray<Item> items) : items_(std::move(items)) {}
  [[nodiscard]] Item& at(std::uint64_t position) { return items_[position % kMaxOutItems]; }

  LazyArray<Item> items_;
  std::uint64_t head_ = 0;    // the oldest not done
  std::uint64_t cursor_ = 0;  // the next to send
  std::uint64_t tail_ = 0;
  std::size_t sent_bytes_ = 0;  // of the item at cursor_
};

}  // namespace kintsugi
