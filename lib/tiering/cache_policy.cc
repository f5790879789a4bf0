// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/cache_policy.h"

#include <algorithm>
#include <bit>

namespace kintsugi {

NodeId CachePolicy::add(PageIndex page, List list) {
  const NodeId id = pool_.insert(page);
  pool_[id].list = list;
  lists_[list].push_back(pool_, id);
  return id;
}

void CachePolicy::move_to_back(NodeId id, List list) {
  lists_[pool_[id].list].remove(pool_, id);
  pool_[id].list = list;
  lists_[list].push_back(pool_, id);
}

void CachePolicy::forget(NodeId id) {
  lists_[pool_[id].list].remove(pool_, id);
  pool_.erase(id);
}

void CachePolicy::written(std::uint64_t group, std::uint64_t bits) {
  for_each_page(group, bits, [this](PageIndex page) {
    requested(page);
    NodeId id = pool_.find(page);
    if (placement_.is_fast(page)) {
      if (id == kNoNode) id = add(page, kArriving);
      // One that is on its way out is let go.
      if (pool_[id].list == kTaken) return;
      // New, or made fast by somebody else.
      if (pool_[id].list == kArriving || pool_[id].list == kGhost) admit(id);
      hit(id);
      return;
    }
    if (id == kNoNode) {
      id = add(page, kArriving);
    } else if (pool_[id].list != kArriving && pool_[id].list != kTaken) {
      pool_[id].was_ghost = pool_[id].list == kGhost;
      pool_[id].hits = 0;
      move_to_back(id, kArriving);
    }
    if (pool_[id].list == kArriving && pool_[id].hits < 0xff) ++pool_[id].hits;
  });
}

// A page of the cache that was never requested.
NodeId CachePolicy::take_untouched() {
  for (;;) {
    untouched_from_ = placement_.next_fast(untouched_from_);
    if (untouched_from_.value >= placement_.pages().value) return kNoNode;
    const PageIndex page = untouched_from_;
    ++untouched_from_;
    if (pool_.find(page) == kNoNode) return add(page, kTaken);
  }
}

// What arrived, the most requested first; of equals, what came first.
std::vector<NodeId> CachePolicy::arrivals() const {
  std::vector<NodeId> ids;
  for (NodeId id = oldest(kArriving); id != kNoNode; id = pool_[id].next) ids.push_back(id);
  std::stable_sort(ids.begin(), ids.end(),
                   [this](NodeId a, NodeId b) { return pool_[a].hits > pool_[b].hits; });
  return ids;
}

// The page to go for `page`, in kTaken; kNoNode if there is none.
NodeId CachePolicy::take_victim(PageIndex page) {
  NodeId id = take_untouched();
  while (id == kNoNode) {
    id = victim(page);
    if (id == kNoNode) return kNoNode;
    if (placement_.is_fast(pool_.page(id))) {
      pool_[id].from_first = pool_[id].list == kFirst;
      move_to_back(id, kTaken);
    } else {
      // Somebody else has taken it out of the cache.
      forget(id);
      id = kNoNode;
    }
  }
  return id;
}

void CachePolicy::decide(std::size_t limit, std::vector<SwapPair>& out) {
  std::size_t pairs = 0;
  for (const NodeId arrival : arrivals()) {
    const PageIndex page = pool_.page(arrival);
    if (placement_.is_fast(page)) {
      admit(arrival);
      continue;
    }
    const NodeId leaving = pairs < limit && wanted(page) ? take_victim(page) : kNoNode;
    if (leaving != kNoNode) {
      move_to_back(arrival, kTaken);
      out.push_back({.slow = page, .fast = pool_.page(leaving)});
      ++pairs;
    } else if (pool_[arrival].was_ghost) {
      move_to_back(arrival, kGhost);
    } else {
      forget(arrival);
    }
  }
}

void CachePolicy::swapped(const SwapPair& pair) {
  const NodeId in = pool_.find(pair.slow);
  if (in != kNoNode && pool_[in].list == kTaken) admit(in);
  const NodeId out = pool_.find(pair.fast);
  if (out != kNoNode && pool_[out].list == kTaken && !keep_evicted(out)) forget(out);
}

void CachePolicy::refused(const SwapPair& pair) {
  const NodeId in = pool_.find(pair.slow);
  if (in != kNoNode && pool_[in].list == kTaken) forget(in);
  const NodeId out = pool_.find(pair.fast);
  if (out != kNoNode && pool_[out].list == kTaken) admit(out);
}

void CachePolicy::placement_changed(PageIndex first, PageCount /*count*/) {
  untouched_from_ = std::min(untouched_from_, first);
}

// --- S3-FIFO: kFirst is the small queue, kSecond the main one ---

void S3FifoPolicy::hit(NodeId id) {
  constexpr std::uint8_t kMaxHits = 3;
  if (pool_[id].hits < kMaxHits) ++pool_[id].hits;
}

void S3FifoPolicy::admit(NodeId id) {
  move_to_back(id, pool_[id].was_ghost ? kSecond : kFirst);
  pool_[id].hits = 0;
  pool_[id].was_ghost = false;
}

NodeId S3FifoPolicy::victim_of_small() {
  while (oldest(kFirst) != kNoNode) {
    const NodeId id = oldest(kFirst);
    if (pool_[id].hits <= 1) return id;
    pool_[id].hits = 0;
    move_to_back(id, kSecond);
  }
  return kNoNode;
}

NodeId S3FifoPolicy::victim_of_main() {
  while (oldest(kSecond) != kNoNode) {
    const NodeId id = oldest(kSecond);
    if (pool_[id].hits == 0) return id;
    --pool_[id].hits;
    move_to_back(id, kSecond);
  }
  return kNoNode;
}

NodeId S3FifoPolicy::victim(PageIndex /*arrival*/) {
  const std::size_t small = size_of(kFirst) + on_their_way();
  const NodeId id = small * 10 >= capacity() ? victim_of_small() : victim_of_main();
  if (id != kNoNode) return id;
  const NodeId other = victim_of_main();
  return other != kNoNode ? other : victim_of_small();
}

bool S3FifoPolicy::keep_evicted(NodeId id) {
  if (!pool_[id].from_first) return false;
  pool_[id].hits = 0;
  move_to_back(id, kGhost);
  // As many ghosts as the main queue has pages.
  while (size_of(kGhost) > capacity() - capacity() / 10) forget(oldest(kGhost));
  return true;
}

// --- W-TinyLFU: kFirst is the window, kSecond the probation part, kThird the protected one ---

std::size_t WTinyLfuPolicy::slot(PageIndex page, unsigned row) const {
  constexpr std::uint64_t kSeeds[kRows] = {0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9,
                                           0x94d049bb133111eb, 0xd6e8feb86659fd93};
  std::uint64_t hash = (page.value + 1) * kSeeds[row];
  hash ^= hash >> 32;
  const std::size_t width = sketch_.size() / kRows;
  return row * width + (hash * kSeeds[(row + 1) % kRows] >> 20) % width;
}

unsigned WTinyLfuPolicy::estimate(PageIndex page) const {
  if (sketch_.empty()) return 0;
  unsigned least = 15;
  for (unsigned row = 0; row < kRows; ++row) {
    least = std::min<unsigned>(least, sketch_[slot(page, row)]);
  }
  return least;
}

// A counter a row for each page of the cache.
void WTinyLfuPolicy::grow_sketch() {
  const std::uint64_t width = std::bit_ceil(std::max<std::uint64_t>(capacity(), 64));
  if (sketch_.size() != width * kRows) sketch_.assign(width * kRows, 0);
}

void WTinyLfuPolicy::requested(PageIndex page) {
  constexpr std::uint8_t kMaxCount = 15;
  constexpr unsigned kSamplesPerPage = 10;
  grow_sketch();
  const unsigned least = estimate(page);
  // Only the counters that are least: "conservative update".
  for (unsigned row = 0; row < kRows; ++row) {
    std::uint8_t& counter = sketch_[slot(page, row)];
    if (counter == least && counter < kMaxCount) ++counter;
  }
  if (++requests_ < kSamplesPerPage * std::max<std::uint64_t>(capacity(), 1)) return;
  requests_ = 0;
  for (std::uint8_t& counter : sketch_) counter /= 2;
}

void WTinyLfuPolicy::hit(NodeId id) {
  if (pool_[id].list == kFirst) {
    move_to_back(id, kFirst);
    return;
  }
  move_to_back(id, kThird);
  const std::uint64_t main = capacity() - capacity() / 100;
  while (size_of(kThird) > main * 8 / 10 && size_of(kThird) > 1) {
    move_to_back(oldest(kThird), kSecond);
  }
}

void WTinyLfuPolicy::admit(NodeId id) { move_to_back(id, kFirst); }

bool WTinyLfuPolicy::window_is_full() const {
  return size_of(kFirst) + on_their_way() > capacity() / 100;
}

NodeId WTinyLfuPolicy::next_of_main() const {
  return oldest(kSecond) != kNoNode ? oldest(kSecond) : oldest(kThird);
}

// With nobody but arrivals in a full window, the arrival itself falls out of it and competes.
bool WTinyLfuPolicy::wanted(PageIndex arrival) {
  const NodeId main = next_of_main();
  if (!window_is_full() || oldest(kFirst) != kNoNode || main == kNoNode) return true;
  return estimate(arrival) > estimate(pool_.page(main));
}

NodeId WTinyLfuPolicy::victim(PageIndex /*arrival*/) {
  const NodeId candidate = oldest(kFirst);
  const NodeId main = next_of_main();
  if (candidate == kNoNode || (main != kNoNode && !window_is_full())) return main;
  if (main == kNoNode) return candidate;
  if (estimate(pool_.page(candidate)) <= estimate(pool_.page(main))) return candidate;
  move_to_back(candidate, kSecond);
  return main;
}

}  // namespace kintsugi
