// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/page_pool.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <vector>

namespace kintsugi {
namespace {

struct Entry {
  NodeId prev = kNoNode;
  NodeId next = kNoNode;
  std::uint64_t number = 0;
};

// Against std::map: pages from a small range, so that they come and go.
RC_GTEST_PROP(PagePoolProperty, FindsWhatWasInsertedAndNothingElse, ()) {
  PagePool<Entry> pool;
  std::map<std::uint64_t, std::uint64_t> model;
  const auto steps = *rc::gen::container<std::vector<std::pair<std::uint64_t, bool>>>(
      rc::gen::pair(rc::gen::inRange<std::uint64_t>(0, 4000), rc::gen::arbitrary<bool>()));
  std::uint64_t number = 0;
  for (const auto& [page, insert] : steps) {
    // The stride leaves groups of 64 far apart too.
    const PageIndex index{page * 997};
    const NodeId id = pool.find(index);
    RC_ASSERT((id != kNoNode) == model.contains(page));
    if (insert && id == kNoNode) {
      pool[pool.insert(index)].number = model[page] = ++number;
    } else if (!insert && id != kNoNode) {
      pool.erase(id);
      model.erase(page);
    }
  }
  RC_ASSERT(pool.size() == model.size());
  for (const auto& [page, value] : model) {
    const NodeId id = pool.find(PageIndex{page * 997});
    RC_ASSERT(id != kNoNode);
    RC_ASSERT(pool[id].number == value);
  }
  std::size_t visited = 0;
  pool.for_each([&](NodeId id) {
    ++visited;
    RC_ASSERT(model.at(pool.page(id).value / 997) == pool[id].number);
  });
  RC_ASSERT(visited == model.size());
}

TEST(PagePool, GrowsAndUsesAgainWhatWasErased) {
  PagePool<Entry> pool;
  constexpr std::uint64_t kPages = 100'000;
  for (std::uint64_t i = 0; i < kPages; ++i) pool[pool.insert(PageIndex{i * 64})].number = i;
  const std::size_t bytes = pool.bytes();
  EXPECT_LE(bytes, kPages * 32 + 65536);
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const NodeId id = pool.find(PageIndex{i * 64});
    ASSERT_NE(kNoNode, id);
    ASSERT_EQ(i, pool[id].number);
    pool.erase(id);
  }
  EXPECT_EQ(0U, pool.size());
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const NodeId id = pool.insert(PageIndex{i});
    ASSERT_EQ(0U, pool[id].number) << "a node that was used before has a fresh payload";
  }
  EXPECT_EQ(bytes, pool.bytes());
}

RC_GTEST_PROP(PageListProperty, IsAList, ()) {
  PagePool<Entry> pool;
  PageList<Entry> list;
  std::list<NodeId> model;
  for (const auto step : *rc::gen::arbitrary<std::vector<std::uint8_t>>()) {
    if (step % 4 == 0 && !model.empty()) {
      const auto at = std::next(model.begin(), step / 4 % model.size());
      list.remove(pool, *at);
      model.erase(at);
    } else {
      const NodeId id = pool.insert(PageIndex{pool.size()});
      if (step % 4 == 1) {
        list.push_front(pool, id);
        model.push_front(id);
      } else {
        list.push_back(pool, id);
        model.push_back(id);
      }
    }
    RC_ASSERT(list.size() == model.size());
    std::vector<NodeId> forth;
    for (NodeId id = list.head(); id != kNoNode; id = pool[id].next) forth.push_back(id);
    std::vector<NodeId> back;
    for (NodeId id = list.tail(); id != kNoNode; id = pool[id].prev) back.push_back(id);
    RC_ASSERT(std::equal(forth.begin(), forth.end(), model.begin(), model.end()));
    RC_ASSERT(std::equal(back.begin(), back.end(), model.rbegin(), model.rend()));
  }
}

}  // namespace
}  // namespace kintsugi
