// SPDX-License-Identifier: GPL-2.0-or-later
// Our own policy: swap where the writes to come are worth more than the swap costs.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tiering/page_pool.h"
#include "tiering/policy.h"
#include "tiering/value_model.h"

namespace kintsugi {

// Needs no tuning, as it learns what a page's past is worth (ValueModel), and is judged by what it
// minimises: bytes written to the slow tier, copies of swaps included.
//
// - Of each page written it keeps two moving averages of its writes a scan, over 8 and 128 scans.
//   (Two averages and a gate by cost and benefit are ideas of ARMS, 2025; there they are summed
//   with fixed weights and compared with thresholds.)
// - At a decision, slow pages from the highest value down are paired with fast pages from the
// lowest
//   value up, as long as
//
//       V(slow page) - V(fast page) > margin * cost,   cost = 4096 / write-bytes
//
//   as the fast page's content has to be written to the slow tier, 4096 bytes, where a write that
//   is saved is worth `write-bytes`. In a uniform workload, or one that never comes back to a page,
//   all values are alike and nothing is moved.
// - Budget: swaps never cost more than what placement has saved so far against leaving all pages
//   where they were at the start, both counted exactly, plus `risk` of the writes that there were.
//   So a workload that fools the model costs that share at most, and more than that only if pages
//   are written that were moved away and there is no budget left to bring them back.
// - A page that was swapped stays for `stay` decisions.
// - A page is forgotten when its value is that of a page never seen, or when its averages have all
//   but vanished.
class ValuePolicy final : public TieringPolicy {
 public:
  explicit ValuePolicy(const Placement& placement) : placement_(placement) {}

  void begin_scan(std::int64_t now_ms) override;
  void written(std::uint64_t group, std::uint64_t bits) override;
  void decide(std::size_t limit, std::vector<SwapPair>& out) override;
  void swapped(const SwapPair& pair) override;
  void refused(const SwapPair& pair) override;
  [[nodiscard]] std::span<const Parameter> parameters() const override { return parameters_; }
  void set_parameter(std::size_t index, double value) override { parameters_[index].value = value; }
  [[nodiscard]] std::size_t tracked_pages() const override { return pool_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const override {
    return pool_.bytes() + displaced_.bytes();
  }

  // For tests.
  [[nodiscard]] const ValueModel& model() const { return model_; }

 private:
  struct Entry {
    float short_average = 0;
    float long_average = 0;
    std::uint32_t scan = 0;   // to which the averages are valid
    PageState state = 0;      // at the last decision
    std::uint8_t writes = 0;  // since then, at most 255
    std::uint16_t moved = 0;  // the decision after which it was swapped, modulo 2^16; 0: never
  };
  static_assert(sizeof(Entry) == 16);
  using Counts = std::array<std::uint64_t, kStates>;

  enum { kWriteBytes, kMargin, kHorizon, kHalfLife, kStay, kRisk };

  void age(Entry& entry) const;
  void observe();
  [[nodiscard]] bool may_move(const Entry& entry) const;
  [[nodiscard]] std::uint64_t affordable() const;
  void collect(const Counts& slow, const Counts& fast, std::vector<SwapPair>& out);
  void untouched_fast(std::uint64_t count, std::vector<PageIndex>& pages);
  void note_moved(PageIndex page);

  const Placement& placement_;
  std::array<Parameter, 6> parameters_{{
      {"write-bytes", "bytes that a page written in a scan is taken to write to memory", 64, 1e9,
       false, 4096},
      {"margin", "how many times its cost a swap has to be worth", 1, 100, false, 1.5},
      {"horizon", "decisions ahead that count", 2, 10000, false, 12},
      {"half-life", "decisions after which what was learned counts half", 1, 10000, false, 24},
      {"stay", "decisions for which a swapped page stays where it is", 0, 1000, true, 3},
      {"risk", "share of all writes that swaps may cost before they have saved any", 0, 1, false,
       0.2},
  }};
  PagePool<Entry> pool_;
  ValueModel model_;
  std::uint32_t scan_ = 0;
  std::uint32_t decision_ = 0;
  // Where pages were at the first scan, as far as they are elsewhere now: 64 pages a word.
  PagePool<std::uint64_t> displaced_;
  // In pages written: what placement saved against the first one, all that was written to what was
  // slow then, and the swaps made.
  double saved_ = 0;
  double unmoved_ = 0;
  double swaps_ = 0;
  // Counted by observe(): movable pages by state and tier.
  Counts slow_{};
  Counts fast_{};
  PageIndex untouched_from_;
};

}  // namespace kintsugi
