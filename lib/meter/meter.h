// SPDX-License-Identifier: GPL-2.0-or-later
// Bytes read from and written to each range of physical memory, behind a modelled cache.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"
#include "meter/cache_model.h"
#include "meter/meter_file.h"
#include "meter/ranges.h"

namespace kintsugi::meter {

struct Totals {
  std::uint64_t sampled = 0;       // accesses, or parts of them, that met a simulated set
  std::uint64_t io = 0;            // of these, to devices: not counted as memory
  std::uint64_t untranslated = 0;  // of these, without a physical address: not counted
};

// Within one line.
struct Access {
  std::uint64_t virtual_address = 0;
  std::uint64_t address = 0;  // physical
  unsigned bytes = 0;
  bool write = false;
};

// Each vCPU counts in a place of its own, so that counting needs neither locks nor atomic
// read-modify-write; who reads adds the places up.
class Meter {
 public:
  // `vcpus`: the indices are 0 to vcpus - 1. `pages`: whether to count what is written page by page
  // too.
  static Result<Meter> create(const CacheGeometry& geometry, RangeMap ranges, unsigned vcpus,
                              bool pages);

  // What a vCPU does for each access to a set that is sampled; only one thread at a time for one
  // vCPU. First it asks whether that is all, as the line is the one that its last such access was
  // to. It spares most of the translations, and is a first-level cache of one line: what
  // other vCPUs do to the line meanwhile, and a new mapping of its address, are seen a little late.
  [[nodiscard]] bool repeats(unsigned vcpu, std::uint64_t virtual_address, bool write) {
    Place& place = places_[vcpu];
    add(place.sampled, 1);
    const std::uint64_t line = line_of(virtual_address);
    return place.last == (line | kWritten) || (place.last == line && !write);
  }
  // Otherwise it was to memory, or to a device, or nobody knows.
  void access(unsigned vcpu, const Access& access);
  void saw_io(unsigned vcpu) { add(places_[vcpu].io, 1); }
  void saw_untranslated(unsigned vcpu) { add(places_[vcpu].untranslated, 1); }

  [[nodiscard]] const CacheModel& cache() const { return cache_; }
  [[nodiscard]] const RangeMap& ranges() const { return ranges_; }

  // By any thread, while others count: each figure is right as of some moment during the call.
  // Traffic since the beginning, by index of ranges().names().
  [[nodiscard]] std::vector<Traffic> traffic() const;
  [[nodiscard]] Totals totals() const;
  // Bytes that are in the cache and not in memory yet, by name.
  [[nodiscard]] std::vector<Bytes> dirty() const;

  // Bytes written to each page since the last call, pages ascending by physical address; those
  // without are left out. One thread. `body(physical address, Bytes)`.
  template <typename Body>
  void take_page_writes(const Body& body) {
    for (std::size_t page = 0; page < page_bytes_.size(); page++) {
      if (page_bytes_[page].load(std::memory_order_relaxed) == 0) continue;
      const std::uint64_t bytes = page_bytes_[page].exchange(0, std::memory_order_relaxed);
      body(ranges_.address_of_page(page), scaled(bytes));
    }
  }

 private:
  using Count = std::atomic<std::uint64_t>;
  // In the bits of an address within its line.
  static constexpr std::uint64_t kWritten = 1;
  static constexpr std::uint64_t kNoLine = 2;
  // On cache lines of its own.
  struct alignas(64) Place {
    // The line of the last sampled access to memory, virtual; with kWritten if it is dirty.
    std::uint64_t last = kNoLine;
    Count sampled{0}, io{0}, untranslated{0};
    std::array<Count, kMaxNames + 1> read{}, written{};  // bytes of the sample, by name
  };

  Meter(CacheModel cache, RangeMap ranges, unsigned vcpus)
      : cache_(std::move(cache)), ranges_(std::move(ranges)), places_(vcpus) {}

  // Only its vCPU's thread writes a place, so load and store do.
  static void add(Count& count, std::uint64_t n) {
    count.store(count.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t line_of(std::uint64_t address) const {
    return address & ~std::uint64_t{cache_.geometry().line_bytes - 1};
  }
  [[nodiscard]] Bytes scaled(std::uint64_t bytes) const {
    return Bytes{bytes * cache_.geometry().sample};
  }
  void count_written(Place& place, std::uint64_t address, unsigned bytes);

  CacheModel cache_;
  RangeMap ranges_;
  std::vector<Place> places_;
  LazyArray<Count> page_bytes_;  // written, of the sample; empty if nobody asked
};

}  // namespace kintsugi::meter
