// SPDX-License-Identifier: GPL-2.0-or-later
// What every tiering policy is to the rest: fed with scans, asked for pairs of pages to exchange.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "tiering/placement.h"

namespace kintsugi {

// The page on the slow tier is to change places with the page on the fast tier.
struct SwapPair {
  PageIndex slow;
  PageIndex fast;
  bool operator==(const SwapPair&) const = default;
};

// A number that a user may set by name, also while the policy runs.
struct Parameter {
  std::string_view name;  // "life-time-ms": as in QEMU's properties, the unit last
  std::string_view help;
  double min, max;  // inclusive
  bool integer;
  double value;
};

// A tiering policy. It sees pages 0 to placement.pages() - 1, is told of each scan which of them
// were written, and names pairs to exchange. It never reads a clock and draws no random number, so
// the same calls give the same pairs.
//
// The caller (Tiering) keeps to this order:
//
//   begin_scan(t); written() / accessed() for groups of pages, in any order; end_scan();
//   ... at the end of a decision period, after a scan:
//   decide(); then for each pair either swapped() or refused(), before the next decide()
//
// Scans may lie between decide() and the outcomes. The placement belongs to the caller, outlives
// the policy, and is changed already when swapped() or placement_changed() is called. One thread.
// Calls may throw std::bad_alloc, after which the policy may only be destroyed.
class TieringPolicy {
 public:
  virtual ~TieringPolicy() = default;

  // A scan is about what happened since the scan before. `now_ms` is from any origin and never goes
  // back.
  virtual void begin_scan(std::int64_t now_ms) = 0;
  // Pages group * 64 + i of the set bits i were written. No page comes twice in a scan.
  virtual void written(std::uint64_t group, std::uint64_t bits) = 0;
  // The same for pages read or written, where the source can tell. Most policies look at writes
  // only: reads wear no memory out.
  virtual void accessed(std::uint64_t /*group*/, std::uint64_t /*bits*/) {}
  virtual void end_scan() {}

  // Appends at most `limit` pairs to `out`, the most wanted first. No page is in two pairs.
  virtual void decide(std::size_t limit, std::vector<SwapPair>& out) = 0;
  virtual void swapped(const SwapPair& pair) = 0;
  // The pages are where they were: pinned, say.
  virtual void refused(const SwapPair& pair) = 0;
  // Somebody else has put these pages on another tier.
  virtual void placement_changed(PageIndex /*first*/, PageCount /*count*/) {}

  [[nodiscard]] virtual std::span<const Parameter> parameters() const { return {}; }
  // Index into parameters(). The value is in its range.
  virtual void set_parameter(std::size_t /*index*/, double /*value*/) {}

  // Pages that the policy remembers something of, and the bytes it takes for that.
  [[nodiscard]] virtual std::size_t tracked_pages() const = 0;
  [[nodiscard]] virtual std::size_t memory_bytes() const = 0;
};

// The names that make_policy() knows, with one line on each.
struct PolicyName {
  std::string_view name;
  std::string_view about;
};
[[nodiscard]] std::span<const PolicyName> policy_names();
// Errors: a name that is none of policy_names(); the message lists them.
[[nodiscard]] Result<std::unique_ptr<TieringPolicy>> make_policy(std::string_view name,
                                                                 const Placement& placement);

}  // namespace kintsugi
