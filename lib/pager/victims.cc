// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/victims.h"

#include <algorithm>

namespace kintsugi {
namespace {

// A batch is this part of the candidates, so that ranks do not grow old while it is used up.
constexpr std::size_t kBatchShare = 16;
constexpr std::size_t kMinBatch = 32;

}  // namespace

VictimPicker::VictimPicker(PagerCore& core)
    : core_(core),
      chunks_((core.config.vm_pages.value + core.config.chunk_pages.value - 1) /
              core.config.chunk_pages.value),
      ranks_(std::min(chunks_, kPassChunks)),
      candidates_(ranks_.size()),
      histogram_(UINT16_MAX + 1) {
  batch_.reserve(kMaxBatch);
}

bool VictimPicker::candidate(std::uint64_t chunk, bool spare_recent) const {
  if (forgive_ns_ != 0 && refused_.contains(chunk)) return false;
  if (spare_recent && core_.recently_in.contains(chunk)) return false;
  const std::uint64_t chunk_pages = core_.config.chunk_pages.value;
  const std::uint64_t first = chunk * chunk_pages;
  const std::uint64_t end = std::min(first + chunk_pages, core_.config.vm_pages.value);
  for (std::uint64_t page = first; page < end; page++) {
    if (core_.map.load(PageIndex{page}) == PageEntry::of(PageState::kLocal)) return true;
  }
  return false;
}

std::optional<ChunkIndex> VictimPicker::next() {
  for (int round = 0; round < 3; round++) {
    while (taken_ < batch_.size()) {
      const std::uint64_t chunk = batch_[taken_++].chunk;
      if (candidate(chunk, spared_recent_)) return ChunkIndex{chunk};
    }
    if (round == 2) break;
    pass(round == 0);
  }
  return std::nullopt;
}

void VictimPicker::refused(ChunkIndex chunk, std::uint64_t now_ns) {
  refused_.add(chunk.value);
  if (forgive_ns_ == 0) forgive_ns_ = now_ns + kForgive_ns;
}

void VictimPicker::forgive(std::uint64_t now_ns) {
  if (forgive_ns_ == 0 || now_ns < forgive_ns_) return;
  refused_.clear();
  forgive_ns_ = 0;
}

void VictimPicker::pass(bool spare_recent) {
  batch_.clear();
  taken_ = 0;
  spared_recent_ = spare_recent;
  const std::uint64_t first = hand_;
  const std::size_t count = ranks_.size();
  const auto chunk_at = [&](std::size_t i) { return (first + i) % chunks_; };
  if (core_.config.history != nullptr) {
    const AccessHistory& history = *core_.config.history;
    const std::size_t until_wrap = std::min<std::uint64_t>(count, chunks_ - first);
    const std::span<std::uint16_t> out(ranks_);
    history.ranks(core_.config.chunk_pages, ChunkIndex{first}, out.first(until_wrap));
    history.ranks(core_.config.chunk_pages, ChunkIndex{0}, out.subspan(until_wrap));
  } else {
    std::fill(ranks_.begin(), ranks_.end(), 0);
  }
  std::fill(histogram_.begin(), histogram_.end(), 0);
  std::size_t candidates = 0;
  for (std::size_t i = 0; i < count; i++) {
    const bool is = candidate(chunk_at(i), spare_recent);
    candidates_[i] = is;
    if (!is) continue;
    histogram_[ranks_[i]]++;
    candidates++;
  }
  if (candidates == 0) {
    hand_ = (first + count) % chunks_;
    return;
  }
  const std::size_t wanted =
      std::min(candidates, std::clamp(candidates / kBatchShare, kMinBatch, kMaxBatch));
  std::size_t below = 0;
  std::uint32_t limit = 0;
  while (below + histogram_[limit] < wanted) below += histogram_[limit++];
  // All that are colder than `limit`, and of those just as cold the first that are met.
  std::size_t at_limit = wanted - below;
  for (std::size_t i = 0; i < count && batch_.size() < wanted; i++) {
    if (!candidates_[i] || ranks_[i] > limit) continue;
    if (ranks_[i] == limit) {
      if (at_limit == 0) continue;
      if (--at_limit == 0) hand_ = (chunk_at(i) + 1) % chunks_;
    }
    batch_.push_back({ranks_[i], static_cast<std::uint32_t>(i), chunk_at(i)});
  }
  std::sort(batch_.begin(), batch_.end(), [](const Victim& a, const Victim& b) {
    return a.rank != b.rank ? a.rank < b.rank : a.order < b.order;
  });
  // No chunk is cold any more: as P1's clock, clear bits as we go.
  if (limit > 0 && core_.config.history != nullptr) {
    core_.config.history->advance_hand(PageCount{wanted * core_.config.chunk_pages.value});
  }
}

}  // namespace kintsugi
