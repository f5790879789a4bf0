// SPDX-License-Identifier: GPL-2.0-or-later
// Chooses what to evict: the coldest chunks by the access history (P1 4-4).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pager/core.h"

namespace kintsugi {

// One pass over the chunks ranks them all by counting, and yields a batch of victims, so that the
// pass is paid for once for many. Among equals it goes round. Chunks paged in not long ago are left
// alone while there are others. A VM of more chunks than kPassChunks is looked at a part at a time.
class VictimPicker {
 public:
  static constexpr std::uint64_t kPassChunks = 1U << 20;
  static constexpr std::size_t kMaxBatch = 4096;
  static constexpr std::uint64_t kForgive_ns = 100'000'000;

  explicit VictimPicker(PagerCore& core);
  // E. Nothing when no chunk has a page that could go.
  [[nodiscard]] std::optional<ChunkIndex> next();
  // The kernel gave no page of it (they are pinned, say): left alone for a while.
  void refused(ChunkIndex chunk, std::uint64_t now_ns);
  // To be called once in a while.
  void forgive(std::uint64_t now_ns);

 private:
  struct Victim {
    std::uint16_t rank = 0;
    std::uint32_t order = 0;  // among equals
    std::uint64_t chunk = 0;
  };

  void pass(bool spare_recent);
  [[nodiscard]] bool candidate(std::uint64_t chunk, bool spare_recent) const;

  PagerCore& core_;
  const std::uint64_t chunks_;
  std::vector<std::uint16_t> ranks_;  // of the part looked at
  std::vector<bool> candidates_;
  std::vector<std::uint32_t> histogram_;
  std::vector<Victim> batch_;  // coldest first
  std::size_t taken_ = 0;      // of batch_
  std::uint64_t hand_ = 0;
  RecentChunks refused_;
  std::uint64_t forgive_ns_ = 0;  // 0: none is refused
  bool spared_recent_ = true;
};

}  // namespace kintsugi
