// SPDX-License-Identifier: GPL-2.0-or-later
// Multi Queue as P4 (3.4.2) defines it: the policy of RAMinate.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tiering/page_pool.h"
#include "tiering/policy.h"

namespace kintsugi {

// Queues Q0 to Q(queues - 1) of pages. The further back in a queue, the more recently a page was
// written; the higher the queue, the more often.
//
//            head (oldest)                      tail (newest)
//   Q7       .                                                   written >= 128 times
//   ...
//   Q1       p9  p4                             p7               written 2 or 3 times
//   Q0       fast pages at first ...            p3               written once
//            | last write older than the life time: one level down, to the head there
//            v
//   Qvictim  fast pages that left Q0            slow pages that leave Q0 are forgotten
//
// P4's rules:
// - All pages of the fast tier begin in Q0; a page of the slow tier enters Q0 when it is written.
// - A written page whose n-th detected write this is goes to the tail of queue floor(log2 n).
// - The head of each queue is looked at periodically. If its last write is longer ago than the
//   life time, it goes to the head of the queue below. Leaving Q0, a fast page goes to the tail of
//   Qvictim; a slow page is removed and its count is cleared.
// - At each decision: from the top queue down, from tail to head, each slow page found is paired
//   with the page at the head of Qvictim, which leaves it; until the limit or the end of either.
//
// Where P4 is silent, this was chosen:
// - Logarithms are to base 2 and the top queue takes what would lie above it (8 queues, a life
//   time of 5 s and scans of 1 s are RAMinate's figures).
// - Heads are looked at after each scan, as many of a queue as have expired, lower queues first, so
//   a page falls one level a scan.
// - A fast page that was never written counts as last written at the first scan, and stands in Q0
//   in order of address. Such pages have no node: they are found by the placement, so pages never
//   written cost no memory. As none can be older, they are what Qvictim gets first.
// - A page in Qvictim that is written goes back to the queue of its count.
// - A slow page that was swapped keeps its queue, its place there and its count. A page that was
//   swapped out of the fast tier is in no queue; as with slow pages that leave Q0 its count is
//   cleared.
// - A fast page whose swap was refused goes to the tail of Qvictim; the slow page stays.
// - With fewer queues set, pages of those above go to the tail of the new top queue.
class MqPolicy final : public TieringPolicy {
 public:
  explicit MqPolicy(const Placement& placement) : placement_(placement) {}

  void begin_scan(std::int64_t now_ms) override;
  void written(std::uint64_t group, std::uint64_t bits) override;
  void end_scan() override;
  void decide(std::size_t limit, std::vector<SwapPair>& out) override;
  void swapped(const SwapPair& pair) override;
  void refused(const SwapPair& pair) override;
  void placement_changed(PageIndex first, PageCount count) override;
  [[nodiscard]] std::span<const Parameter> parameters() const override { return parameters_; }
  void set_parameter(std::size_t index, double value) override;
  [[nodiscard]] std::size_t tracked_pages() const override { return pool_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const override { return pool_.bytes(); }

  // For tests: the pages of a queue from head to tail, those without a node left out; a page's
  // count, 0 if it has no node.
  [[nodiscard]] std::vector<PageIndex> queue(unsigned number) const { return pages_of(number); }
  [[nodiscard]] std::vector<PageIndex> victims() const { return pages_of(kVictim); }
  [[nodiscard]] std::uint32_t count(PageIndex page) const;

 private:
  static constexpr unsigned kMaxQueues = 16;
  static constexpr unsigned kVictim = kMaxQueues;  // Qvictim
  static constexpr unsigned kTaken = kVictim + 1;  // in a pair, outcome not known
  static constexpr unsigned kLists = kTaken + 1;
  static constexpr unsigned kTimeBits = 37;
  static constexpr unsigned kCountBits = 22;
  static constexpr std::uint32_t kMaxCount = (1U << kCountBits) - 1;

  struct Entry {
    NodeId prev = kNoNode;
    NodeId next = kNoNode;
    // Milliseconds modulo 4 years; no page stays in a queue unwritten for that long.
    std::uint64_t last_write_ms : kTimeBits = 0;
    std::uint64_t count : kCountBits = 0;  // sticks at its maximum
    std::uint64_t list : 5 = 0;
  };
  static_assert(sizeof(Entry) == 16);

  enum { kQueues, kLifeTime };

  void move_to_back(NodeId id, unsigned list);
  void write(PageIndex page);
  [[nodiscard]] bool expired(NodeId id) const;
  [[nodiscard]] NodeId take_victim();
  [[nodiscard]] std::vector<PageIndex> pages_of(unsigned list) const;

  const Placement& placement_;
  std::array<Parameter, 2> parameters_{{
      {"queues", "queues; a page written n times goes to queue floor(log2 n)", 1, kMaxQueues, true,
       8},
      {"life-time-ms", "a page not written for so long goes down one queue", 1, 86400000, true,
       5000},
  }};
  PagePool<Entry> pool_;
  std::array<PageList<Entry>, kLists> lists_;
  std::int64_t now_ms_ = 0;
  std::int64_t start_ms_ = 0;
  bool started_ = false;
  // Fast pages without a node: whether they have left Q0 for Qvictim, and the first of them.
  bool untouched_expired_ = false;
  PageIndex untouched_from_;
};

}  // namespace kintsugi
