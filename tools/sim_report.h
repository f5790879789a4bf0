// SPDX-License-Identifier: GPL-2.0-or-later
// What `kintsugi sim` says of its results.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "tiering/bounds.h"
#include "tiering/simulator.h"

namespace kintsugi::tools {

// One workload under several policies.
struct SimReport {
  std::string workload;
  PageCount pages;
  PageCount fast_pages;
  unsigned scans_per_decision = 5;
  bool metered = false;
  std::vector<SimulationResult> results;
  std::optional<TieringBounds> bounds;
};

[[nodiscard]] std::string to_table(const std::vector<SimReport>& reports);
// A list with an object a workload; docs/tiering-policies.md tells the members.
[[nodiscard]] std::string to_json(const std::vector<SimReport>& reports);
// Draws them by sim_plot.py, which lies in share/kintsugi beside the program's bin, or in the
// source tree. Errors: the script is not there, or failed.
[[nodiscard]] Result<void> plot(const std::vector<SimReport>& reports, const std::string& file);

}  // namespace kintsugi::tools
