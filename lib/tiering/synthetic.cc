// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

namespace kintsugi {
namespace {

// splitmix64 (Steele, Lea, Flood 2014): the same numbers with every library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t n) { return next() % n; }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

// One scan's written pages, in any order and with repeats, as runs.
class Scan {
 public:
  void write(std::uint64_t page) { pages_.push_back(page); }
  void write_run(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) pages_.push_back(first + i);
  }
  std::vector<TraceRun> take() {
    std::sort(pages_.begin(), pages_.end());
    pages_.erase(std::unique(pages_.begin(), pages_.end()), pages_.end());
    std::vector<TraceRun> runs;
    for (const std::uint64_t page : pages_) {
      if (!runs.empty() && runs.back().first.value + runs.back().count.value == page) {
        ++runs.back().count;
      } else {
        runs.push_back({.first = PageIndex{page}, .count = PageCount{1}});
      }
    }
    pages_.clear();
    return runs;
  }

 private:
  std::vector<std::uint64_t> pages_;
};

struct Maker {
  SyntheticName name;
  // Writes scan `t` of a VM of `pages` pages.
  void (*write)(Scan& scan, Random& random, std::uint64_t t, std::uint64_t pages);
};

// A permutation of `bits`-bit numbers, so that hot pages lie scattered.
std::uint64_t scatter(std::uint64_t i, std::uint64_t pages) {
  return (i * 0x9e3779b97f4a7c15 >> 8) % pages;
}

// `writes` draws of pages by Zipf's law with exponent 1: the inverse of an approximate CDF.
void zipf(Scan& scan, Random& random, std::uint64_t writes, std::uint64_t pages,
          std::uint64_t salt) {
  const double log_pages = std::log(static_cast<double>(pages));
  for (std::uint64_t i = 0; i < writes; ++i) {
    const auto rank = static_cast<std::uint64_t>(std::exp(random.unit() * log_pages)) - 1;
    scan.write(scatter(rank + salt, pages));
  }
}

constexpr std::array kMakers{
    Maker{{"stress", "1/128 of the VM (32 of 4096 MB) is rewritten all the time, after 16 s"},
          [](Scan& scan, Random&, std::uint64_t t, std::uint64_t pages) {
            if (t >= 16) scan.write_run(pages / 8, std::max<std::uint64_t>(pages / 128, 1));
          }},
    Maker{{"zipf", "scattered writes by Zipf's law over an eighth of the VM"},
          [](Scan& scan, Random& random, std::uint64_t, std::uint64_t pages) {
            zipf(scan, random, pages / 64, pages / 8, 0);
          }},
    Maker{{"phases", "a hot set of 1/64 of the VM that moves every 60 s, over a background"},
          [](Scan& scan, Random& random, std::uint64_t t, std::uint64_t pages) {
            const std::uint64_t hot = std::max<std::uint64_t>(pages / 64, 1);
            scan.write_run(t / 60 * 7 % 48 * hot, hot);
            for (std::uint64_t i = 0; i < pages / 2048; ++i) scan.write(random.below(pages));
          }},
    Maker{{"flicker", "two hot sets of 1/64 of the VM that take turns of 8 s"},
          [](Scan& scan, Random&, std::uint64_t t, std::uint64_t pages) {
            const std::uint64_t hot = std::max<std::uint64_t>(pages / 64, 1);
            scan.write_run(t / 8 % 2 * 8 * hot, hot);
          }},
    Maker{{"stream", "half the VM is written once from front to back, again and again"},
          [](Scan& scan, Random&, std::uint64_t t, std::uint64_t pages) {
            const std::uint64_t step = std::max<std::uint64_t>(pages / 256, 1);
            const std::uint64_t span = std::max<std::uint64_t>(pages / 2, step);
            scan.write_run(t * step % (span - step + 1), step);
          }},
    Maker{{"stream-hot", "the same beside a hot set of 1/128 of the VM"},
          [](Scan& scan, Random&, std::uint64_t t, std::uint64_t pages) {
            const std::uint64_t step = std::max<std::uint64_t>(pages / 256, 1);
            const std::uint64_t span = std::max<std::uint64_t>(pages / 2, step);
            scan.write_run(t * step % (span - step + 1), step);
            scan.write_run(pages * 5 / 8, std::max<std::uint64_t>(pages / 128, 1));
          }},
    Maker{{"uniform", "1/64 of the VM, drawn at random, each second: nothing to gain"},
          [](Scan& scan, Random& random, std::uint64_t, std::uint64_t pages) {
            for (std::uint64_t i = 0; i < pages / 64; ++i) scan.write(random.below(pages));
          }},
    Maker{{"mixed", "pages rewritten every 1, 4, 16 and 64 s, and new ones taken all the time"},
          [](Scan& scan, Random&, std::uint64_t t, std::uint64_t pages) {
            const std::uint64_t set = std::max<std::uint64_t>(pages / 128, 1);
            for (std::uint64_t period = 1, k = 0; period <= 64; period *= 4, ++k) {
              for (std::uint64_t i = t % period; i < set; i += period) {
                scan.write(scatter(k * set + i, pages));
              }
            }
            scan.write_run(pages / 2 + t * (set / 16 + 1) % (pages / 2 - set / 16), set / 16 + 1);
          }},
};

constexpr auto kNames = [] {
  std::array<SyntheticName, kMakers.size()> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = kMakers[i].name;
  return names;
}();

}  // namespace

std::span<const SyntheticName> synthetic_names() { return kNames; }

Result<Workload> make_synthetic(std::string_view name, const SyntheticOptions& options) {
  constexpr std::uint64_t kLeastPages = 1024;
  if (options.pages.value < kLeastPages) {
    return make_error(EINVAL, "a synthetic workload needs {} pages or more", kLeastPages);
  }
  std::string known;
  for (const Maker& maker : kMakers) {
    known += fmt::format("{}{}", known.empty() ? "" : ", ", maker.name.name);
    if (maker.name.name != name) continue;
    Workload workload{.name = std::string(name), .pages = options.pages};
    Random random(options.seed);
    Scan scan;
    for (unsigned t = 0; t < options.scans; ++t) {
      maker.write(scan, random, t, options.pages.value);
      workload.scans.push_back(scan.take());
    }
    return workload;
  }
  return make_error(EINVAL, "synthetic workload '{}' is unknown: use one of {}", name, known);
}

}  // namespace kintsugi
