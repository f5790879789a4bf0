// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/location_map.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "placement/split_plan.h"

namespace kintsugi {

Result<LocationMap> LocationMap::create(PageCount pages) {
  if (pages.value == 0) return make_error(EINVAL, "a location map needs at least one page");
  auto entries = LazyArray<Entry>::create(pages.value, "the location map");
  if (!entries) return entries.error();
  return LocationMap(std::move(*entries));
}

// Replaces the entry by next(entry) in one step; false if next() has nothing to say.
template <typename Next>
bool LocationMap::transition(PageIndex page, const Next& next) {
  Entry& entry = entries_[page.value];
  std::uint16_t old = entry.load(std::memory_order_acquire);
  for (;;) {
    const std::optional<PageEntry> to = next(PageEntry{old});
    if (!to) return false;
    if (entry.compare_exchange_weak(old, to->bits, std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      return true;
    }
  }
}

std::uint64_t LocationMap::end_of(PageIndex first, PageCount count) const {
  const std::uint64_t pages = entries_.size();
  return first.value >= pages ? first.value
                              : first.value + std::min(count.value, pages - first.value);
}

void LocationMap::fill(PageIndex first, PageCount count, PageEntry to) {
  const std::uint64_t end = end_of(first, count);
  for (std::uint64_t page = first.value; page < end; ++page) {
    // Writing Local over Local would only make the kernel populate the map.
    if (to.bits == 0 && entries_[page].load(std::memory_order_relaxed) == 0) continue;
    entries_[page].store(to.bits, std::memory_order_relaxed);
  }
}

Result<void> LocationMap::init_from(const SplitPlan& plan) {
  if (plan.pages() != pages()) {
    return make_error(EINVAL, "the split plan is for {} pages, this VM has {}", plan.pages().value,
                      pages().value);
  }
  plan.for_each_run([this](ServerId owner, PageIndex first, PageCount count) {
    if (owner == kMainHost) {
      set_local(first, count);
    } else {
      set_remote(first, count, owner);
    }
  });
  return {};
}

void LocationMap::set_remote(PageIndex first, PageCount count, ServerId server) {
  assert(server != kMainHost && server.value <= kMaxServers);
  fill(first, count, PageEntry::of(PageState::kRemote, server));
}

void LocationMap::set_local(PageIndex first, PageCount count) {
  fill(first, count, PageEntry::of(PageState::kLocal));
}

PageCount LocationMap::set_zero(PageIndex first, PageCount count) {
  const std::uint64_t end = end_of(first, count);
  PageCount changed{0};
  for (std::uint64_t page = first.value; page < end; ++page) {
    const PageEntry entry{entries_[page].load(std::memory_order_relaxed)};
    if (entry.state() != PageState::kRemote) continue;
    entries_[page].store(PageEntry::of(PageState::kZero).bits, std::memory_order_relaxed);
    ++changed;
  }
  return changed;
}

PageClaim LocationMap::begin_fetch(PageIndex page, bool urgent) {
  PageClaim claim;
  claim.claimed = transition(page, [&](PageEntry entry) -> std::optional<PageEntry> {
    claim.seen = entry;
    if (urgent) {
      const bool taken =
          entry.state() == PageState::kEvictingWp || entry.state() == PageState::kUnmapping;
      if (taken || entry.urgent()) return std::nullopt;
      return entry.with(PageEntry::kUrgentInFlight);
    }
    if (entry.state() != PageState::kRemote || entry.in_flight()) return std::nullopt;
    return entry.with(PageEntry::kPrefetchInFlight);
  });
  return claim;
}

bool LocationMap::end_fetch(PageIndex page, std::uint16_t flag) {
  bool became_local = false;
  const bool ended = transition(page, [&](PageEntry entry) -> std::optional<PageEntry> {
    if ((entry.bits & flag) == 0) return std::nullopt;
    became_local = entry.state() != PageState::kLocal;
    const std::uint16_t others = entry.bits & PageEntry::kFlags & ~flag;
    return PageEntry::of(PageState::kLocal).with(others);
  });
  return ended && became_local;
}

bool LocationMap::drop_fetch(PageIndex page, std::uint16_t flag) {
  return transition(page, [&](PageEntry entry) -> std::optional<PageEntry> {
    if ((entry.bits & flag) == 0) return std::nullopt;
    return entry.without(flag);
  });
}

PageClaim LocationMap::try_begin_urgent(PageIndex page) { return begin_fetch(page, true); }
bool LocationMap::complete_urgent(PageIndex page) {
  return end_fetch(page, PageEntry::kUrgentInFlight);
}
bool LocationMap::abandon_urgent(PageIndex page) {
  return drop_fetch(page, PageEntry::kUrgentInFlight);
}
PageClaim LocationMap::try_begin_prefetch(PageIndex page) { return begin_fetch(page, false); }
bool LocationMap::complete_prefetch(PageIndex page) {
  return end_fetch(page, PageEntry::kPrefetchInFlight);
}
bool LocationMap::abandon_prefetch(PageIndex page) {
  return drop_fetch(page, PageEntry::kPrefetchInFlight);
}

bool LocationMap::begin_evict(PageIndex page, PageState state, ServerId server) {
  assert(server != kMainHost && server.value <= kMaxServers);
  return transition(page, [&](PageEntry entry) -> std::optional<PageEntry> {
    if (entry != PageEntry::of(PageState::kLocal)) return std::nullopt;
    return PageEntry::of(state, server);
  });
}

bool LocationMap::try_begin_evict(PageIndex page, ServerId server) {
  return begin_evict(page, PageState::kUnmapping, server);
}

bool LocationMap::try_begin_evict_wp(PageIndex page, ServerId server) {
  return begin_evict(page, PageState::kEvictingWp, server);
}

bool LocationMap::cancel_evict(PageIndex page) {
  return transition(page, [](PageEntry entry) -> std::optional<PageEntry> {
    if (entry.state() != PageState::kUnmapping) return std::nullopt;
    return PageEntry::of(PageState::kLocal);
  });
}

bool LocationMap::cancel_evict_wp(PageIndex page) {
  return transition(page, [](PageEntry entry) -> std::optional<PageEntry> {
    if (entry.state() != PageState::kEvictingWp) return std::nullopt;
    return PageEntry::of(PageState::kLocal);
  });
}

bool LocationMap::commit_discard(PageIndex page) {
  return transition(page, [](PageEntry entry) -> std::optional<PageEntry> {
    if (entry.state() != PageState::kEvictingWp) return std::nullopt;
    return PageEntry::of(PageState::kUnmapping, entry.server());
  });
}

bool LocationMap::unmapped(PageIndex page) {
  return transition(page, [](PageEntry entry) -> std::optional<PageEntry> {
    if (entry.state() != PageState::kUnmapping) return std::nullopt;
    return PageEntry::of(PageState::kEvicting, entry.server());
  });
}

bool LocationMap::finish_evict(PageIndex page) {
  return transition(page, [](PageEntry entry) -> std::optional<PageEntry> {
    if (entry.state() != PageState::kEvicting || entry.in_flight()) return std::nullopt;
    return PageEntry::of(PageState::kRemote, entry.server());
  });
}

bool LocationMap::finish_evict_zero(PageIndex page) {
  return transition(page, [](PageEntry entry) -> std::optional<PageEntry> {
    if (entry.state() != PageState::kEvicting || entry.in_flight()) return std::nullopt;
    return PageEntry::of(PageState::kZero);
  });
}

}  // namespace kintsugi
