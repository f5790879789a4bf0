// SPDX-License-Identifier: GPL-2.0-or-later
// What tiering costs, and what its policies are worth.
//
//   tiering_bench [--small] [TRACE...]
//
// Prints a JSON list of results to stdout: name, value, unit, compared_with, ratio, goal, met.
//
// Cost, for each policy: VMs of 4 GiB and 1 TiB, 2.4 % of them fast, in which 1 % of all pages is
// written each second, half of that a hot set and half drawn at random. Time is CPU time of one
// thread, of the last of four decision periods of five scans: of the decision alone with 1,000
// pairs, and of all that the period took, feeding included. Bytes a tracked page are what the
// policy holds, hash table and free nodes included. --small leaves out the 1 TiB.
//
// Worth: the traces named, or else the synthetic workloads of lib/tiering/synthetic.h on 256 MiB,
// with 2.4 % fast, 1,000 pairs each 5 s. Bytes written to the slow tier, copies included, as a
// share of those with no policy.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tiering/bounds.h"
#include "tiering/simulator.h"
#include "tiering/synthetic.h"
#include "tiering/tiering.h"

namespace kintsugi {
namespace {

using nlohmann::json;

constexpr double kFastShare = 0.024;
constexpr unsigned kScansPerDecision = 5;
constexpr unsigned kDecisions = 4;
constexpr double kMaxDecisionMs = 50;
constexpr double kMaxPeriodSeconds = 15;
constexpr double kMaxBytesPerPage = 32;

class Figures {
 public:
  void add(const std::string& name, double value, const char* unit, const std::string& compared,
           double ratio, const char* goal, bool met) {
    list_.push_back({{"name", name},
                     {"value", value},
                     {"unit", unit},
                     {"compared_with", compared},
                     {"ratio", compared.empty() ? json() : json(ratio)},
                     {"goal", goal},
                     {"met", met}});
  }
  [[nodiscard]] std::string text() const { return list_.dump(1) + "\n"; }

 private:
  json list_ = json::array();
};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

std::uint64_t next_random(std::uint64_t& state) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

void measure_cost(const char* vm, std::uint64_t pages, const std::string& policy,
                  Figures& figures) {
  auto made = Tiering::create(PageCount{pages}, policy);
  if (!made) return;
  Tiering& tiering = **made;
  const auto fast = static_cast<std::uint64_t>(static_cast<double>(pages) * kFastShare);
  if (!tiering.set_fast(PageIndex{pages - fast}, PageCount{fast}, true)) return;
  const std::uint64_t writes = pages / 100;
  std::vector<std::uint64_t> bitmap((pages + 63) / 64);
  std::uint64_t state = 88172645463325252;
  std::uint64_t tracked = 0;  // at most; nodes are kept for the next pages
  double decision = 0;
  double period = 0;
  for (unsigned scan = 1; scan <= kDecisions * kScansPerDecision; ++scan) {
    std::fill(bitmap.begin(), bitmap.end(), 0);
    for (std::uint64_t i = 0; i < writes / 2; ++i) {
      const std::uint64_t hot = i * 131 % pages;
      const std::uint64_t any = next_random(state) % pages;
      bitmap[hot / 64] |= std::uint64_t{1} << (hot % 64);
      bitmap[any / 64] |= std::uint64_t{1} << (any % 64);
    }
    double began = cpu_seconds();
    tiering.begin_scan(scan * 1000);
    tiering.feed_written(PageIndex{0}, bitmap.data(), PageCount{pages});
    tiering.end_scan();
    tracked = std::max(tracked, tiering.stats().tracked_pages);
    if (scan % kScansPerDecision == 1) period = 0;
    period += cpu_seconds() - began;
    if (scan % kScansPerDecision != 0) continue;
    began = cpu_seconds();
    const std::size_t pairs = tiering.decide(SIZE_MAX).size();
    decision = cpu_seconds() - began;
    for (std::size_t i = 0; i < pairs; ++i) tiering.report(i, true);
    period += cpu_seconds() - began;
  }
  const TieringStats stats = tiering.stats();
  const bool large = pages > (1 << 20);
  figures.add(fmt::format("{} decision, {}", policy, vm), decision * 1000, "ms", "", 0,
              large ? "reported" : "<= 50 ms", large || decision * 1000 <= kMaxDecisionMs);
  figures.add(fmt::format("{} period of 5 scans, {}", policy, vm), period, "s of CPU", "", 0,
              large ? "<= 15 s" : "reported", !large || period <= kMaxPeriodSeconds);
  if (tracked == 0) return;
  const double bytes = static_cast<double>(stats.memory.value) / static_cast<double>(tracked);
  figures.add(fmt::format("{} memory, {}, {} tracked at most", policy, vm, tracked), bytes,
              "bytes a tracked page", "", 0, "<= 32", bytes <= kMaxBytesPerPage);
}

// What all policies did with one workload, and the sums over all.
struct Worth {
  std::map<std::string, double> shares;  // of none's slow bytes, added up
  double bound_share = 0;
  double largest_above_none = 0;
  unsigned workloads = 0;
};

void measure_worth(const Workload& workload, Figures& figures, Worth& worth) {
  SimulationOptions options;
  options.fast_pages =
      PageCount{static_cast<std::uint64_t>(static_cast<double>(workload.pages.value) * kFastShare)};
  double none = 0;
  double best = std::numeric_limits<double>::infinity();
  std::string best_name;
  std::map<std::string, SimulationResult> results;
  for (const PolicyName& policy : policy_names()) {
    auto result = simulate(workload, std::string(policy.name), options);
    if (!result) return;
    const auto bytes = static_cast<double>(result->slow_bytes_with_copies());
    if (policy.name == "none") none = std::max(bytes, 1.0);
    if (policy.name != "kintsugi" && bytes < best) {
      best = bytes;
      best_name = policy.name;
    }
    worth.shares[std::string(policy.name)] += bytes / none;
    results.emplace(policy.name, std::move(*result));
  }
  const auto ours = static_cast<double>(results["kintsugi"].slow_bytes_with_copies());
  worth.largest_above_none = std::max(worth.largest_above_none, ours / none - 1);
  const TieringBounds bounds = tiering_bounds(workload, options);
  worth.bound_share += bounds.lagrangian_bytes / none;
  ++worth.workloads;
  figures.add(fmt::format("{}: slow bytes of kintsugi", workload.name), ours / none * 100,
              "% of none", best_name, ours / best, "reported", true);
  figures.add(fmt::format("{}: Lagrangian bound", workload.name),
              bounds.lagrangian_bytes / none * 100, "% of none", "kintsugi",
              bounds.lagrangian_bytes / ours, "reported", true);
  const SimulationResult& mq = results["mq"];
  const SimulationResult& lru = results["lru"];
  figures.add(fmt::format("{}: hits of mq less lru's", workload.name),
              (mq.hit_share() - lru.hit_share()) * 100, "points", "swaps of lru",
              static_cast<double>(mq.swaps) / std::max<double>(static_cast<double>(lru.swaps), 1),
              "reported", true);
}

void report_sums(const Worth& worth, Figures& figures) {
  const double n = worth.workloads;
  if (n == 0) return;
  double best = std::numeric_limits<double>::infinity();
  std::string best_name;
  for (const auto& [policy, share] : worth.shares) {
    figures.add(fmt::format("mean of all: slow bytes of {}", policy), share / n * 100, "% of none",
                "", 0, "reported", true);
    if (policy != "kintsugi" && share < best) {
      best = share;
      best_name = policy;
    }
  }
  const double ours = worth.shares.at("kintsugi");
  figures.add("mean of all: kintsugi against the best rival untuned", ours / n * 100, "% of none",
              best_name, ours / best, "< 1", ours < best);
  figures.add("most that kintsugi is above none", worth.largest_above_none * 100, "%", "", 0,
              "<= 0.1", worth.largest_above_none <= 0.001);
  figures.add("mean of all: Lagrangian bound", worth.bound_share / n * 100, "% of none", "kintsugi",
              worth.bound_share / ours, "reported", true);
}

int run(int argc, char** argv) {
  Figures figures;
  Worth worth;
  bool small = false;
  std::vector<std::string> traces;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--small") {
      small = true;
    } else {
      traces.emplace_back(argv[i]);
    }
  }
  for (const PolicyName& policy : policy_names()) {
    if (policy.name == "none") continue;
    measure_cost("4 GiB", 1 << 20, std::string(policy.name), figures);
    const bool of_note = policy.name == "kintsugi" || policy.name == "mq";
    if (!small && of_note) measure_cost("1 TiB", 1 << 28, std::string(policy.name), figures);
  }
  for (const std::string& trace : traces) {
    const auto workload = load_workload(trace, false);
    if (!workload) {
      fmt::print(stderr, "tiering_bench: {}\n", workload.error().message);
      return 1;
    }
    measure_worth(*workload, figures, worth);
  }
  if (traces.empty()) {
    for (const SyntheticName& name : synthetic_names()) {
      const auto workload = make_synthetic(name.name, {.pages = PageCount{1 << 16}});
      if (workload) measure_worth(*workload, figures, worth);
    }
  }
  report_sums(worth, figures);
  std::fputs(figures.text().c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace kintsugi

int main(int argc, char** argv) {
  try {
    return kintsugi::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "tiering_bench: {}\n", e.what());
    return 1;
  }
}
