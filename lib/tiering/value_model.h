// SPDX-License-Identifier: GPL-2.0-or-later
// How many writes pages with a certain past are still to get, learned from all pages.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kintsugi {

// A page's past is a state of a few: two moving averages of its writes a scan, each in a class.
// State 0 is a page of which nothing is remembered.
inline constexpr unsigned kShortClasses = 8;
inline constexpr unsigned kLongClasses = 8;
inline constexpr unsigned kStates = 1 + kShortClasses * kLongClasses;
using PageState = std::uint8_t;

// The windows of the moving averages, in scans.
inline constexpr float kShortWindow = 8;
inline constexpr float kLongWindow = 128;

// Neither average is below 0 or above 1. Never state 0.
[[nodiscard]] PageState state_of(float short_average, float long_average);

// A Markov chain with rewards: in a decision period, a page of state i gets so many writes and is
// of state j after it. Both are counted over all pages, and what is older counts less. The value of
// a state is what a page of it is expected to get from now on, a write that is t periods away
// counting (1 - 1/horizon)^t:
//
//     V(i) = writes(i) + (1 - 1/horizon) * sum over j of P(i, j) V(j)
//
// solved by sweeps that begin with the last solution. Until there is evidence, a page is taken to
// get as many writes as it had within the long window.
//
// So what a burst, a stream or a hot set looks like need not be told by parameters: pages that were
// written once, long ago or just now, are worth what pages like them turned out to be worth.
class ValueModel {
 public:
  ValueModel();

  // `pages` pages were of state `from` a decision ago, got `writes` writes together, and are of
  // state `to` now.
  void observe(PageState from, PageState to, double pages, double writes) {
    Row& row = rows_[from];
    row.pages += pages;
    row.writes += writes;
    row.to[to] += pages;
  }
  // The end of a decision period: values follow from what was observed.
  void solve(double horizon, double half_life);

  // Writes to come.
  [[nodiscard]] double value(PageState state) const { return values_[state]; }
  // Pages that the value rests on, older ones counting less.
  [[nodiscard]] double evidence(PageState state) const { return rows_[state].pages; }

 private:
  struct Row {
    double pages = 0;
    double writes = 0;
    std::array<double, kStates> to{};
  };

  std::array<Row, kStates> rows_{};
  std::array<double, kStates> prior_{};
  std::array<double, kStates> values_{};
};

}  // namespace kintsugi
