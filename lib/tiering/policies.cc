// SPDX-License-Identifier: GPL-2.0-or-later
// The policies by name.
#include <fmt/format.h>

#include <array>

#include "tiering/cache_policy.h"
#include "tiering/lru.h"
#include "tiering/mq.h"
#include "tiering/policy.h"
#include "tiering/ranked_policy.h"
#include "tiering/smq.h"
#include "tiering/value.h"

namespace kintsugi {
namespace {

// Leaves every page where it is.
class NonePolicy final : public TieringPolicy {
 public:
  void begin_scan(std::int64_t /*now_ms*/) override {}
  void written(std::uint64_t /*group*/, std::uint64_t /*bits*/) override {}
  void decide(std::size_t /*limit*/, std::vector<SwapPair>& /*out*/) override {}
  void swapped(const SwapPair& /*pair*/) override {}
  void refused(const SwapPair& /*pair*/) override {}
  [[nodiscard]] std::size_t tracked_pages() const override { return 0; }
  [[nodiscard]] std::size_t memory_bytes() const override { return 0; }
};

template <typename Policy>
std::unique_ptr<TieringPolicy> make(const Placement& placement) {
  return std::make_unique<Policy>(placement);
}

struct Maker {
  PolicyName name;
  std::unique_ptr<TieringPolicy> (*make)(const Placement& placement);
};

constexpr std::array kMakers{
    Maker{{"none", "leaves every page where it is"},
          [](const Placement&) -> std::unique_ptr<TieringPolicy> {
            return std::make_unique<NonePolicy>();
          }},
    Maker{{"lru", "the most recently written pages are fast"}, make<LruPolicy>},
    Maker{{"kintsugi", "swaps where the writes to come are worth more than the swap costs"},
          make<ValuePolicy>},
    Maker{{"mq", "Multi Queue, as RAMinate: recency and frequency"}, make<MqPolicy>},
    Maker{{"smq", "dm-cache's stochastic multi-queue: no counts"}, make<SmqPolicy>},
    Maker{{"arms", "two averages, a gate by cost and benefit, change detection"}, make<ArmsPolicy>},
    Maker{{"memtis", "a hot set fitted to the fast tier by a histogram"}, make<MemtisPolicy>},
    Maker{{"s3fifo", "three FIFO queues"}, make<S3FifoPolicy>},
    Maker{{"wtinylfu", "an LRU window before a segmented LRU, by counted requests"},
          make<WTinyLfuPolicy>},
};

constexpr auto kNames = [] {
  std::array<PolicyName, kMakers.size()> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = kMakers[i].name;
  return names;
}();

}  // namespace

std::span<const PolicyName> policy_names() { return kNames; }

Result<std::unique_ptr<TieringPolicy>> make_policy(std::string_view name,
                                                   const Placement& placement) {
  std::string known;
  for (const Maker& maker : kMakers) {
    if (maker.name.name == name) return maker.make(placement);
    known += fmt::format("{}{}", known.empty() ? "" : ", ", maker.name.name);
  }
  return make_error(EINVAL, "tiering policy '{}' is unknown: use one of {}", name, known);
}

}  // namespace kintsugi
