// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/lru.h"

#include <algorithm>

namespace kintsugi {

void LruPolicy::written(std::uint64_t group, std::uint64_t bits) {
  for_each_page(group, bits, [this](PageIndex page) {
    NodeId id = pool_.find(page);
    if (id == kNoNode) {
      id = pool_.insert(page);
    } else {
      list_.remove(pool_, id);
    }
    pool_[id].last_write_ms = now_ms_;
    list_.push_back(pool_, id);
  });
}

void LruPolicy::end_scan() {
  untouched_from_ = placement_.next_fast(untouched_from_);
  while (untouched_from_.value < placement_.pages().value &&
         pool_.find(untouched_from_) != kNoNode) {
    untouched_from_ = placement_.next_fast(PageIndex{untouched_from_.value + 1});
  }
  if (untouched_from_.value < placement_.pages().value) return;
  for (NodeId id; (id = list_.head()) != kNoNode && !placement_.is_fast(pool_.page(id));) {
    list_.remove(pool_, id);
    pool_.erase(id);
  }
}

void LruPolicy::decide(std::size_t limit, std::vector<SwapPair>& out) {
  PageIndex untouched = untouched_from_;
  NodeId oldest = list_.head();
  std::size_t pairs = 0;
  for (NodeId id = list_.tail(); id != kNoNode && pairs < limit; id = pool_[id].prev) {
    if (placement_.is_fast(pool_.page(id))) continue;
    untouched = placement_.next_fast(untouched);
    while (untouched.value < placement_.pages().value && pool_.find(untouched) != kNoNode) {
      untouched = placement_.next_fast(PageIndex{untouched.value + 1});
    }
    if (untouched.value < placement_.pages().value) {
      out.push_back({.slow = pool_.page(id), .fast = untouched});
      ++untouched;
    } else {
      while (oldest != kNoNode && !placement_.is_fast(pool_.page(oldest))) {
        oldest = pool_[oldest].next;
      }
      if (oldest == kNoNode || pool_[oldest].last_write_ms >= pool_[id].last_write_ms) return;
      out.push_back({.slow = pool_.page(id), .fast = pool_.page(oldest)});
      oldest = pool_[oldest].next;
    }
    ++pairs;
  }
}

// To be tried again when it is as old as any other once more, not at each decision.
void LruPolicy::refused(const SwapPair& pair) {
  NodeId id = pool_.find(pair.fast);
  if (id == kNoNode) {
    id = pool_.insert(pair.fast);
  } else {
    list_.remove(pool_, id);
  }
  pool_[id].last_write_ms = now_ms_;
  list_.push_back(pool_, id);
}

void LruPolicy::placement_changed(PageIndex first, PageCount /*count*/) {
  untouched_from_ = std::min(untouched_from_, first);
}

}  // namespace kintsugi
