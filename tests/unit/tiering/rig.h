// SPDX-License-Identifier: GPL-2.0-or-later
// What tests of policies share: a VM's tiers driven by lists of pages.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "tiering/policy.h"
#include "tiering/tiering.h"

namespace kintsugi {

inline PageIndex page(std::uint64_t number) { return PageIndex{number}; }
inline SwapPair pair_of(std::uint64_t slow, std::uint64_t fast) { return {page(slow), page(fast)}; }

inline std::vector<PageIndex> pages(std::initializer_list<std::uint64_t> numbers) {
  std::vector<PageIndex> all;
  for (const std::uint64_t number : numbers) all.push_back(page(number));
  return all;
}

// A policy with a placement of its own: no Tiering between.
template <typename Policy>
struct PolicyRig {
  explicit PolicyRig(std::uint64_t pages, std::initializer_list<std::uint64_t> fast = {})
      : placement(std::move(*Placement::create(PageCount{pages}))), policy(placement) {
    for (const std::uint64_t number : fast) placement.set(page(number), true);
  }

  // The pages are written in this order, which a scan by bitmap would not keep.
  void scan(std::int64_t now_s, std::initializer_list<std::uint64_t> written) {
    policy.begin_scan(now_s * 1000);
    for (const std::uint64_t number : written) {
      policy.written(number / 64, std::uint64_t{1} << (number % 64));
    }
    policy.end_scan();
  }
  std::vector<SwapPair> decide(std::size_t limit = 1000) {
    std::vector<SwapPair> pairs;
    policy.decide(limit, pairs);
    return pairs;
  }
  void swap(const SwapPair& pair) {
    placement.set(pair.slow, true);
    placement.set(pair.fast, false);
    policy.swapped(pair);
  }
  std::vector<SwapPair> decide_and_swap(std::size_t limit = 1000) {
    std::vector<SwapPair> pairs = decide(limit);
    for (const SwapPair& pair : pairs) swap(pair);
    return pairs;
  }

  Placement placement;
  Policy policy;
};

inline std::unique_ptr<Tiering> make_tiering(std::uint64_t pages, std::string_view policy) {
  auto made = Tiering::create(PageCount{pages}, policy);
  EXPECT_TRUE(made.ok()) << made.error().message;
  return std::move(*made);
}

inline void scan(Tiering& tiering, std::int64_t now_s, const std::set<std::uint64_t>& written) {
  const std::uint64_t pages = tiering.placement().pages().value;
  std::vector<std::uint64_t> bitmap((pages + 63) / 64);
  for (const std::uint64_t number : written) {
    bitmap[number / 64] |= std::uint64_t{1} << (number % 64);
  }
  tiering.begin_scan(now_s * 1000);
  tiering.feed_written(page(0), bitmap.data(), PageCount{pages});
  tiering.feed_accessed(page(0), bitmap.data(), PageCount{pages});
  tiering.end_scan();
}

inline std::vector<SwapPair> decide(Tiering& tiering, std::size_t max = 1000) {
  const auto pairs = tiering.decide(max);
  return {pairs.begin(), pairs.end()};
}

}  // namespace kintsugi
