// SPDX-License-Identifier: GPL-2.0-or-later
// One VM's tiers: its placement, a policy that can be exchanged, and what both have done so far.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "tiering/page_pool.h"
#include "tiering/placement.h"
#include "tiering/policy.h"

namespace kintsugi {

// Since the start. "Writes" are pages seen written, each once a scan.
struct TieringStats {
  std::uint64_t scans = 0;
  std::uint64_t decisions = 0;
  std::uint64_t fast_writes = 0;
  std::uint64_t slow_writes = 0;
  std::uint64_t pairs = 0;    // handed out
  std::uint64_t swapped = 0;  // of them
  std::uint64_t refused = 0;  // of them; those that nobody reported on count here
  PageCount pages;
  PageCount fast_pages;
  std::uint64_t tracked_pages = 0;  // that the policy remembers something of
  Bytes memory;                     // that it takes for that
};

// Use:
//
//   set_fast() for what lies on the fast tier
//   each scan period:      begin_scan(now); feed_written(), feed_accessed(); end_scan()
//   each decision period:  decide(), swap each pair, report() each
//
// Every pair really is one slow and one fast page at the time of decide(), no page is in two, and
// there are never more than parameter `limit`. Placement stays true if every pair is reported on
// as it went; whoever moves pages otherwise says so by set_fast(). It reads no clock: the same
// calls give the same pairs.
//
// Whatever the policy wants, pages that were swapped stay where they are for `ping-pong-gate`
// decisions, and pages of a refused pair are not asked for again for `refused-wait` decisions: a
// page that is pinned would be named each time. Pairs held back thus are told to the policy as
// refused, and not counted.
//
// Parameters are those two, `limit` for the pairs of a decision, and the policy's. The latter are
// kept as long as the policy is in use; another starts with its defaults.
//
// One thread at a time. Calls may throw std::bad_alloc, after which it may only be destroyed.
class Tiering {
 public:
  // All pages are slow at first. Errors: of Placement::create() and make_policy().
  static Result<std::unique_ptr<Tiering>> create(PageCount pages, std::string_view policy);

  Tiering(const Tiering&) = delete;
  Tiering& operator=(const Tiering&) = delete;

  // Errors: pages past the end of the VM; nothing is changed then.
  [[nodiscard]] Result<void> set_fast(PageIndex first, PageCount count, bool fast);
  [[nodiscard]] bool is_fast(PageIndex page) const { return placement_.is_fast(page); }
  [[nodiscard]] const Placement& placement() const { return placement_; }

  // Milliseconds from any origin; a time before that of the scan before is taken for the latter.
  void begin_scan(std::int64_t now_ms);
  // One scan's bits of pages [first, first + count): page first + i is bit i % 64 of
  // bitmap[i / 64], as AccessHistory::feed() has it. Bits past `count` and pages past the end of
  // the VM are ignored. A page is to be fed once a scan.
  void feed_written(PageIndex first, const std::uint64_t* bitmap, PageCount count);
  // Pages read or written, where the source can tell.
  void feed_accessed(PageIndex first, const std::uint64_t* bitmap, PageCount count);
  void end_scan();

  // Pairs to swap, the most wanted first, at most `limit` and at most `max` of them; valid until
  // the next call. Pairs of the call before that were not reported on count as refused.
  std::span<const SwapPair> decide(std::size_t max);
  // What became of pair `index` of the last decide(). False if there is no such pair, or it was
  // reported on before.
  bool report(std::size_t index, bool swapped);

  // The placement stays, and what the old policy remembers is lost. Pairs of the last decide() may
  // still be reported on. Errors: of make_policy(); nothing is changed then.
  [[nodiscard]] Result<void> set_policy(std::string_view name);
  [[nodiscard]] const std::string& policy() const { return policy_name_; }

  // Those of Tiering first, then the policy's.
  [[nodiscard]] std::vector<Parameter> parameters() const;
  // Errors: a name that is none, a value out of range or not whole; the message says what would do.
  [[nodiscard]] Result<void> set(std::string_view name, double value);
  [[nodiscard]] Result<double> get(std::string_view name) const;

  [[nodiscard]] TieringStats stats() const;

 private:
  Tiering(Placement placement) : placement_(std::move(placement)) {}

  void settle();
  [[nodiscard]] bool held_back(const SwapPair& pair) const;
  void hold_back(PageIndex page, double decisions);
  Result<std::size_t> find(std::span<const Parameter> parameters, std::string_view name) const;

  Placement placement_;
  std::string policy_name_;
  std::unique_ptr<TieringPolicy> policy_;
  enum { kLimit, kPingPongGate, kRefusedWait, kOwn };
  std::array<Parameter, kOwn> parameters_{{
      {"limit", "pairs of pages that a decision may name", 0, 1e6, true, 1000},
      {"ping-pong-gate", "decisions for which a swapped page stays where it is; 0: off", 0, 1000,
       true, 0},
      {"refused-wait", "decisions for which a refused pair's pages are left alone", 0, 1000, true,
       12},
  }};
  std::int64_t now_ms_ = INT64_MIN;
  std::vector<SwapPair> pairs_;
  std::vector<bool> open_;        // of pairs_: not reported on yet
  bool pairs_of_policy_ = false;  // pairs_ are of policy_, not of one before it
  // Pages that are left alone, and the decision from which on they no longer are.
  PagePool<std::uint64_t> held_;
  TieringStats stats_;
};

}  // namespace kintsugi
