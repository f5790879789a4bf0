// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/mq.h"

#include <algorithm>
#include <bit>

namespace kintsugi {

void MqPolicy::begin_scan(std::int64_t now_ms) {
  now_ms_ = now_ms;
  if (!started_) start_ms_ = now_ms;
  started_ = true;
}

void MqPolicy::move_to_back(NodeId id, unsigned list) {
  lists_[pool_[id].list].remove(pool_, id);
  pool_[id].list = list;
  lists_[list].push_back(pool_, id);
}

void MqPolicy::write(PageIndex page) {
  NodeId id = pool_.find(page);
  if (id == kNoNode) {
    id = pool_.insert(page);
    lists_[0].push_back(pool_, id);
  }
  Entry& entry = pool_[id];
  entry.count = std::min<std::uint32_t>(entry.count + 1, kMaxCount);
  entry.last_write_ms = static_cast<std::uint64_t>(now_ms_);
  const auto top = static_cast<unsigned>(parameters_[kQueues].value) - 1;
  const std::uint64_t count = entry.count;
  const auto level = static_cast<unsigned>(std::bit_width(count)) - 1;
  move_to_back(id, std::min(level, top));
}

void MqPolicy::written(std::uint64_t group, std::uint64_t bits) {
  for_each_page(group, bits, [this](PageIndex page) { write(page); });
}

bool MqPolicy::expired(NodeId id) const {
  constexpr std::uint64_t kMask = (std::uint64_t{1} << kTimeBits) - 1;
  const std::uint64_t age = (static_cast<std::uint64_t>(now_ms_) - pool_[id].last_write_ms) & kMask;
  return age > static_cast<std::uint64_t>(parameters_[kLifeTime].value);
}

void MqPolicy::end_scan() {
  if (static_cast<double>(now_ms_ - start_ms_) > parameters_[kLifeTime].value) {
    untouched_expired_ = true;
  }
  for (NodeId id; (id = lists_[0].head()) != kNoNode && expired(id);) {
    if (placement_.is_fast(pool_.page(id))) {
      move_to_back(id, kVictim);
    } else {
      lists_[0].remove(pool_, id);
      pool_.erase(id);
    }
  }
  for (unsigned queue = 1; queue < kMaxQueues; ++queue) {
    for (NodeId id; (id = lists_[queue].head()) != kNoNode && expired(id);) {
      lists_[queue].remove(pool_, id);
      pool_[id].list = queue - 1;
      lists_[queue - 1].push_front(pool_, id);
    }
  }
}

// The head of Qvictim, which leaves it.
NodeId MqPolicy::take_victim() {
  if (untouched_expired_) {
    for (;;) {
      untouched_from_ = placement_.next_fast(untouched_from_);
      if (untouched_from_.value >= placement_.pages().value) break;
      const PageIndex page = untouched_from_;
      ++untouched_from_;
      if (pool_.find(page) != kNoNode) continue;
      const NodeId id = pool_.insert(page);
      pool_[id].list = kTaken;
      lists_[kTaken].push_back(pool_, id);
      return id;
    }
  }
  for (NodeId id; (id = lists_[kVictim].head()) != kNoNode;) {
    if (placement_.is_fast(pool_.page(id))) {
      move_to_back(id, kTaken);
      return id;
    }
    // Somebody else has taken it to the slow tier.
    lists_[kVictim].remove(pool_, id);
    pool_.erase(id);
  }
  return kNoNode;
}

void MqPolicy::decide(std::size_t limit, std::vector<SwapPair>& out) {
  std::size_t pairs = 0;
  for (unsigned queue = kMaxQueues; queue-- > 0;) {
    for (NodeId id = lists_[queue].tail(); id != kNoNode; id = pool_[id].prev) {
      if (placement_.is_fast(pool_.page(id))) continue;
      if (pairs == limit) return;
      const NodeId victim = take_victim();
      if (victim == kNoNode) return;
      out.push_back({.slow = pool_.page(id), .fast = pool_.page(victim)});
      ++pairs;
    }
  }
}

void MqPolicy::swapped(const SwapPair& pair) {
  const NodeId id = pool_.find(pair.fast);
  // One that was written since is in a queue again, as a slow page may be.
  if (id == kNoNode || pool_[id].list != kTaken) return;
  lists_[kTaken].remove(pool_, id);
  pool_.erase(id);
}

void MqPolicy::refused(const SwapPair& pair) {
  const NodeId id = pool_.find(pair.fast);
  if (id != kNoNode && pool_[id].list == kTaken) move_to_back(id, kVictim);
}

void MqPolicy::placement_changed(PageIndex first, PageCount /*count*/) {
  untouched_from_ = std::min(untouched_from_, first);
}

void MqPolicy::set_parameter(std::size_t index, double value) {
  parameters_[index].value = value;
  if (index != kQueues) return;
  const auto top = static_cast<unsigned>(value) - 1;
  for (unsigned queue = top + 1; queue < kMaxQueues; ++queue) {
    while (lists_[queue].head() != kNoNode) move_to_back(lists_[queue].head(), top);
  }
}

std::vector<PageIndex> MqPolicy::pages_of(unsigned list) const {
  std::vector<PageIndex> pages;
  for (NodeId id = lists_[list].head(); id != kNoNode; id = pool_[id].next) {
    pages.push_back(pool_.page(id));
  }
  return pages;
}

std::uint32_t MqPolicy::count(PageIndex page) const {
  const NodeId id = pool_.find(page);
  return id == kNoNode ? 0 : pool_[id].count;
}

}  // namespace kintsugi
