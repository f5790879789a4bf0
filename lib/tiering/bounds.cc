// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/bounds.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <unordered_map>
#include <vector>

namespace kintsugi {
namespace {

constexpr double kHalfSwap = static_cast<double>(kPageSize) / 2;
constexpr unsigned kSteps = 120;
// Page-periods that all steps together may visit: some seconds.
constexpr double kMaxVisits = 2e9;

struct PeriodBytes {
  std::uint32_t period;
  double bytes;
};

// A page that was written: its bytes by period.
struct WrittenPage {
  std::uint64_t page;
  bool fast;  // at the start
  std::vector<PeriodBytes> writes;
};

class Problem {
 public:
  Problem(const Workload& workload, const SimulationOptions& options)
      : fast_pages_(static_cast<double>(options.fast_pages.value)) {
    const std::uint64_t first_fast =
        options.fast_at_end ? workload.pages.value - options.fast_pages.value : 0;
    std::unordered_map<std::uint64_t, std::size_t> index;
    for (std::size_t scan = 0; scan < workload.scans.size(); ++scan) {
      const auto period = static_cast<std::uint32_t>(scan / options.scans_per_decision);
      for (const TraceRun& run : workload.scans[scan]) {
        const auto bytes = static_cast<double>(workload.bytes_of(run, options.bytes_per_write));
        if (bytes == 0) continue;
        for (std::uint64_t i = 0; i < run.count.value; ++i) {
          const std::uint64_t page = run.first.value + i;
          const auto [at, fresh] = index.try_emplace(page, pages_.size());
          if (fresh) {
            const bool fast = page >= first_fast && page - first_fast < options.fast_pages.value;
            pages_.push_back({.page = page, .fast = fast});
          }
          auto& writes = pages_[at->second].writes;
          if (writes.empty() || writes.back().period != period) writes.push_back({period, 0});
          writes.back().bytes += bytes;
        }
      }
    }
    periods_ =
        (workload.scans.size() + options.scans_per_decision - 1) / options.scans_per_decision;
    const auto written_fast =
        std::count_if(pages_.begin(), pages_.end(), [](const WrittenPage& p) { return p.fast; });
    untouched_fast_ = fast_pages_ - static_cast<double>(written_fast);
  }

  // Sets the prices to the bytes of the K-th page of each period.
  double top_k(std::vector<double>& prices) const {
    std::vector<std::vector<double>> by_period(periods_);
    double slow = 0;
    for (const WrittenPage& page : pages_) {
      for (const auto& [period, bytes] : page.writes) {
        if (period > 0) by_period[period].push_back(bytes);
        if (period == 0 && !page.fast) slow += bytes;
      }
    }
    prices.assign(periods_, 0);
    const auto k = static_cast<std::size_t>(fast_pages_);
    for (std::size_t period = 1; period < periods_; ++period) {
      auto& bytes = by_period[period];
      if (bytes.size() <= k) continue;
      std::nth_element(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(k), bytes.end(),
                       std::greater<>());
      prices[period] = bytes[k];
      slow += std::accumulate(bytes.begin() + static_cast<std::ptrdiff_t>(k), bytes.end(), 0.0);
    }
    return slow;
  }

  // L at these prices; adds up in `wanted` how many pages want a slot in each period.
  double dual(const std::vector<double>& prices, std::vector<double>& wanted) {
    wanted.assign(periods_, 0);
    double cost = 0;
    for (const WrittenPage& page : pages_) cost += least_cost(page, 1, prices, wanted);
    if (untouched_fast_ > 0) {
      cost +=
          untouched_fast_ * least_cost({.page = 0, .fast = true}, untouched_fast_, prices, wanted);
    }
    return cost - fast_pages_ * std::accumulate(prices.begin(), prices.end(), 0.0);
  }

  [[nodiscard]] std::size_t periods() const { return periods_; }
  [[nodiscard]] double fast_pages() const { return fast_pages_; }
  [[nodiscard]] double visits() const {
    return static_cast<double>(pages_.size()) * static_cast<double>(periods_);
  }

 private:
  // The least cost of one page, whose place in the first period is given; `weight` pages like it.
  double least_cost(const WrittenPage& page, double weight, const std::vector<double>& prices,
                    std::vector<double>& wanted) {
    constexpr std::uint8_t kFastCameFromFast = 1;
    constexpr std::uint8_t kSlowCameFromFast = 2;
    came_from_.resize(periods_);
    auto next = page.writes.begin();
    double fast = 0;
    double slow = 0;
    for (std::uint32_t t = 0; t < periods_; ++t) {
      double bytes = 0;
      if (next != page.writes.end() && next->period == t) bytes = next++->bytes;
      if (t == 0) {
        constexpr double kNever = 1e300;
        fast = page.fast ? 0 : kNever;
        slow = page.fast ? kNever : bytes;
        continue;
      }
      const bool stay_fast = fast <= slow + kHalfSwap;
      const bool leave = fast + kHalfSwap < slow;
      came_from_[t] = static_cast<std::uint8_t>((stay_fast ? kFastCameFromFast : 0) |
                                                (leave ? kSlowCameFromFast : 0));
      const double fast_now = (stay_fast ? fast : slow + kHalfSwap) + prices[t];
      slow = (leave ? fast + kHalfSwap : slow) + bytes;
      fast = fast_now;
    }
    bool is_fast = fast < slow;
    for (std::size_t t = periods_; t-- > 1;) {
      if (is_fast) wanted[t] += weight;
      is_fast = (came_from_[t] & (is_fast ? kFastCameFromFast : kSlowCameFromFast)) != 0;
    }
    return std::min(fast, slow);
  }

  std::vector<WrittenPage> pages_;
  std::size_t periods_ = 0;
  double fast_pages_;
  double untouched_fast_ = 0;
  std::vector<std::uint8_t> came_from_;
};

}  // namespace

TieringBounds tiering_bounds(const Workload& workload, const SimulationOptions& options) {
  Problem problem(workload, options);
  TieringBounds bounds;
  std::vector<double> prices;
  bounds.top_k_bytes = problem.top_k(prices);
  bounds.lagrangian_bytes = bounds.top_k_bytes;
  std::vector<double> wanted;
  const double affordable = kMaxVisits / std::max(problem.visits(), 1.0);
  const auto steps = static_cast<unsigned>(std::clamp(affordable, 8.0, double{kSteps}));
  // Polyak's step length needs the height of the summit. It is guessed to be a share above the best
  // seen, and the share shrinks while nothing better comes.
  double ahead = 0.3;
  std::vector<double> best_prices = prices;
  for (unsigned step = 0, since_better = 0; step < steps; ++step) {
    const double value = problem.dual(prices, wanted);
    if (value > bounds.lagrangian_bytes) {
      if (value > bounds.lagrangian_bytes * 1.0005) since_better = 0;
      bounds.lagrangian_bytes = value;
      best_prices = prices;
    }
    if (++since_better > 4) {
      since_better = 0;
      ahead /= 2;
      prices = best_prices;
      problem.dual(prices, wanted);
    }
    double length = 0;
    for (std::size_t t = 1; t < problem.periods(); ++t) {
      const double slope = wanted[t] - problem.fast_pages();
      if (prices[t] > 0 || slope > 0) length += slope * slope;
    }
    if (length == 0) break;
    const double target = bounds.lagrangian_bytes * (1 + ahead) + kPageSize;
    const double stride = (target - value) / length;
    for (std::size_t t = 1; t < problem.periods(); ++t) {
      prices[t] = std::max(0.0, prices[t] + stride * (wanted[t] - problem.fast_pages()));
    }
  }
  return bounds;
}

}  // namespace kintsugi
