// SPDX-License-Identifier: GPL-2.0-or-later
// What a guest did, in memory, to be played to several policies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "access/trace.h"
#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

struct Workload {
  std::string name;
  PageCount pages;
  // Runs have write-backs, so bytes written are known and not assumed.
  bool metered = false;
  // Runs of each scan period, ascending and apart; kAccessed does not occur.
  std::vector<std::vector<TraceRun>> scans;

  // Bytes that one page of `run` wrote to memory in its period; `bytes_per_write` stands for what
  // was not counted.
  [[nodiscard]] std::uint64_t bytes_of(const TraceRun& run, std::uint32_t bytes_per_write) const {
    if (metered) return std::uint64_t{run.write_backs} * kWriteBackBytes;
    return run.access == TraceAccess::kWritten ? bytes_per_write : 0;
  }
};

// Reads a trace (docs/access-trace.md). Errors: those of the reader; a trace of version 1, which
// does not say what was written, unless `accesses_are_writes`; too many pages for tiering.
[[nodiscard]] Result<Workload> load_workload(const std::string& path, bool accesses_are_writes);

}  // namespace kintsugi
