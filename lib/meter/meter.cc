// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/meter.h"

#include "base/size_text.h"

namespace kintsugi::meter {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
// Of pages that are counted one by one: a TiB, or 2 GiB of counts if all of it is written.
constexpr PageCount kMaxCountedPages{std::uint64_t{1} << 28};

}  // namespace

Result<Meter> Meter::create(const CacheGeometry& geometry, RangeMap ranges, unsigned vcpus,
                            bool pages) {
  auto cache = CacheModel::create(geometry);
  if (!cache) return cache.error();
  Meter meter(std::move(*cache), std::move(ranges), vcpus);
  if (pages) {
    const PageCount count = meter.ranges_.pages();
    if (count.value == 0 || count > kMaxCountedPages) {
      return make_error(EINVAL, "pages= needs ranges of {} at most and one at least, not {}",
                        size_text(to_bytes(kMaxCountedPages)), size_text(meter.ranges_.size()));
    }
    auto counts = LazyArray<Count>::create(count.value, "the pages' counts");
    if (!counts) return counts.error();
    meter.page_bytes_ = std::move(*counts);
  }
  return meter;
}

void Meter::count_written(Place& place, std::uint64_t address, unsigned bytes) {
  add(place.written[ranges_.find(address)], bytes);
  if (page_bytes_.size() == 0) return;
  // Several vCPUs may write one page back at once.
  const std::uint64_t page = ranges_.page_of(address);
  if (page < page_bytes_.size()) page_bytes_[page].fetch_add(bytes, kRelaxed);
}

void Meter::access(unsigned vcpu, const Access& access) {
  Place& place = places_[vcpu];
  const CacheOutcome outcome = cache_.access(access.address, access.write);
  // A line that was read after it was written to repeats(), so it does not come here.
  place.last = outcome.written_past
                   ? kNoLine
                   : line_of(access.virtual_address) | (access.write ? kWritten : 0);
  if (outcome.hit) return;
  const unsigned line_bytes = cache_.geometry().line_bytes;
  if (outcome.filled) add(place.read[ranges_.find(access.address)], line_bytes);
  if (outcome.written_back) count_written(place, *outcome.written_back, line_bytes);
  if (outcome.written_past) count_written(place, access.address, access.bytes);
}

std::vector<Traffic> Meter::traffic() const {
  std::vector<Traffic> sums(ranges_.names().size());
  for (std::size_t name = 0; name < sums.size(); name++) {
    std::uint64_t read = 0;
    std::uint64_t written = 0;
    for (const Place& place : places_) {
      read += place.read[name].load(kRelaxed);
      written += place.written[name].load(kRelaxed);
    }
    sums[name] = {scaled(read), scaled(written)};
  }
  return sums;
}

Totals Meter::totals() const {
  Totals sum;
  for (const Place& place : places_) {
    sum.sampled += place.sampled.load(kRelaxed);
    sum.io += place.io.load(kRelaxed);
    sum.untranslated += place.untranslated.load(kRelaxed);
  }
  return sum;
}

std::vector<Bytes> Meter::dirty() const {
  std::vector<Bytes> sums(ranges_.names().size());
  cache_.for_each_dirty([&](std::uint64_t address) {
    Bytes& sum = sums[ranges_.find(address)];
    sum = sum + scaled(cache_.geometry().line_bytes);
  });
  return sums;
}

}  // namespace kintsugi::meter
