// SPDX-License-Identifier: GPL-2.0-or-later
// Plays a workload to a policy and counts what is written to each tier.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "tiering/workload.h"

namespace kintsugi {

struct SimulationOptions {
  // Of Tiering, `limit` and the ping-pong gate among them.
  std::vector<std::pair<std::string, double>> parameters;
  PageCount fast_pages;
  // Where the fast pages lie at first: at the end of the VM, as in P4's experiment, or the start.
  bool fast_at_end = true;
  // Scans between two decisions; P4: 5.
  unsigned scans_per_decision = 5;
  std::int64_t scan_period_ms = 1000;
  // What a page written in a period writes to memory where the workload is not metered.
  std::uint32_t bytes_per_write = kPageSize;
};

// What happened in one scan period; the swaps are those of the decision at its end.
struct SimulatedScan {
  std::uint64_t fast_bytes = 0;
  std::uint64_t slow_bytes = 0;  // by the guest
  std::uint64_t swaps = 0;
};

struct SimulationResult {
  std::string policy;
  std::uint64_t fast_writes = 0, slow_writes = 0;  // pages written, each once a scan
  std::uint64_t fast_bytes = 0, slow_bytes = 0;    // by the guest
  std::uint64_t swaps = 0;
  std::uint64_t peak_tracked_pages = 0, peak_memory_bytes = 0;
  std::vector<SimulatedScan> scans;

  // A swap copies one page to each tier.
  [[nodiscard]] std::uint64_t copied_bytes() const { return swaps * kPageSize; }
  // What a policy is judged by: all that was written to the slow tier.
  [[nodiscard]] std::uint64_t slow_bytes_with_copies() const { return slow_bytes + copied_bytes(); }
  // The share of the guest's bytes that were written to the fast tier, 0 to 1.
  [[nodiscard]] double hit_share() const {
    const double all = static_cast<double>(fast_bytes) + static_cast<double>(slow_bytes);
    return all == 0 ? 0 : static_cast<double>(fast_bytes) / all;
  }
};

// Every pair that the policy names is swapped at once. Errors: those of Tiering for the policy and
// its parameters; more fast pages than the VM has.
[[nodiscard]] Result<SimulationResult> simulate(const Workload& workload, const std::string& policy,
                                                const SimulationOptions& options);

}  // namespace kintsugi
