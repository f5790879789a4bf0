// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/tiering.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <utility>

namespace kintsugi {
namespace {

// Calls f(group, bits) for each group of 64 pages that has a bit set.
template <typename F>
void for_each_group(PageIndex first, const std::uint64_t* bitmap, PageCount count, PageCount end,
                    F&& f) {
  if (first.value >= end.value) return;
  const std::uint64_t pages = std::min(count.value, end.value - first.value);
  const unsigned offset = first.value % 64;
  std::uint64_t group = first.value / 64;
  for (std::uint64_t done = 0; done < pages; done += 64, ++group) {
    std::uint64_t bits = *bitmap++;
    if (bits == 0) continue;
    if (pages - done < 64) bits &= (std::uint64_t{1} << (pages - done)) - 1;
    if (const std::uint64_t here = bits << offset; here != 0) f(group, here);
    if (offset == 0) continue;
    if (const std::uint64_t next = bits >> (64 - offset); next != 0) f(group + 1, next);
  }
}

}  // namespace

Result<std::unique_ptr<Tiering>> Tiering::create(PageCount pages, std::string_view policy) {
  auto placement = Placement::create(pages);
  if (!placement) return placement.error();
  std::unique_ptr<Tiering> tiering(new Tiering(std::move(*placement)));
  if (auto ok = tiering->set_policy(policy); !ok) return ok.error();
  return tiering;
}

Result<void> Tiering::set_fast(PageIndex first, PageCount count, bool fast) {
  const std::uint64_t pages = placement_.pages().value;
  if (first.value > pages || count.value > pages - first.value) {
    return make_error(EINVAL, "pages {} to {} are not all within the VM's {} pages", first.value,
                      first.value + count.value, pages);
  }
  for (std::uint64_t i = 0; i < count.value; ++i) {
    placement_.set(PageIndex{first.value + i}, fast);
  }
  policy_->placement_changed(first, count);
  return {};
}

void Tiering::begin_scan(std::int64_t now_ms) {
  now_ms_ = std::max(now_ms_, now_ms);
  policy_->begin_scan(now_ms_);
}

void Tiering::feed_written(PageIndex first, const std::uint64_t* bitmap, PageCount count) {
  for_each_group(first, bitmap, count, placement_.pages(),
                 [this](std::uint64_t group, std::uint64_t bits) {
                   const std::uint64_t fast = placement_.fast_bits(group);
                   stats_.fast_writes += std::popcount(bits & fast);
                   stats_.slow_writes += std::popcount(bits & ~fast);
                   policy_->written(group, bits);
                 });
}

void Tiering::feed_accessed(PageIndex first, const std::uint64_t* bitmap, PageCount count) {
  for_each_group(
      first, bitmap, count, placement_.pages(),
      [this](std::uint64_t group, std::uint64_t bits) { policy_->accessed(group, bits); });
}

void Tiering::end_scan() {
  policy_->end_scan();
  ++stats_.scans;
}

// Whatever nobody reported on did not happen.
void Tiering::settle() {
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    if (open_[i]) report(i, false);
  }
  pairs_.clear();
  open_.clear();
}

bool Tiering::held_back(const SwapPair& pair) const {
  return held_.find(pair.slow) != kNoNode || held_.find(pair.fast) != kNoNode;
}

void Tiering::hold_back(PageIndex page, double decisions) {
  if (decisions == 0) return;
  NodeId id = held_.find(page);
  if (id == kNoNode) id = held_.insert(page);
  held_[id] = stats_.decisions + 1 + static_cast<std::uint64_t>(decisions);
}

std::span<const SwapPair> Tiering::decide(std::size_t max) {
  settle();
  ++stats_.decisions;
  held_.for_each([this](NodeId id) {
    if (held_[id] <= stats_.decisions) held_.erase(id);
  });
  const std::size_t limit = std::min(max, static_cast<std::size_t>(parameters_[kLimit].value));
  // A page that is held back spoils one pair at most, so with as many more there is still enough.
  policy_->decide(limit == 0 ? 0 : limit + held_.size(), pairs_);
  if (held_.size() != 0) {
    std::size_t kept = 0;
    std::erase_if(pairs_, [&](const SwapPair& pair) {
      if (kept < limit && !held_back(pair)) {
        ++kept;
        return false;
      }
      policy_->refused(pair);
      return true;
    });
  }
  open_.assign(pairs_.size(), true);
  pairs_of_policy_ = true;
  stats_.pairs += pairs_.size();
  return pairs_;
}

bool Tiering::report(std::size_t index, bool swapped) {
  if (index >= pairs_.size() || !open_[index]) return false;
  open_[index] = false;
  const SwapPair pair = pairs_[index];
  if (swapped) {
    placement_.set(pair.slow, true);
    placement_.set(pair.fast, false);
    ++stats_.swapped;
  } else {
    ++stats_.refused;
  }
  const double wait = parameters_[swapped ? kPingPongGate : kRefusedWait].value;
  hold_back(pair.slow, wait);
  hold_back(pair.fast, wait);
  if (pairs_of_policy_) {
    swapped ? policy_->swapped(pair) : policy_->refused(pair);
  } else if (swapped) {
    policy_->placement_changed(pair.slow, PageCount{1});
    policy_->placement_changed(pair.fast, PageCount{1});
  }
  return true;
}

Result<void> Tiering::set_policy(std::string_view name) {
  auto made = make_policy(name, placement_);
  if (!made) return made.error();
  policy_ = std::move(*made);
  pairs_of_policy_ = false;
  policy_name_ = name;
  return {};
}

std::vector<Parameter> Tiering::parameters() const {
  std::vector<Parameter> all(parameters_.begin(), parameters_.end());
  const auto own = policy_->parameters();
  all.insert(all.end(), own.begin(), own.end());
  return all;
}

Result<std::size_t> Tiering::find(std::span<const Parameter> parameters,
                                  std::string_view name) const {
  std::string known;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name == name) return i;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", parameters[i].name);
  }
  return make_error(ENOENT, "tiering policy '{}' has no parameter '{}': it has {}", policy_name_,
                    name, known);
}

Result<void> Tiering::set(std::string_view name, double value) {
  const std::vector<Parameter> all = parameters();
  const auto index = find(all, name);
  if (!index) return index.error();
  const Parameter& parameter = all[*index];
  const bool whole = !parameter.integer || std::floor(value) == value;
  if (!(value >= parameter.min && value <= parameter.max) || !whole) {
    return make_error(EINVAL, "{} cannot be {}: use {} from {} to {}", name, value,
                      parameter.integer ? "a whole number" : "a number", parameter.min,
                      parameter.max);
  }
  if (*index < kOwn) {
    parameters_[*index].value = value;
  } else {
    policy_->set_parameter(*index - kOwn, value);
  }
  return {};
}

Result<double> Tiering::get(std::string_view name) const {
  const std::vector<Parameter> all = parameters();
  const auto index = find(all, name);
  if (!index) return index.error();
  return all[*index].value;
}

TieringStats Tiering::stats() const {
  TieringStats stats = stats_;
  stats.pages = placement_.pages();
  stats.fast_pages = placement_.fast_pages();
  stats.tracked_pages = policy_->tracked_pages();
  stats.memory = Bytes{policy_->memory_bytes()};
  return stats;
}

}  // namespace kintsugi
