// SPDX-License-Identifier: GPL-2.0-or-later
// What a policy remembers of the pages it tracks: nodes found by page, and lists of nodes.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/types.h"

namespace kintsugi {

using NodeId = std::uint32_t;
inline constexpr NodeId kNoNode = 0xffffffff;

// Nodes of pages, found by a hash table with chains. A page that is not in the pool costs nothing;
// one that is costs 8 bytes, its payload, and 2 to 4 bytes of table. What was erased is used again
// but not given back, so memory follows the most pages that were ever tracked at once.
//
// Runs of pages of one 64-page group lie side by side in the table, as scans find them; where a
// group lies is hashed, so that no stride of a guest's fills one chain. Who knows the hash can.
//
// Pages are below kMaxTieringPages. insert() may throw std::bad_alloc and then changes nothing.
template <typename Payload>
class PagePool {
 public:
  [[nodiscard]] NodeId find(PageIndex page) const {
    if (buckets_.empty()) return kNoNode;
    const auto key = static_cast<std::uint32_t>(page.value);
    NodeId id = buckets_[bucket_of(key)];
    while (id != kNoNode && node(id).page != key) id = node(id).chain;
    return id;
  }

  // A node for a page that has none; its payload is that of `Payload{}`.
  NodeId insert(PageIndex page) {
    assert(find(page) == kNoNode && page.value < kNoPage);
    if (size_ >= kChainPages * buckets_.size()) grow_table();
    if (free_ == kNoNode) grow_nodes();
    const NodeId id = free_;
    Node& n = node(id);
    free_ = n.chain;
    n.page = static_cast<std::uint32_t>(page.value);
    n.payload = Payload{};
    NodeId& bucket = buckets_[bucket_of(n.page)];
    n.chain = bucket;
    bucket = id;
    ++size_;
    return id;
  }

  void erase(NodeId id) {
    Node& n = node(id);
    NodeId* link = &buckets_[bucket_of(n.page)];
    while (*link != id) link = &node(*link).chain;
    *link = n.chain;
    n.page = kNoPage;
    n.chain = free_;
    free_ = id;
    --size_;
  }

  Payload& operator[](NodeId id) { return node(id).payload; }
  const Payload& operator[](NodeId id) const { return node(id).payload; }
  [[nodiscard]] PageIndex page(NodeId id) const { return PageIndex{node(id).page}; }

  // Calls f(id) for each node, which may erase that node. No insertion meanwhile.
  template <typename F>
  void for_each(F&& f) {
    for (NodeId id = 0; id < blocks_.size() * kBlockNodes; ++id) {
      if (node(id).page != kNoPage) f(id);
    }
  }

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::size_t bytes() const {
    return blocks_.size() * sizeof(Block) + buckets_.capacity() * sizeof(NodeId);
  }

 private:
  static constexpr std::uint32_t kNoPage = 0xffffffff;
  static constexpr std::size_t kBlockNodes = 1024;
  static constexpr std::size_t kFirstBuckets = 1024;
  static constexpr std::size_t kChainPages = 2;  // of a chain, on the average, at most

  struct Node {
    std::uint32_t page = kNoPage;
    NodeId chain = kNoNode;  // the next of its bucket, or of the free ones
    Payload payload{};
  };
  using Block = std::array<Node, kBlockNodes>;

  Node& node(NodeId id) { return (*blocks_[id / kBlockNodes])[id % kBlockNodes]; }
  const Node& node(NodeId id) const { return (*blocks_[id / kBlockNodes])[id % kBlockNodes]; }

  [[nodiscard]] std::size_t bucket_of(std::uint32_t page) const {
    const std::uint64_t group = (page / 64 + std::uint64_t{1}) * 0x9e3779b97f4a7c15;
    return (page + (group >> 32)) & (buckets_.size() - 1);
  }

  void grow_nodes() {
    assert(blocks_.size() < kNoNode / kBlockNodes);
    blocks_.push_back(std::make_unique<Block>());
    const auto first = static_cast<NodeId>((blocks_.size() - 1) * kBlockNodes);
    for (std::size_t i = kBlockNodes; i-- > 0;) {
      node(first + i).chain = free_;
      free_ = first + i;
    }
  }

  void grow_table() {
    std::vector<NodeId> larger(buckets_.empty() ? kFirstBuckets : buckets_.size() * 2, kNoNode);
    std::swap(larger, buckets_);
    for_each([this](NodeId id) {
      NodeId& bucket = buckets_[bucket_of(node(id).page)];
      node(id).chain = bucket;
      bucket = id;
    });
  }

  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<NodeId> buckets_;
  NodeId free_ = kNoNode;
  std::size_t size_ = 0;
};

// A list of nodes of one pool, oldest at the head. The payload has members `prev` and `next` and is
// in one list at most.
template <typename Payload>
class PageList {
 public:
  using Pool = PagePool<Payload>;

  [[nodiscard]] NodeId head() const { return head_; }
  [[nodiscard]] NodeId tail() const { return tail_; }
  [[nodiscard]] std::size_t size() const { return size_; }

  void push_back(Pool& pool, NodeId id) {
    pool[id].prev = tail_;
    pool[id].next = kNoNode;
    (tail_ == kNoNode ? head_ : pool[tail_].next) = id;
    tail_ = id;
    ++size_;
  }
  void push_front(Pool& pool, NodeId id) {
    pool[id].next = head_;
    pool[id].prev = kNoNode;
    (head_ == kNoNode ? tail_ : pool[head_].prev) = id;
    head_ = id;
    ++size_;
  }
  void remove(Pool& pool, NodeId id) {
    const NodeId prev = pool[id].prev;
    const NodeId next = pool[id].next;
    (prev == kNoNode ? head_ : pool[prev].next) = next;
    (next == kNoNode ? tail_ : pool[next].prev) = prev;
    --size_;
  }

 private:
  NodeId head_ = kNoNode;
  NodeId tail_ = kNoNode;
  std::size_t size_ = 0;
};

}  // namespace kintsugi
