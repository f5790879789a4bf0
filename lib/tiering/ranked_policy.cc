// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/ranked_policy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

namespace kintsugi {

void RankedPolicy::written(std::uint64_t group, std::uint64_t bits) {
  for_each_page(group, bits, [this](PageIndex page) {
    NodeId id = pool_.find(page);
    if (id == kNoNode) id = pool_.insert(page);
    if (pool_[id].writes < 0xff) ++pool_[id].writes;
  });
}

void RankedPolicy::add_untouched(std::size_t count, std::vector<Ranked>& cold) const {
  PageIndex page = placement_.next_fast(PageIndex{0});
  for (; count > 0 && page.value < placement_.pages().value;
       page = placement_.next_fast(PageIndex{page.value + 1})) {
    if (pool_.find(page) != kNoNode) continue;
    cold.push_back({.page = page, .score = -1});
    --count;
  }
}

void RankedPolicy::sort(std::vector<Ranked>& hot, std::vector<Ranked>& cold) {
  const auto colder = [](const Ranked& a, const Ranked& b) {
    return a.score != b.score ? a.score < b.score : a.page < b.page;
  };
  const auto hotter = [](const Ranked& a, const Ranked& b) {
    return a.score != b.score ? a.score > b.score : a.page < b.page;
  };
  std::sort(hot.begin(), hot.end(), hotter);
  std::sort(cold.begin(), cold.end(), colder);
}

// --- MEMTIS ---

unsigned MemtisPolicy::class_of(float count) {
  const auto whole = static_cast<std::uint32_t>(count);
  return std::min<unsigned>(static_cast<unsigned>(std::bit_width(whole)), kClasses - 1);
}

unsigned MemtisPolicy::hot_class(const std::array<std::uint64_t, kClasses>& pages,
                                 std::uint64_t fast) {
  unsigned hot = kClasses;
  std::uint64_t above = 0;
  // Class 0 is of pages with no count: never hot.
  while (hot > 1 && above + pages[hot - 1] <= fast) above += pages[--hot];
  return hot;
}

void MemtisPolicy::decide(std::size_t limit, std::vector<SwapPair>& out) {
  const bool cool = ++decisions_ % static_cast<std::uint64_t>(parameters_[kCooling].value) == 0;
  std::array<std::uint64_t, kClasses> pages{};
  pool_.for_each([&](NodeId id) {
    Entry& entry = pool_[id];
    entry.short_score += static_cast<float>(entry.writes);
    entry.writes = 0;
    if (cool) entry.short_score /= 2;
    if (entry.short_score < 1) {
      pool_.erase(id);
    } else {
      ++pages[class_of(entry.short_score)];
    }
  });
  const std::uint64_t capacity = placement_.fast_pages().value;
  const unsigned hot_from = hot_class(pages, capacity);
  std::uint64_t hot_pages = 0;
  for (unsigned at = hot_from; at < kClasses; ++at) hot_pages += pages[at];
  const bool room =
      static_cast<double>(hot_pages) < parameters_[kFill].value * static_cast<double>(capacity);
  const unsigned warm_from = room && hot_from > 0 ? hot_from - 1 : hot_from;

  std::vector<Ranked> hot;
  std::vector<Ranked> cold;
  std::vector<Ranked> warm;
  pool_.for_each([&](NodeId id) {
    const Ranked ranked{.page = pool_.page(id), .score = pool_[id].short_score};
    const unsigned at = class_of(ranked.score);
    if (!placement_.is_fast(ranked.page)) {
      if (at >= hot_from) hot.push_back(ranked);
    } else if (at < hot_from) {
      (at >= warm_from ? warm : cold).push_back(ranked);
    }
  });
  add_untouched(std::min(limit, hot.size()), cold);
  sort(hot, cold);
  std::vector<Ranked> nothing;
  sort(nothing, warm);
  cold.insert(cold.end(), warm.begin(), warm.end());
  for (std::size_t i = 0; i < std::min({limit, hot.size(), cold.size()}); ++i) {
    out.push_back({.slow = hot[i].page, .fast = cold[i].page});
  }
}

// --- ARMS ---

bool ArmsPolicy::FallDetector::add(double value) {
  constexpr double kTolerance = 0.05;
  constexpr double kThreshold = 0.5;
  mean_ += (value - mean_) / ++count_;
  sum_ += value - mean_ + kTolerance;
  highest_ = std::max(highest_, sum_);
  if (highest_ - sum_ <= kThreshold) return false;
  *this = {};
  return true;
}

void ArmsPolicy::written(std::uint64_t group, std::uint64_t bits) {
  const std::uint64_t fast = placement_.fast_bits(group);
  scan_fast_ += std::popcount(bits & fast);
  scan_slow_ += std::popcount(bits & ~fast);
  RankedPolicy::written(group, bits);
}

void ArmsPolicy::end_scan() {
  const std::uint64_t all = scan_fast_ + scan_slow_;
  constexpr unsigned kRecentDecisions = 2;
  if (all != 0 && detector_.add(static_cast<double>(scan_fast_) / static_cast<double>(all))) {
    recent_left_ = kRecentDecisions;
  }
  scan_fast_ = scan_slow_ = 0;
}

void ArmsPolicy::decide(std::size_t limit, std::vector<SwapPair>& out) {
  // Windows in decisions: the short average is of the last one, the long one of about four.
  constexpr float kLongStep = 0.25F;
  constexpr float kForget = 0.05F;
  constexpr float kCost = 1;  // of a swap, in pages written
  constexpr std::uint8_t kRounds = 2;
  constexpr std::uint8_t kMostRounds = 20;
  const float weight = recent_left_ > 0 ? 0.9F : 0.3F;  // of the short average
  if (recent_left_ > 0) --recent_left_;

  std::vector<float> scores;
  const auto score_of = [weight](const Entry& entry) {
    return weight * entry.short_score + (1 - weight) * entry.long_score;
  };
  pool_.for_each([&](NodeId id) {
    Entry& entry = pool_[id];
    entry.short_score = entry.writes;
    entry.long_score += kLongStep * (static_cast<float>(entry.writes) - entry.long_score);
    entry.writes = 0;
    if (entry.long_score < kForget) {
      pool_.erase(id);
    } else {
      scores.push_back(score_of(entry));
    }
  });
  float least = 0;
  const auto capacity = static_cast<std::ptrdiff_t>(placement_.fast_pages().value);
  if (capacity < static_cast<std::ptrdiff_t>(scores.size())) {
    std::nth_element(scores.begin(), scores.begin() + capacity, scores.end(), std::greater<>());
    least = scores[static_cast<std::size_t>(capacity)];
  }
  std::vector<Ranked> hot;
  std::vector<Ranked> cold;
  std::vector<float> seconds;
  pool_.for_each([&](NodeId id) {
    Entry& entry = pool_[id];
    const Ranked ranked{.page = pool_.page(id), .score = score_of(entry)};
    const bool top = ranked.score > least;
    entry.rounds = top ? std::min<std::uint8_t>(entry.rounds + 1, kMostRounds) : 0;
    if (placement_.is_fast(ranked.page)) {
      cold.push_back(ranked);
    } else if (top && (entry.rounds >= kRounds || recent_left_ > 0)) {
      hot.push_back(ranked);
    }
  });
  add_untouched(std::min(limit, hot.size()), cold);
  sort(hot, cold);
  for (std::size_t i = 0; i < std::min({limit, hot.size(), cold.size()}); ++i) {
    // It is taken to stay hot for as long again as it has been.
    const NodeId id = pool_.find(hot[i].page);
    const float gain = (hot[i].score - std::max(cold[i].score, 0.0F)) * pool_[id].rounds;
    if (gain <= kCost) break;
    out.push_back({.slow = hot[i].page, .fast = cold[i].page});
  }
}

}  // namespace kintsugi
