// SPDX-License-Identifier: GPL-2.0-or-later
// Stochastic multi-queue, the policy of Linux's dm-cache.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tiering/page_pool.h"
#include "tiering/policy.h"

namespace kintsugi {

// From its description (Linux, Documentation/admin-guide/device-mapper/cache-policies.rst): there
// are no hit counts. A multiqueue has levels of equal size; an entry that is hit changes places
// with the least recently used entry of the level above, so that order comes from a random walk of
// which little has to be remembered. One multiqueue is of what is in the cache, one of what is not
// and could be ("hotspots"). What is high among the hotspots is promoted for what is low in the
// cache.
//
// Here: one multiqueue is of fast pages, one of slow pages seen written, of as many pages as the
// fast tier has at most. A page is hit once in a scan at most. Candidates are the slow pages of the
// top quarter of levels that were hit since the last decision; each goes for the least recently
// used page of the lowest level of fast pages, those never written first, as long as that was not
// hit since the last decision. A promoted page enters in the middle.
class SmqPolicy final : public TieringPolicy {
 public:
  static constexpr unsigned kLevels = 16;

  explicit SmqPolicy(const Placement& placement) : placement_(placement) {}

  void begin_scan(std::int64_t /*now_ms*/) override {}
  void written(std::uint64_t group, std::uint64_t bits) override;
  void decide(std::size_t limit, std::vector<SwapPair>& out) override;
  void swapped(const SwapPair& pair) override;
  void refused(const SwapPair& /*pair*/) override {}
  [[nodiscard]] std::size_t tracked_pages() const override { return pool_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const override { return pool_.bytes(); }

  // For tests: the level of a page, kLevels if it is not tracked.
  [[nodiscard]] unsigned level(PageIndex page) const;

 private:
  struct Entry {
    NodeId prev = kNoNode;
    NodeId next = kNoNode;
    std::uint8_t level = 0;
    bool fast = false;  // the multiqueue that it is in
    bool hit = false;   // since the last decision
  };
  struct MultiQueue {
    std::array<PageList<Entry>, kLevels> levels;
    std::size_t size = 0;
  };

  void put(NodeId id, bool fast, unsigned level);
  void take(NodeId id);
  void rise(NodeId id);
  void level_out(MultiQueue& queue);

  const Placement& placement_;
  PagePool<Entry> pool_;
  MultiQueue fast_;
  MultiQueue slow_;
};

}  // namespace kintsugi
