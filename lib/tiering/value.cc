// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/value.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace kintsugi {
namespace {

constexpr float kShortStep = 1 / kShortWindow;
constexpr float kLongStep = 1 / kLongWindow;
// A page whose long average is below is forgotten: a quarter of what one write makes it.
constexpr float kForgetLong = kLongStep / 4;
// One that was not written lately and not often may be forgotten when it is worth no more than one
// of which nothing is known.
constexpr float kQuietShort = 0.05F;
constexpr float kQuietLong = 2 * kLongStep;
constexpr double kSameValue = 0.05;
// Few pages in a state, and few seen in it before: those are there by chance, and the prior would
// take them for hot.
constexpr double kLeastPages = 200;

}  // namespace

void ValuePolicy::begin_scan(std::int64_t /*now_ms*/) { ++scan_; }

// Lets the averages decay to the last scan.
void ValuePolicy::age(Entry& entry) const {
  const auto scans = static_cast<float>(scan_ - entry.scan);
  if (scans == 0) return;
  entry.short_average *= std::pow(1 - kShortStep, scans);
  entry.long_average *= std::pow(1 - kLongStep, scans);
  entry.scan = scan_;
}

void ValuePolicy::written(std::uint64_t group, std::uint64_t bits) {
  const std::uint64_t fast = placement_.fast_bits(group);
  const NodeId moved = displaced_.find(PageIndex{group});
  const std::uint64_t displaced = moved == kNoNode ? 0 : displaced_[moved];
  saved_ += std::popcount(bits & fast & displaced) - std::popcount(bits & ~fast & displaced);
  unmoved_ += std::popcount(bits & ~(fast ^ displaced));
  for_each_page(group, bits, [this](PageIndex page) {
    NodeId id = pool_.find(page);
    if (id == kNoNode) {
      id = pool_.insert(page);
      pool_[id].scan = scan_;
    }
    Entry& entry = pool_[id];
    age(entry);
    // age() has brought this scan's decay, unless the page is new.
    entry.short_average += kShortStep * (1 - entry.short_average);
    entry.long_average += kLongStep * (1 - entry.long_average);
    if (entry.writes < 0xff) ++entry.writes;
  });
}

bool ValuePolicy::may_move(const Entry& entry) const {
  if (entry.moved == 0) return true;
  const auto since = static_cast<std::uint16_t>(decision_ - entry.moved);
  return since > parameters_[kStay].value;
}

// What became of each page since the last decision.
void ValuePolicy::observe() {
  slow_.fill(0);
  fast_.fill(0);
  const double nothing = model_.value(0);
  double untouched = static_cast<double>(placement_.pages().value);
  pool_.for_each([&](NodeId id) {
    Entry& entry = pool_[id];
    age(entry);
    PageState state = state_of(entry.short_average, entry.long_average);
    const bool quiet = entry.short_average < kQuietShort && entry.long_average < kQuietLong;
    const bool forget = entry.long_average < kForgetLong ||
                        (quiet && std::abs(model_.value(state) - nothing) < kSameValue);
    if (forget) state = 0;
    model_.observe(entry.state, state, 1, entry.writes);
    untouched -= 1;
    if (forget) {
      pool_.erase(id);
      return;
    }
    entry.state = state;
    entry.writes = 0;
    if (may_move(entry)) ++(placement_.is_fast(pool_.page(id)) ? fast_ : slow_)[state];
  });
  model_.observe(0, 0, untouched, 0);
  model_.solve(parameters_[kHorizon].value, parameters_[kHalfLife].value);
}

std::uint64_t ValuePolicy::affordable() const {
  const double cost = static_cast<double>(kPageSize) / parameters_[kWriteBytes].value;
  const double budget = std::max(saved_, 0.0) + parameters_[kRisk].value * unmoved_;
  return static_cast<std::uint64_t>(std::max(budget / cost - swaps_, 0.0));
}

void ValuePolicy::decide(std::size_t limit, std::vector<SwapPair>& out) {
  ++decision_;
  observe();
  const double least_gain =
      parameters_[kMargin].value * static_cast<double>(kPageSize) / parameters_[kWriteBytes].value;
  std::array<PageState, kStates> order;
  std::iota(order.begin(), order.end(), PageState{0});
  std::stable_sort(order.begin(), order.end(),
                   [this](PageState a, PageState b) { return model_.value(a) < model_.value(b); });
  // Fast pages of which nothing is known, at most as many as may be wanted.
  std::vector<PageIndex> untouched;
  untouched_fast(limit, untouched);
  fast_[0] = untouched.size();

  std::uint64_t left = std::min<std::uint64_t>(limit, affordable());
  Counts take_slow{};
  Counts take_fast{};
  for (unsigned state = 0; state < kStates; ++state) {
    const auto pages = static_cast<double>(slow_[state]);
    if (pages + model_.evidence(static_cast<PageState>(state)) < kLeastPages) slow_[state] = 0;
  }
  auto cold = order.begin();
  auto hot = order.rbegin();
  while (left > 0 && cold != order.end() && hot != order.rend()) {
    if (model_.value(*hot) - model_.value(*cold) <= least_gain) break;
    const std::uint64_t slow = slow_[*hot] - take_slow[*hot];
    const std::uint64_t fast = fast_[*cold] - take_fast[*cold];
    const std::uint64_t n = std::min({left, slow, fast});
    take_slow[*hot] += n;
    take_fast[*cold] += n;
    left -= n;
    if (n == slow) ++hot;
    if (n == fast) ++cold;
  }
  collect(take_slow, take_fast, out);
}

// Finds as many pages of each state and tier, and pairs them.
void ValuePolicy::collect(const Counts& slow, const Counts& fast, std::vector<SwapPair>& out) {
  if (std::accumulate(slow.begin(), slow.end(), std::uint64_t{0}) == 0) return;
  Counts slow_left = slow;
  Counts fast_left = fast;
  std::vector<NodeId> slow_pages;
  std::vector<PageIndex> fast_pages;
  untouched_fast(fast[0], fast_pages);
  pool_.for_each([&](NodeId id) {
    const Entry& entry = pool_[id];
    if (slow_left[entry.state] == 0 && fast_left[entry.state] == 0) return;
    if (!may_move(entry)) return;
    const PageIndex page = pool_.page(id);
    const bool is_fast = placement_.is_fast(page);
    std::uint64_t& left = (is_fast ? fast_left : slow_left)[entry.state];
    if (left == 0) return;
    --left;
    if (is_fast) {
      fast_pages.push_back(page);
    } else {
      slow_pages.push_back(id);
    }
  });
  // The most wanted first, should not all of them be swapped.
  std::stable_sort(slow_pages.begin(), slow_pages.end(), [this](NodeId a, NodeId b) {
    return model_.value(pool_[a].state) > model_.value(pool_[b].state);
  });
  for (std::size_t i = 0; i < std::min(slow_pages.size(), fast_pages.size()); ++i) {
    out.push_back({.slow = pool_.page(slow_pages[i]), .fast = fast_pages[i]});
  }
}

// At most `count` fast pages without a node, going round.
void ValuePolicy::untouched_fast(std::uint64_t count, std::vector<PageIndex>& pages) {
  const std::uint64_t end = placement_.pages().value;
  PageIndex page = placement_.next_fast(untouched_from_);
  for (unsigned turn = 0; turn < 2 && pages.size() < count; ++turn) {
    const std::uint64_t stop = turn == 0 ? end : untouched_from_.value;
    for (; page.value < stop && pages.size() < count;
         page = placement_.next_fast(PageIndex{page.value + 1})) {
      if (pool_.find(page) == kNoNode) pages.push_back(page);
    }
    page = placement_.next_fast(PageIndex{0});
  }
}

void ValuePolicy::note_moved(PageIndex page) {
  const PageIndex group{page.value / 64};
  NodeId id = displaced_.find(group);
  if (id == kNoNode) id = displaced_.insert(group);
  displaced_[id] ^= std::uint64_t{1} << (page.value % 64);
  if (displaced_[id] == 0) displaced_.erase(id);
  const NodeId node = pool_.find(page);
  if (node != kNoNode) pool_[node].moved = std::max<std::uint16_t>(decision_ & 0xffff, 1);
}

void ValuePolicy::swapped(const SwapPair& pair) {
  note_moved(pair.slow);
  note_moved(pair.fast);
  swaps_ += 1;
}

// Untouched pages are looked for behind it, so that it is not named first again.
void ValuePolicy::refused(const SwapPair& pair) {
  if (pool_.find(pair.fast) == kNoNode) untouched_from_ = PageIndex{pair.fast.value + 1};
}

}  // namespace kintsugi
