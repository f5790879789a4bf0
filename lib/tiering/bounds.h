// SPDX-License-Identifier: GPL-2.0-or-later
// What no policy can go below, however well it knows the future.
#pragma once

#include "base/result.h"
#include "tiering/simulator.h"
#include "tiering/workload.h"

namespace kintsugi {

struct TieringBounds {
  // The clairvoyant top-K: in each decision period the K pages with the most bytes of that period
  // lie on the fast tier. Slow bytes without any cost of swaps; the first period is with the
  // placement as it is at the start, as nobody can decide before it.
  double top_k_bytes = 0;
  // The Lagrangian bound on slow bytes and copies together: not below top_k_bytes, as swaps cost.
  double lagrangian_bytes = 0;
};

// The Lagrangian bound. Placing pages in T periods so that at most K are fast in each, at the cost
// of slow writes and of 4096 bytes for each swap, is hard only because pages share the K slots.
// Give a slot in period t a price p_t >= 0 instead: then each page decides for itself, by dynamic
// programming over two states, and
//
//     L(p) = sum over pages of their least cost at these prices - K * sum of p_t
//
// is no more than the least cost, for whatever prices. They begin at the bytes of the K-th page of
// each period, where L without the cost of swaps is the top-K bound, and climb by subgradient
// steps: a slot that more than K pages want gets dearer. A swap has one page go each way, so half
// its cost is with either. The limit of pairs is left out, so the bound is one for every limit.
//
// Time is pages written x periods for each step.
[[nodiscard]] TieringBounds tiering_bounds(const Workload& workload,
                                           const SimulationOptions& options);

}  // namespace kintsugi
