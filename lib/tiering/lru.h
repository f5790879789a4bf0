// SPDX-License-Identifier: GPL-2.0-or-later
// Least recently used, in the same framework as MQ: what P4 compares with.
#pragma once

#include <cstdint>
#include <vector>

#include "tiering/page_pool.h"
#include "tiering/policy.h"

namespace kintsugi {

// Keeps the most recently written pages on the fast tier. P4 says that LRU was built like its MQ,
// and nothing else of it, so:
//
// - One list of the pages written, the least recently written at the head.
// - At each decision, from tail to head, each slow page found is paired with the fast page that was
//   written longest ago; fast pages that were never written come first, by address. It ends at the
//   limit, or where the fast page was written no earlier than the slow one: pages of the same scan
//   are equal.
// - Slow pages at the head are older than every fast page, so could never be chosen: forgotten. A
//   page that was swapped out of the fast tier is among them.
class LruPolicy final : public TieringPolicy {
 public:
  explicit LruPolicy(const Placement& placement) : placement_(placement) {}

  void begin_scan(std::int64_t now_ms) override { now_ms_ = now_ms; }
  void written(std::uint64_t group, std::uint64_t bits) override;
  void end_scan() override;
  void decide(std::size_t limit, std::vector<SwapPair>& out) override;
  void swapped(const SwapPair& /*pair*/) override {}
  void refused(const SwapPair& pair) override;
  void placement_changed(PageIndex first, PageCount count) override;
  [[nodiscard]] std::size_t tracked_pages() const override { return pool_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const override { return pool_.bytes(); }

 private:
  struct Entry {
    NodeId prev = kNoNode;
    NodeId next = kNoNode;
    std::int64_t last_write_ms = 0;
  };

  const Placement& placement_;
  PagePool<Entry> pool_;
  PageList<Entry> list_;
  std::int64_t now_ms_ = 0;
  // No fast page without a node lies below.
  PageIndex untouched_from_;
};

}  // namespace kintsugi
