// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/cache_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <vector>

namespace kintsugi::meter {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

CacheModel model_of(const CacheGeometry& geometry) {
  auto model = CacheModel::create(geometry);
  if (!model) ADD_FAILURE() << model.error().message;
  return std::move(*model);
}

CacheGeometry exact(std::uint64_t sets, unsigned ways, unsigned line_bytes = 64) {
  CacheGeometry g;
  g.size = Bytes{sets * ways * line_bytes};
  g.ways = ways;
  g.line_bytes = line_bytes;
  g.sample = 1;
  return g;
}

// What CacheModel is to be, as one would write it down first: a list for each set.
class Reference {
 public:
  explicit Reference(const CacheGeometry& g)
      : g_(g), sets_(g.size.value / g.ways / g.line_bytes), lines_(sets_) {
    if (g.replacement == Replacement::kTreePlru) trees_.resize(sets_);
  }

  CacheOutcome access(std::uint64_t address, bool write) {
    const std::uint64_t line = address / g_.line_bytes;
    auto& ways = lines_[line % sets_];
    ways.resize(g_.ways);
    const auto at =
        std::find_if(ways.begin(), ways.end(), [&](const Way& w) { return w.line == line; });
    CacheOutcome outcome;
    if (at != ways.end()) {
      outcome.hit = true;
      at->dirty = at->dirty || write;
      use(line % sets_, at - ways.begin());
      return outcome;
    }
    if (write && !g_.write_allocate) {
      outcome.written_past = true;
      return outcome;
    }
    const std::size_t victim = pick(line % sets_);
    if (ways[victim].dirty) outcome.written_back = *ways[victim].line * g_.line_bytes;
    ways[victim] = {line, write, 0};
    outcome.filled = true;
    use(line % sets_, victim);
    return outcome;
  }

  [[nodiscard]] std::set<std::uint64_t> dirty() const {
    std::set<std::uint64_t> found;
    for (const auto& ways : lines_) {
      for (const Way& way : ways) {
        if (way.dirty) found.insert(*way.line * g_.line_bytes);
      }
    }
    return found;
  }

 private:
  struct Way {
    std::optional<std::uint64_t> line;
    bool dirty = false;
    std::uint64_t used = 0;  // when
  };

  void use(std::uint64_t set, std::size_t way) {
    lines_[set][way].used = ++clock_;
    if (g_.replacement == Replacement::kLru) return;
    // Halve [from, to) down to the way; each halving points at the half that was not used.
    std::size_t from = 0;
    std::size_t to = g_.ways;
    while (to - from > 1) {
      const std::size_t middle = (from + to) / 2;
      trees_[set][{from, to}] = way < middle;
      (way < middle ? to : from) = middle;
    }
  }

  std::size_t pick(std::uint64_t set) {
    auto& ways = lines_[set];
    if (g_.replacement == Replacement::kLru) {
      return std::min_element(ways.begin(), ways.end(),
                              [](const Way& a, const Way& b) { return a.used < b.used; }) -
             ways.begin();
    }
    // CacheModel fills the highest empty way first.
    for (std::size_t way = ways.size(); way-- > 0;) {
      if (!ways[way].line) return way;
    }
    std::size_t from = 0;
    std::size_t to = g_.ways;
    while (to - from > 1) {
      const bool upper = trees_[set][{from, to}];
      (upper ? from : to) = (from + to) / 2;
    }
    return from;
  }

  CacheGeometry g_;
  std::uint64_t sets_;
  std::uint64_t clock_ = 0;
  std::vector<std::vector<Way>> lines_;
  std::vector<std::map<std::pair<std::size_t, std::size_t>, bool>> trees_;
};

void behaves_as_the_reference(CacheGeometry g) {
  CacheModel model = model_of(g);
  Reference reference(g);
  // Three times as many lines as the cache has room for, the most of them seldom.
  const std::uint64_t lines = 3 * g.size.value / g.line_bytes;
  const auto length = *rc::gen::inRange<std::size_t>(1, 2000);
  std::mt19937_64 random(*rc::gen::arbitrary<std::uint32_t>());
  for (std::size_t i = 0; i < length; i++) {
    const std::uint64_t line = std::min(random() % lines, random() % lines);
    const std::uint64_t address = line * g.line_bytes + random() % g.line_bytes;
    const bool write = random() % 3 == 0;
    const CacheOutcome got = model.access(address, write);
    const CacheOutcome wanted = reference.access(address, write);
    RC_ASSERT(got.hit == wanted.hit);
    RC_ASSERT(got.filled == wanted.filled);
    RC_ASSERT(got.written_past == wanted.written_past);
    RC_ASSERT(got.written_back == wanted.written_back);
  }
  std::set<std::uint64_t> dirty;
  model.for_each_dirty([&](std::uint64_t address) { RC_ASSERT(dirty.insert(address).second); });
  RC_ASSERT(dirty == reference.dirty());
}

RC_GTEST_PROP(CacheModel, LruIsTheReference, ()) {
  CacheGeometry g = exact(1U << *rc::gen::inRange(0, 5), *rc::gen::inRange(1U, kMaxWays + 1),
                          32U << *rc::gen::inRange(0, 4));
  g.write_allocate = *rc::gen::arbitrary<bool>();
  behaves_as_the_reference(g);
}

RC_GTEST_PROP(CacheModel, TreePlruIsTheReference, ()) {
  CacheGeometry g = exact(1U << *rc::gen::inRange(0, 5), 1U << *rc::gen::inRange(0, 5));
  g.replacement = Replacement::kTreePlru;
  g.write_allocate = *rc::gen::arbitrary<bool>();
  behaves_as_the_reference(g);
}

TEST(CacheModel, ADirtyLineIsWrittenBackOnceWhenItLeaves) {
  CacheModel model = model_of(exact(1, 2));
  EXPECT_TRUE(model.access(0x1008, true).filled);
  EXPECT_TRUE(model.access(0x1010, true).hit);
  EXPECT_TRUE(model.access(0x2000, false).filled);
  EXPECT_EQ(model.access(0x3000, false).written_back, 0x1000);        // 0x1000 was the oldest
  EXPECT_EQ(model.access(0x4000, false).written_back, std::nullopt);  // 0x2000 is clean
  EXPECT_EQ(model.access(0x1000, false).written_back, std::nullopt);  // as 0x3000 is
  EXPECT_EQ(model.access(0x5000, false).written_back, std::nullopt);
}

TEST(CacheModel, TheHighestAddressKeepsAllItsBits) {
  CacheModel model = model_of(exact(1, 1));
  const std::uint64_t last = (std::uint64_t{1} << kMaxAddressBits) - 64;
  model.access(last, true);
  EXPECT_EQ(model.access(0, false).written_back, last);
}

// --- Sampling ---------------------------------------------------------------------------------

TEST(CacheModel, TheSampleIsOfPlacesInAPage) {
  CacheGeometry g;
  const CacheModel model = model_of(g);
  std::vector<unsigned> places;
  for (unsigned place = 0; place < kPageSize / 64; place++) {
    if (model.sampled(place * 64)) places.push_back(place);
    EXPECT_EQ(model.sampled(place * 64), model.sampled(0x7fff12345000 + place * 64 + 63));
    EXPECT_EQ(model.concerns(place * 64),
              model.sampled(place * 64) || model.sampled((place + 1) * 64));
  }
  EXPECT_THAT(places, ElementsAre(0, 12, 18, 30, 33, 45, 51, 63));
}

TEST(CacheModel, StridesBelowThePageAreSampledEvenly) {
  for (const unsigned line_bytes : {32U, 64U, 128U, 256U}) {
    const unsigned lines = kPageSize / line_bytes;
    for (unsigned sample = 1; sample * sample <= lines; sample *= 2) {
      CacheGeometry g;
      g.line_bytes = line_bytes;
      g.sample = sample;
      const CacheModel model = model_of(g);
      // As long as the stride leaves a line of each residue in the sample, there is just that.
      for (unsigned stride = 1; stride * sample <= lines; stride *= 2) {
        for (unsigned first = 0; first < stride; first++) {
          unsigned count = 0;
          for (unsigned place = first; place < lines; place += stride) {
            count += model.sampled(place * line_bytes) ? 1 : 0;
          }
          EXPECT_EQ(count * sample * stride, lines) << line_bytes << " " << sample << " " << stride;
        }
      }
    }
  }
}

struct Traffic {
  double read = 0, written = 0;
};

// A stream of accesses, the same each time.
using Stream = std::function<void(const std::function<void(std::uint64_t, bool)>&)>;

Traffic traffic_of(CacheGeometry g, const Stream& stream) {
  CacheModel model = model_of(g);
  Traffic traffic;
  stream([&](std::uint64_t address, bool write) {
    if (!model.sampled(address)) return;
    const CacheOutcome outcome = model.access(address, write);
    traffic.read += outcome.filled ? g.line_bytes * g.sample : 0;
    traffic.written += outcome.written_back ? g.line_bytes * g.sample : 0;
  });
  return traffic;
}

// The relative error of a sample of one in eight, of reads and of writes, whichever is worse.
double sampling_error(const Stream& stream) {
  CacheGeometry g;
  g.size = Bytes{1 << 20};
  g.sample = 1;
  const Traffic whole = traffic_of(g, stream);
  g.sample = 8;
  const Traffic sampled = traffic_of(g, stream);
  EXPECT_GT(whole.read, 0);
  EXPECT_GT(whole.written, 0);
  return std::max(std::abs(sampled.read / whole.read - 1),
                  std::abs(sampled.written / whole.written - 1));
}

constexpr std::uint64_t kSpan = 8 << 20;  // eight times the cache

TEST(CacheModel, ASampleOfASweepIsExact) {
  EXPECT_EQ(0, sampling_error([](const auto& access) {
              for (int round = 0; round < 4; round++) {
                for (std::uint64_t at = 0; at < kSpan; at += 8) access(at, round % 2 == 1);
              }
            }));
}

TEST(CacheModel, ASampleOfAStrideOfHalfAKibIsExact) {
  EXPECT_EQ(0, sampling_error([](const auto& access) {
              for (int round = 0; round < 4; round++) {
                for (std::uint64_t at = 64; at < 8 * kSpan; at += 512) access(at, round % 2 == 1);
              }
            }));
}

TEST(CacheModel, ASampleOfRandomAccessesIsWithinTwoPercent) {
  EXPECT_LT(sampling_error([](const auto& access) {
              std::mt19937_64 random(1);
              for (int i = 0; i < 1'000'000; i++) {
                const std::uint64_t at = random() % kSpan;
                access(at, random() % 2 == 0);
              }
            }),
            0.02);
}

TEST(CacheModel, ASampleOfSkewedAccessesIsWithinFivePercent) {
  // Line n as often as 1/n, the lines strewn over memory.
  EXPECT_LT(sampling_error([](const auto& access) {
              std::mt19937_64 random(1);
              std::uniform_real_distribution<double> exponent(0, std::log(kSpan / 64.0));
              for (int i = 0; i < 1'000'000; i++) {
                const auto rank = static_cast<std::uint64_t>(std::exp(exponent(random)));
                access(rank * 0x9e3779b97f4a7c15 % (kSpan / 64) * 64, random() % 4 == 0);
              }
            }),
            0.05);
}

// --- Threads ----------------------------------------------------------------------------------

TEST(CacheModel, EachDirtyLineIsWrittenBackOnceWhateverRaces) {
  for (const Replacement replacement : {Replacement::kLru, Replacement::kTreePlru}) {
    CacheGeometry g = exact(4, 4);  // so small that all meet in each set
    g.replacement = replacement;
    CacheModel model = model_of(g);
    constexpr unsigned kThreads = 4;
    constexpr std::uint64_t kLines = 20'000;
    std::vector<std::vector<std::uint64_t>> written(kThreads);
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < kThreads; t++) {
      threads.emplace_back([&model, &out = written[t], t] {
        for (std::uint64_t i = 0; i < kLines; i++) {
          const std::uint64_t address = (i * kThreads + t) * 64;  // nobody else's
          const CacheOutcome outcome = model.access(address, true);
          EXPECT_TRUE(outcome.filled);
          if (outcome.written_back) out.push_back(*outcome.written_back);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::multiset<std::uint64_t> all;
    for (const auto& list : written) all.insert(list.begin(), list.end());
    model.for_each_dirty([&](std::uint64_t address) { all.insert(address); });
    EXPECT_EQ(all.size(), kThreads * kLines);
    std::uint64_t expected = 0;
    for (const std::uint64_t address : all) {
      ASSERT_EQ(address, expected);
      expected += 64;
    }
  }
}

// --- Errors -----------------------------------------------------------------------------------

TEST(CacheModel, AGeometryThatCannotBeIsRefusedByName) {
  const auto refused = [](const std::function<void(CacheGeometry&)>& change) {
    CacheGeometry g;
    change(g);
    auto model = CacheModel::create(g);
    return model.ok() ? "accepted" : model.error().message;
  };
  EXPECT_THAT(refused([](auto& g) { g.line_bytes = 48; }), HasSubstr("line=48"));
  EXPECT_THAT(refused([](auto& g) { g.line_bytes = 16; }), HasSubstr("from 32 to 256"));
  EXPECT_THAT(refused([](auto& g) { g.ways = 20; }), HasSubstr("ways=20"));
  EXPECT_THAT(refused([](auto& g) { g.ways = 0; }), HasSubstr("ways=0"));
  EXPECT_THAT(refused([](auto& g) { g.size = Bytes{12 << 20}; }), HasSubstr("size=12 MiB"));
  EXPECT_THAT(refused([](auto& g) { g.size = Bytes{0}; }), HasSubstr("size=0 B"));
  EXPECT_THAT(refused([](auto& g) { g.sample = 16; }), HasSubstr("from 1 to 8"));
  EXPECT_THAT(refused([](auto& g) { g.sample = 3; }), HasSubstr("sample=3"));
  EXPECT_THAT(refused([](auto& g) { g.sample = 0; }), HasSubstr("sample=0"));
  EXPECT_THAT(refused([](auto& g) { g.size = Bytes{32 << 10}; }), HasSubstr("64 sets"));
  EXPECT_THAT(refused([](auto& g) {
                g.ways = 12;
                g.size = Bytes{12 << 20};
                g.replacement = Replacement::kTreePlru;
              }),
              HasSubstr("policy=plru"));
}

}  // namespace
}  // namespace kintsugi::meter
