// SPDX-License-Identifier: GPL-2.0-or-later
// Policies that rank pages by a score: MEMTIS and ARMS.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tiering/page_pool.h"
#include "tiering/policy.h"

namespace kintsugi {

// What such policies share: a node for each page seen written; choosing those that are to go up and
// those that are to go down. Fast pages without a node are colder than any other, by address.
class RankedPolicy : public TieringPolicy {
 public:
  void begin_scan(std::int64_t /*now_ms*/) override {}
  void written(std::uint64_t group, std::uint64_t bits) override;
  void swapped(const SwapPair& /*pair*/) override {}
  void refused(const SwapPair& /*pair*/) override {}
  [[nodiscard]] std::size_t tracked_pages() const override { return pool_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const override { return pool_.bytes(); }

 protected:
  struct Entry {
    float short_score = 0;  // memtis: its counter
    float long_score = 0;
    std::uint8_t writes = 0;  // since the last decision
    std::uint8_t rounds = 0;  // arms: decisions in a row among the hottest
  };
  // A page and its score.
  struct Ranked {
    PageIndex page;
    float score;
  };

  explicit RankedPolicy(const Placement& placement) : placement_(placement) {}

  // Adds fast pages that were never written, at most `count`.
  void add_untouched(std::size_t count, std::vector<Ranked>& cold) const;
  // The hottest first, and the coldest first; of equals, the lower page.
  static void sort(std::vector<Ranked>& hot, std::vector<Ranked>& cold);

  const Placement& placement_;
  PagePool<Entry> pool_;
};

// MEMTIS (Lee, Monga, Min, Eom: MEMTIS: efficient memory tiering with dynamic page classification
// and page size determination, SOSP 2023), without its part on huge pages. Each page has a counter
// of accesses (writes seen here), halved at times ("cooling"). A histogram of counters, by powers
// of two, tells which classes fit into the fast tier: from the top down, the hot threshold is the
// last class with which the pages above still fit. If they fill less than `fill` of the tier, the
// class below is warm: kept if it is there, not fetched. Hot pages go up, cold ones go down, the
// coldest first; warm ones only if there is no cold one.
class MemtisPolicy final : public RankedPolicy {
 public:
  explicit MemtisPolicy(const Placement& placement) : RankedPolicy(placement) {}

  void decide(std::size_t limit, std::vector<SwapPair>& out) override;
  [[nodiscard]] std::span<const Parameter> parameters() const override { return parameters_; }
  void set_parameter(std::size_t index, double value) override { parameters_[index].value = value; }

  static constexpr unsigned kClasses = 16;
  // The hot threshold for these pages by class and that many fast pages; kClasses if not even the
  // top class fits.
  static unsigned hot_class(const std::array<std::uint64_t, kClasses>& pages, std::uint64_t fast);
  static unsigned class_of(float count);

 private:
  enum { kCooling, kFill };
  std::array<Parameter, 2> parameters_{{
      {"cooling", "decisions after which counters are halved", 1, 10000, true, 8},
      {"fill", "share of the fast tier below which the class under the hot ones is warm", 0, 1,
       false, 0.9},
  }};
  std::uint64_t decisions_ = 0;
};

// ARMS (ARMS: adaptive and robust memory tiering system, 2025), from its description: two moving
// averages of accesses, over 1 s and 10 s, are summed with weights to a score. The K pages with the
// highest score, K the pages of the fast tier, are to be there; a page goes up only after two
// decisions in a row among them, and only if what it will save in the time it has been seen to stay
// hot exceeds the cost of moving. A change detector (Page and Hinkley's test on the share of hits)
// puts the weight on the short average for a while. There are no thresholds to tune. The cost of
// moving a page is taken for a page written, which is what it is here.
class ArmsPolicy final : public RankedPolicy {
 public:
  explicit ArmsPolicy(const Placement& placement) : RankedPolicy(placement) {}

  void written(std::uint64_t group, std::uint64_t bits) override;
  void end_scan() override;
  void decide(std::size_t limit, std::vector<SwapPair>& out) override;

  // Page and Hinkley's test for a fall of the mean: true once the sum of deviations below the mean,
  // less a tolerance, exceeds a threshold; it then begins anew.
  class FallDetector {
   public:
    bool add(double value);

   private:
    double mean_ = 0;
    double sum_ = 0;
    double highest_ = 0;
    unsigned count_ = 0;
  };

 private:
  FallDetector detector_;
  std::uint64_t scan_fast_ = 0;
  std::uint64_t scan_slow_ = 0;
  unsigned recent_left_ = 0;  // decisions in which the short average weighs more
};

}  // namespace kintsugi
