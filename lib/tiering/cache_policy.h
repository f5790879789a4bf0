// SPDX-License-Identifier: GPL-2.0-or-later
// Algorithms made for caches, as tiering policies: the fast tier is the cache, and a page seen
// written is a request for it.
#pragma once

#include <cstdint>
#include <vector>

#include "tiering/page_pool.h"
#include "tiering/policy.h"

namespace kintsugi {

// A cache fetches what it misses at once; a tier does so at the next decision. So pages that are
// missed gather as arrivals. At a decision, in the order in which they came, each takes the place
// of what the algorithm would evict. Arrivals beyond the limit are forgotten, and arrive anew when
// they are written again.
//
// At the start the cache is full of pages that were never requested: those go first, by address.
class CachePolicy : public TieringPolicy {
 public:
  void begin_scan(std::int64_t /*now_ms*/) override {}
  void written(std::uint64_t group, std::uint64_t bits) override;
  void decide(std::size_t limit, std::vector<SwapPair>& out) override;
  void swapped(const SwapPair& pair) override;
  void refused(const SwapPair& pair) override;
  void placement_changed(PageIndex first, PageCount count) override;
  [[nodiscard]] std::size_t tracked_pages() const override { return pool_.size(); }
  [[nodiscard]] std::size_t memory_bytes() const override { return pool_.bytes(); }

 protected:
  enum List : std::uint8_t { kArriving, kTaken, kGhost, kFirst, kSecond, kThird, kLists };

  struct Entry {
    NodeId prev = kNoNode;
    NodeId next = kNoNode;
    List list = kArriving;
    std::uint8_t hits = 0;  // of an arrival, since the last decision
    bool was_ghost = false;
    bool from_first = false;  // of a page in kTaken: where it was
  };

  explicit CachePolicy(const Placement& placement) : placement_(placement) {}

  // Every request, before any of those below.
  virtual void requested(PageIndex /*page*/) {}
  // A page of the cache was requested.
  virtual void hit(NodeId id) = 0;
  // The page is in the cache now: into a list.
  virtual void admit(NodeId id) = 0;
  // Whether the algorithm lets the page in at all.
  virtual bool wanted(PageIndex /*arrival*/) { return true; }
  // Which page of the cache is to go for `arrival`: of the algorithm's lists; kNoNode if there is
  // none in them.
  virtual NodeId victim(PageIndex arrival) = 0;
  // The page has left the cache: into kGhost, say. False: to be forgotten.
  virtual bool keep_evicted(NodeId /*id*/) { return false; }

  void move_to_back(NodeId id, List list);
  [[nodiscard]] std::size_t size_of(List list) const { return lists_[list].size(); }
  [[nodiscard]] NodeId oldest(List list) const { return lists_[list].head(); }
  // Arrivals that have been paired, and are not in the cache yet.
  [[nodiscard]] std::size_t on_their_way() const { return lists_[kTaken].size() / 2; }
  [[nodiscard]] std::uint64_t capacity() const { return placement_.fast_pages().value; }
  void forget(NodeId id);

  PagePool<Entry> pool_;

 private:
  NodeId add(PageIndex page, List list);
  NodeId take_untouched();
  NodeId take_victim(PageIndex page);
  [[nodiscard]] std::vector<NodeId> arrivals() const;

  const Placement& placement_;
  PageList<Entry> lists_[kLists];
  PageIndex untouched_from_;
};

// S3-FIFO (Yang, Zhang, Qiu, Yue, Vinayak: FIFO queues are all you need for cache eviction, SOSP
// 2023, algorithm 1). A small queue of a tenth of the cache, a main queue, and a ghost queue of
// pages that left the small one. Requests are counted up to 3. What leaves the small queue goes to
// the main one if it was requested more than once since, else to the ghosts; what is at the end of
// the main queue goes round again for each request. A ghost that is requested enters the main
// queue.
class S3FifoPolicy final : public CachePolicy {
 public:
  explicit S3FifoPolicy(const Placement& placement) : CachePolicy(placement) {}

 protected:
  void hit(NodeId id) override;
  void admit(NodeId id) override;
  NodeId victim(PageIndex arrival) override;
  bool keep_evicted(NodeId id) override;

 private:
  NodeId victim_of_small();
  NodeId victim_of_main();
};

// W-TinyLFU (Einziger, Friedman, Manes: TinyLFU, a highly efficient cache admission policy, ACM TOS
// 2017). An LRU window of 1 % of the cache takes what arrives. What falls out of it competes with
// the page next to leave the main part: the one with fewer requests goes. The main part is a
// segmented LRU, 80 % of it for pages requested again while in it. Requests are counted by a
// count-min sketch of 4-bit counters, which are halved after 10 requests a page of the cache.
class WTinyLfuPolicy final : public CachePolicy {
 public:
  explicit WTinyLfuPolicy(const Placement& placement) : CachePolicy(placement) {}

  [[nodiscard]] std::size_t memory_bytes() const override {
    return CachePolicy::memory_bytes() + sketch_.size();
  }
  // For tests: requests as the sketch has them, 0 to 15.
  [[nodiscard]] unsigned estimate(PageIndex page) const;

 protected:
  void requested(PageIndex page) override;
  void hit(NodeId id) override;
  void admit(NodeId id) override;
  bool wanted(PageIndex arrival) override;
  NodeId victim(PageIndex arrival) override;

 private:
  [[nodiscard]] bool window_is_full() const;
  [[nodiscard]] NodeId next_of_main() const;
  static constexpr unsigned kRows = 4;
  [[nodiscard]] std::size_t slot(PageIndex page, unsigned row) const;
  void grow_sketch();

  std::vector<std::uint8_t> sketch_;  // kRows rows, a counter a byte
  std::uint64_t requests_ = 0;
};

}  // namespace kintsugi
