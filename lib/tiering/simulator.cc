// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/simulator.h"

#include <algorithm>
#include <array>
#include <bit>

#include "tiering/tiering.h"

namespace kintsugi {
namespace {

constexpr std::uint64_t kWords = 64;

// Words of ones, to feed runs from.
constexpr auto kOnes = [] {
  std::array<std::uint64_t, kWords> words{};
  words.fill(~std::uint64_t{0});
  return words;
}();

template <typename Feed>
void feed_run(const TraceRun& run, Feed&& feed) {
  for (std::uint64_t done = 0; done < run.count.value; done += kWords * 64) {
    feed(PageIndex{run.first.value + done}, kOnes.data(),
         PageCount{std::min(kWords * 64, run.count.value - done)});
  }
}

std::uint64_t fast_pages_of(const Placement& placement, const TraceRun& run) {
  std::uint64_t fast = 0;
  for (std::uint64_t page = run.first.value; page < run.first.value + run.count.value; ++page) {
    fast += placement.is_fast(PageIndex{page}) ? 1 : 0;
  }
  return fast;
}

}  // namespace

Result<SimulationResult> simulate(const Workload& workload, const std::string& policy,
                                  const SimulationOptions& options) {
  auto made = Tiering::create(workload.pages, policy);
  if (!made) return made.error();
  Tiering& tiering = **made;
  for (const auto& [name, value] : options.parameters) {
    if (auto ok = tiering.set(name, value); !ok) return ok.error();
  }
  if (options.fast_pages > workload.pages) {
    return make_error(EINVAL, "{} fast pages are more than the VM's {}", options.fast_pages.value,
                      workload.pages.value);
  }
  const PageIndex first{options.fast_at_end ? workload.pages.value - options.fast_pages.value : 0};
  if (auto ok = tiering.set_fast(first, options.fast_pages, true); !ok) return ok.error();

  SimulationResult result{.policy = policy};
  std::int64_t now_ms = 0;
  for (const auto& runs : workload.scans) {
    SimulatedScan figures;
    tiering.begin_scan(now_ms += options.scan_period_ms);
    for (const TraceRun& run : runs) {
      const std::uint64_t bytes = workload.bytes_of(run, options.bytes_per_write);
      if (bytes != 0) {
        const std::uint64_t fast = fast_pages_of(tiering.placement(), run);
        figures.fast_bytes += fast * bytes;
        figures.slow_bytes += (run.count.value - fast) * bytes;
      }
      if (run.access == TraceAccess::kNone) continue;
      if (run.access == TraceAccess::kWritten) {
        feed_run(run, [&](auto... args) { tiering.feed_written(args...); });
      }
      feed_run(run, [&](auto... args) { tiering.feed_accessed(args...); });
    }
    tiering.end_scan();
    if ((result.scans.size() + 1) % options.scans_per_decision == 0) {
      const std::size_t pairs = tiering.decide(SIZE_MAX).size();
      for (std::size_t i = 0; i < pairs; ++i) tiering.report(i, true);
      figures.swaps = pairs;
    }
    const TieringStats stats = tiering.stats();
    result.peak_tracked_pages = std::max(result.peak_tracked_pages, stats.tracked_pages);
    result.peak_memory_bytes = std::max(result.peak_memory_bytes, stats.memory.value);
    result.fast_bytes += figures.fast_bytes;
    result.slow_bytes += figures.slow_bytes;
    result.swaps += figures.swaps;
    result.scans.push_back(figures);
  }
  result.fast_writes = tiering.stats().fast_writes;
  result.slow_writes = tiering.stats().slow_writes;
  return result;
}

}  // namespace kintsugi
