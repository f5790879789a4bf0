// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/value_model.h"

#include <algorithm>
#include <cmath>

namespace kintsugi {
namespace {

// Upper ends of the classes; the last has none. One write brings the short average from 0 to 0.125
// and the long one to 0.0078.
constexpr std::array<float, kShortClasses - 1> kShortEnds{0.02F, 0.05F, 0.1F, 0.2F,
                                                          0.35F, 0.55F, 0.8F};
constexpr std::array<float, kLongClasses - 1> kLongEnds{0.006F, 0.012F, 0.025F, 0.05F,
                                                        0.1F,   0.2F,   0.4F};
constexpr unsigned kSweeps = 60;
// Pages whose worth the prior has.
constexpr double kPriorPages = 8;

template <std::size_t N>
unsigned class_of(const std::array<float, N>& ends, float value) {
  unsigned at = 0;
  while (at < N && value >= ends[at]) ++at;
  return at;
}

}  // namespace

PageState state_of(float short_average, float long_average) {
  return static_cast<PageState>(1 + class_of(kShortEnds, short_average) * kLongClasses +
                                class_of(kLongEnds, long_average));
}

ValueModel::ValueModel() {
  for (unsigned state = 1; state < kStates; ++state) {
    const unsigned long_class = (state - 1) % kLongClasses;
    const float begin = long_class == 0 ? 0 : kLongEnds[long_class - 1];
    prior_[state] = begin * kLongWindow;
  }
  values_ = prior_;
}

void ValueModel::solve(double horizon, double half_life) {
  const double discount = 1 - 1 / horizon;
  for (unsigned sweep = 0; sweep < kSweeps; ++sweep) {
    double change = 0;
    for (unsigned i = 0; i < kStates; ++i) {
      const Row& row = rows_[i];
      if (row.pages == 0) continue;
      double next = 0;
      for (unsigned j = 0; j < kStates; ++j) next += row.to[j] * values_[j];
      const double seen = row.writes + discount * next;
      const double value = (kPriorPages * prior_[i] + seen) / (kPriorPages + row.pages);
      change = std::max(change, std::abs(value - values_[i]));
      values_[i] = value;
    }
    constexpr double kStill = 1e-3;
    if (change < kStill) break;
  }
  const double keep = std::exp2(-1 / half_life);
  for (Row& row : rows_) {
    row.pages *= keep;
    row.writes *= keep;
    for (double& pages : row.to) pages *= keep;
  }
}

}  // namespace kintsugi
