// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/smq.h"

#include <algorithm>

namespace kintsugi {

void SmqPolicy::put(NodeId id, bool fast, unsigned level) {
  Entry& entry = pool_[id];
  entry.fast = fast;
  entry.level = static_cast<std::uint8_t>(level);
  MultiQueue& queue = fast ? fast_ : slow_;
  queue.levels[level].push_back(pool_, id);
  ++queue.size;
}

void SmqPolicy::take(NodeId id) {
  MultiQueue& queue = pool_[id].fast ? fast_ : slow_;
  queue.levels[pool_[id].level].remove(pool_, id);
  --queue.size;
}

// A hit: one level up, in exchange for the oldest there.
void SmqPolicy::rise(NodeId id) {
  const bool fast = pool_[id].fast;
  const unsigned level = pool_[id].level;
  const unsigned above = std::min(level + 1, kLevels - 1);
  MultiQueue& queue = fast ? fast_ : slow_;
  take(id);
  if (above != level) {
    const NodeId oldest = queue.levels[above].head();
    if (oldest != kNoNode) {
      take(oldest);
      put(oldest, fast, level);
    }
  }
  put(id, fast, above);
}

void SmqPolicy::written(std::uint64_t group, std::uint64_t bits) {
  for_each_page(group, bits, [this](PageIndex page) {
    const bool fast = placement_.is_fast(page);
    NodeId id = pool_.find(page);
    if (id == kNoNode) {
      id = pool_.insert(page);
      put(id, fast, 0);
    } else if (pool_[id].fast != fast) {
      take(id);
      put(id, fast, fast ? kLevels / 2 : 0);
    } else {
      rise(id);
    }
    pool_[id].hit = true;
  });
}

// Levels of equal size: from the bottom up, what is too much goes up newest first, and what is
// missing comes from above, oldest first.
void SmqPolicy::level_out(MultiQueue& queue) {
  std::size_t left = queue.size;
  for (unsigned level = 0; level + 1 < kLevels; ++level) {
    auto& here = queue.levels[level];
    const std::size_t target = left / (kLevels - level);
    while (here.size() > target) {
      const NodeId id = here.tail();
      here.remove(pool_, id);
      pool_[id].level = static_cast<std::uint8_t>(level + 1);
      queue.levels[level + 1].push_front(pool_, id);
    }
    for (unsigned above = level + 1; here.size() < target && above < kLevels;) {
      const NodeId id = queue.levels[above].head();
      if (id == kNoNode) {
        ++above;
        continue;
      }
      queue.levels[above].remove(pool_, id);
      pool_[id].level = static_cast<std::uint8_t>(level);
      here.push_back(pool_, id);
    }
    left -= here.size();
  }
}

void SmqPolicy::decide(std::size_t limit, std::vector<SwapPair>& out) {
  const std::uint64_t capacity = placement_.fast_pages().value;
  for (unsigned level = 0; level < kLevels && slow_.size > capacity;) {
    const NodeId id = slow_.levels[level].head();
    if (id == kNoNode) {
      ++level;
      continue;
    }
    take(id);
    pool_.erase(id);
  }
  level_out(fast_);
  level_out(slow_);

  PageIndex untouched = placement_.next_fast(PageIndex{0});
  unsigned cold_level = 0;
  NodeId cold = fast_.levels[0].head();
  const auto next_victim = [&]() -> PageIndex {
    for (; untouched.value < placement_.pages().value;
         untouched = placement_.next_fast(PageIndex{untouched.value + 1})) {
      if (pool_.find(untouched) != kNoNode) continue;
      const PageIndex page = untouched;
      untouched = placement_.next_fast(PageIndex{page.value + 1});
      return page;
    }
    // The lowest quarter of levels only.
    while (cold_level < kLevels / 4) {
      for (; cold != kNoNode; cold = pool_[cold].next) {
        const PageIndex page = pool_.page(cold);
        if (pool_[cold].hit || !placement_.is_fast(page)) continue;
        cold = pool_[cold].next;
        return page;
      }
      cold = fast_.levels[++cold_level].head();
    }
    return PageIndex{placement_.pages().value};
  };
  std::size_t pairs = 0;
  bool more = true;
  for (unsigned level = kLevels; more && level-- > kLevels * 3 / 4;) {
    for (NodeId id = slow_.levels[level].tail(); id != kNoNode && pairs < limit;
         id = pool_[id].prev) {
      if (!pool_[id].hit || placement_.is_fast(pool_.page(id))) continue;
      const PageIndex victim = next_victim();
      more = victim.value < placement_.pages().value;
      if (!more) break;
      out.push_back({.slow = pool_.page(id), .fast = victim});
      ++pairs;
    }
  }
  pool_.for_each([this](NodeId id) { pool_[id].hit = false; });
}

void SmqPolicy::swapped(const SwapPair& pair) {
  const NodeId in = pool_.find(pair.slow);
  if (in != kNoNode && !pool_[in].fast) {
    take(in);
    put(in, true, kLevels / 2);
  }
  const NodeId out = pool_.find(pair.fast);
  if (out != kNoNode && pool_[out].fast) {
    take(out);
    put(out, false, 0);
  }
}

unsigned SmqPolicy::level(PageIndex page) const {
  const NodeId id = pool_.find(page);
  return id == kNoNode ? kLevels : pool_[id].level;
}

}  // namespace kintsugi
