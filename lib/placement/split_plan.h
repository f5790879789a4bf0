// SPDX-License-Identifier: GPL-2.0-or-later
// Which host gets which chunk of a VM that is split (P1 4-4).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

class AccessHistory;

// Bounds of what can be planned, and of what decode() believes: 64 TiB, and a plan of 1 GiB.
inline constexpr PageCount kMaxPlanPages{std::uint64_t{1} << 34};
inline constexpr std::uint64_t kMaxPlanChunks = std::uint64_t{1} << 30;

// Fills `out` with the ranks of consecutive chunks from `first` on; higher is hotter. An empty
// function means that nothing is known: all chunks are equal.
using RankSource = std::function<void(ChunkIndex first, std::span<std::uint16_t> out)>;

struct SplitRequest {
  PageCount pages;        // of the VM
  PageCount chunk_pages;  // a power of two
  PageCount main_capacity;
  std::vector<PageCount> server_capacities;  // of server 1, 2, ...; at most kMaxServers
};

// The owner of every chunk: one byte a chunk (32 MiB for 2 TiB in chunks of 64 KiB). Immutable once
// made, so any thread may read it.
class SplitPlan {
 public:
  [[nodiscard]] PageCount pages() const { return pages_; }
  [[nodiscard]] PageCount chunk_pages() const {
    return PageCount{std::uint64_t{1} << chunk_shift_};
  }
  // Chunks; the last may be partial.
  [[nodiscard]] std::uint64_t chunks() const { return owners_.size(); }
  // Sub-hosts; their ids are 1..servers().
  [[nodiscard]] unsigned servers() const { return pages_on_.size() - 1; }

  // kMainHost, or the server; the page or chunk must exist.
  [[nodiscard]] ServerId owner(PageIndex page) const {
    return ServerId{owners_[page.value >> chunk_shift_]};
  }
  [[nodiscard]] ServerId owner(ChunkIndex chunk) const { return ServerId{owners_[chunk.value]}; }
  // Pages planned for the main host or a server.
  [[nodiscard]] PageCount pages_on(ServerId owner) const { return pages_on_[owner.value]; }

  // Calls fn(ServerId, PageIndex first, PageCount count) for each longest run of one owner, in
  // order; together they are all the pages.
  template <typename Fn>
  void for_each_run(Fn&& fn) const {
    for_each_chunk_run([&](std::uint8_t owner, std::uint64_t first, std::uint64_t count) {
      const std::uint64_t page = first << chunk_shift_;
      fn(ServerId{owner}, PageIndex{page},
         PageCount{std::min(count << chunk_shift_, pages_.value - page)});
    });
  }

  // Appends the plan to `out`; little-endian, byte by byte:
  //
  //    0  4  magic 0x4c50534b ("KSPL")
  //    4  2  version, 1
  //    6  1  log2 of the pages of a chunk, 0..15
  //    7  1  servers, 0..63
  //    8  8  pages of the VM
  //   16  .  runs until all chunks are named, each a LEB128 number: (chunks - 1) << 6 | owner
  //
  // Numbers are as short as they can be and neighbouring runs have different owners, so equal plans
  // have equal bytes. Never longer than 16 bytes and one for each chunk.
  void encode(std::vector<std::uint8_t>& out) const;
  // What encode() wrote, and exactly that. Nothing in `bytes` is trusted: a plan for more than
  // `max_pages` is refused before memory is allocated for it, and so is any byte missing, left over
  // or not as above. Has no side effects: the fuzzer's entry.
  static Result<SplitPlan> decode(std::span<const std::uint8_t> bytes,
                                  PageCount max_pages = kMaxPlanPages);

  bool operator==(const SplitPlan&) const = default;

 private:
  friend Result<SplitPlan> plan_split(const SplitRequest& request, const RankSource& ranks);

  SplitPlan(PageCount pages, unsigned chunk_shift, unsigned servers)
      : pages_(pages), chunk_shift_(chunk_shift), pages_on_(servers + 1) {}

  void count_pages();

  template <typename Fn>
  void for_each_chunk_run(Fn&& fn) const {
    for (std::size_t first = 0; first < owners_.size();) {
      std::size_t end = first + 1;
      while (end < owners_.size() && owners_[end] == owners_[first]) ++end;
      fn(owners_[first], first, end - first);
      first = end;
    }
  }

  PageCount pages_;
  unsigned chunk_shift_;
  std::vector<std::uint8_t> owners_;
  std::vector<PageCount> pages_on_;
};

// Plans a split, in time linear in the number of chunks.
//
// The main host is filled with the hottest chunks; among equals the one with the lower index wins,
// so equal chunks stay in one run and the same history gives the same plan.
//
// What is left goes to the sub-hosts in proportion to their capacity, dealt in index order in
// extents of 64 MiB. In proportion, because every sub-host's link and CPU then share the page-ins,
// and none runs full (and refuses page-outs) before the others. In extents, because a chunk's
// neighbours are fetched together and stay in one request stream, while a working set that wanders
// over some GiB still draws on all servers; one giant run a server would load them one at a time,
// and dealing single chunks would make the plan and its encoding as long as the VM.
//
// Capacities count in whole chunks. A partial last chunk takes the room of a whole one, unless only
// the odd pages of some host can hold it.
//
// Errors (each names what to change): chunk size not a power of two or too small for such a VM, no
// pages, too many servers, a host with less than a chunk, capacities that do not add up.
[[nodiscard]] Result<SplitPlan> plan_split(const SplitRequest& request, const RankSource& ranks);

// Ranks by a VM's access history, whatever that history's own chunk size. It must outlive the
// source.
[[nodiscard]] RankSource ranks_of(const AccessHistory& history, PageCount chunk_pages);

}  // namespace kintsugi
