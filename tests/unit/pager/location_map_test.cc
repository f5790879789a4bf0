// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/location_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <atomic>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "placement/split_plan.h"

namespace kintsugi {
namespace {

using ::testing::HasSubstr;

constexpr PageIndex kPage{5};

LocationMap make(std::uint64_t pages) {
  auto made = LocationMap::create(PageCount{pages});
  EXPECT_TRUE(made.ok());
  return std::move(*made);
}

TEST(LocationMap, StartsLocalInTwoBytesAPage) {
  EXPECT_FALSE(LocationMap::create(PageCount{0}).ok());
  const LocationMap map = make(1ULL << 29);  // 2 TiB, and no memory is needed for it
  EXPECT_EQ(Bytes{2ULL << 29}, map.memory_at_rest());
  EXPECT_EQ(PageEntry::of(PageState::kLocal), map.load(PageIndex{(1ULL << 29) - 1}));
  EXPECT_EQ(0, PageEntry::of(PageState::kLocal).bits);
}

TEST(LocationMap, EntriesHoldEveryServer) {
  LocationMap map = make(64);
  for (std::uint8_t server = 1; server <= kMaxServers; ++server) {
    const PageIndex page{server};
    map.set_remote(page, PageCount{1}, ServerId{server});
    EXPECT_EQ(PageState::kRemote, map.load(page).state());
    EXPECT_EQ(ServerId{server}, map.load(page).server());
    const PageClaim claim = map.try_begin_urgent(page);
    EXPECT_TRUE(claim);
    EXPECT_EQ(ServerId{server}, claim.seen.server());
    EXPECT_EQ(ServerId{server}, map.load(page).server());
    EXPECT_EQ(PageState::kRemote, map.load(page).state());
    EXPECT_TRUE(map.load(page).urgent());
    EXPECT_FALSE(map.load(page).prefetch());
  }
}

TEST(LocationMap, TakesThePlacesOfAPlan) {
  const auto plan = plan_split({.pages = PageCount{20},
                                .chunk_pages = PageCount{4},
                                .main_capacity = PageCount{8},
                                .server_capacities = {PageCount{8}, PageCount{8}}},
                               {});
  ASSERT_TRUE(plan.ok());
  LocationMap map = make(20);
  map.set_remote(PageIndex{0}, PageCount{20}, ServerId{7});
  ASSERT_TRUE(map.init_from(*plan).ok());
  for (std::uint64_t page = 0; page < 20; ++page) {
    const ServerId owner = plan->owner(PageIndex{page});
    EXPECT_EQ(owner == kMainHost ? PageEntry::of(PageState::kLocal)
                                 : PageEntry::of(PageState::kRemote, owner),
              map.load(PageIndex{page}));
  }
  LocationMap other = make(21);
  EXPECT_THAT(other.init_from(*plan).error().message, HasSubstr("20 pages, this VM has 21"));
}

TEST(LocationMap, SetZeroLeavesLocalPagesAndCutsAtTheEnd) {
  LocationMap map = make(10);
  map.set_remote(PageIndex{4}, PageCount{4}, ServerId{1});
  EXPECT_EQ(PageCount{2}, map.set_zero(PageIndex{6}, PageCount{~0ULL}));
  EXPECT_EQ(PageState::kRemote, map.load(PageIndex{5}).state());
  EXPECT_EQ(PageEntry::of(PageState::kZero), map.load(PageIndex{7}));
  EXPECT_EQ(PageState::kLocal, map.load(PageIndex{8}).state());
  EXPECT_EQ(PageCount{0}, map.set_zero(PageIndex{100}, PageCount{1}));
  map.set_local(PageIndex{0}, PageCount{100});
  EXPECT_EQ(PageState::kLocal, map.load(PageIndex{7}).state());
}

TEST(LocationMap, AFaultFetchesARemotePage) {
  LocationMap map = make(10);
  map.set_remote(kPage, PageCount{1}, ServerId{3});
  const PageClaim claim = map.try_begin_urgent(kPage);
  ASSERT_TRUE(claim);
  EXPECT_EQ(PageEntry::of(PageState::kRemote, ServerId{3}), claim.seen);
  EXPECT_FALSE(map.try_begin_urgent(kPage));
  EXPECT_FALSE(map.try_begin_prefetch(kPage));
  EXPECT_TRUE(map.complete_urgent(kPage));
  EXPECT_FALSE(map.complete_urgent(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kLocal), map.load(kPage));
}

// The rule the flags are for: an answer asked for before an eviction is never installed after it.
TEST(LocationMap, NoEvictionWhileAnOldAnswerMayStillCome) {
  LocationMap map = make(10);
  map.set_remote(kPage, PageCount{1}, ServerId{3});
  ASSERT_TRUE(map.try_begin_prefetch(kPage));
  ASSERT_TRUE(map.try_begin_urgent(kPage));  // a fault does not wait for the prefetch
  EXPECT_TRUE(map.complete_urgent(kPage));
  EXPECT_EQ(PageState::kLocal, map.load(kPage).state());
  EXPECT_FALSE(map.try_begin_evict(kPage, ServerId{3}));
  EXPECT_FALSE(map.try_begin_evict_wp(kPage, ServerId{3}));
  EXPECT_FALSE(map.complete_prefetch(kPage));  // late, and dropped
  EXPECT_TRUE(map.try_begin_evict(kPage, ServerId{3}));
}

TEST(LocationMap, APrefetchMayComeFirst) {
  LocationMap map = make(10);
  map.set_remote(kPage, PageCount{1}, ServerId{3});
  ASSERT_TRUE(map.try_begin_prefetch(kPage));
  ASSERT_TRUE(map.try_begin_urgent(kPage));
  EXPECT_TRUE(map.complete_prefetch(kPage));
  EXPECT_FALSE(map.try_begin_evict(kPage, ServerId{3}));
  EXPECT_FALSE(map.complete_urgent(kPage));
  EXPECT_TRUE(map.try_begin_evict(kPage, ServerId{3}));
}

TEST(LocationMap, AbandoningLeavesThePageWhereItWas) {
  LocationMap map = make(10);
  map.set_remote(kPage, PageCount{1}, ServerId{3});
  ASSERT_TRUE(map.try_begin_urgent(kPage));
  EXPECT_TRUE(map.abandon_urgent(kPage));
  EXPECT_FALSE(map.abandon_urgent(kPage));
  ASSERT_TRUE(map.try_begin_prefetch(kPage));
  EXPECT_TRUE(map.abandon_prefetch(kPage));
  EXPECT_FALSE(map.abandon_prefetch(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kRemote, ServerId{3}), map.load(kPage));
}

// A zero page, and a page never populated, are claimed as well while they are filled.
TEST(LocationMap, ZeroAndUnpopulatedPagesAreClaimed) {
  LocationMap map = make(10);
  map.set_remote(kPage, PageCount{1}, ServerId{3});
  map.set_zero(kPage, PageCount{1});
  EXPECT_FALSE(map.try_begin_prefetch(kPage));
  ASSERT_TRUE(map.try_begin_urgent(kPage));
  EXPECT_TRUE(map.complete_urgent(kPage));
  const PageClaim again = map.try_begin_urgent(kPage);
  ASSERT_TRUE(again);
  EXPECT_EQ(PageState::kLocal, again.seen.state());
  EXPECT_FALSE(map.try_begin_evict(kPage, ServerId{1}));
  EXPECT_FALSE(map.complete_urgent(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kLocal), map.load(kPage));
}

TEST(LocationMap, AFaultTakesAPageBackFromTheQueue) {
  LocationMap map = make(10);
  ASSERT_TRUE(map.try_begin_evict(kPage, ServerId{2}));
  ASSERT_TRUE(map.unmapped(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kEvicting, ServerId{2}), map.load(kPage));
  const PageClaim claim = map.try_begin_urgent(kPage);
  ASSERT_TRUE(claim);
  EXPECT_EQ(PageState::kEvicting, claim.seen.state());
  EXPECT_FALSE(map.finish_evict(kPage));  // the server's acknowledgment comes too late
  EXPECT_FALSE(map.finish_evict_zero(kPage));
  EXPECT_TRUE(map.complete_urgent(kPage));
  EXPECT_FALSE(map.finish_evict(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kLocal), map.load(kPage));
}

TEST(LocationMap, EvictionEndsRemoteOrZero) {
  LocationMap map = make(10);
  ASSERT_TRUE(map.try_begin_evict(kPage, ServerId{2}));
  EXPECT_FALSE(map.try_begin_evict(kPage, ServerId{2}));
  EXPECT_FALSE(map.finish_evict(kPage));
  ASSERT_TRUE(map.unmapped(kPage));
  EXPECT_FALSE(map.unmapped(kPage));
  EXPECT_TRUE(map.finish_evict(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kRemote, ServerId{2}), map.load(kPage));
  EXPECT_FALSE(map.finish_evict(kPage));

  const PageIndex other{6};
  ASSERT_TRUE(map.try_begin_evict(other, ServerId{2}));
  ASSERT_TRUE(map.unmapped(other));
  EXPECT_TRUE(map.finish_evict_zero(other));
  EXPECT_EQ(PageEntry::of(PageState::kZero), map.load(other));
}

// An event read late must not put a page back that is about to be discarded.
TEST(LocationMap, NobodyTouchesAPageThatIsBeingUnmapped) {
  LocationMap map = make(10);
  ASSERT_TRUE(map.try_begin_evict(kPage, ServerId{2}));
  EXPECT_EQ(PageEntry::of(PageState::kUnmapping, ServerId{2}), map.load(kPage));
  EXPECT_FALSE(map.try_begin_urgent(kPage));
  EXPECT_FALSE(map.try_begin_prefetch(kPage));
  EXPECT_FALSE(map.cancel_evict_wp(kPage));
  EXPECT_TRUE(map.cancel_evict(kPage));  // the MOVE was refused
  EXPECT_FALSE(map.cancel_evict(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kLocal), map.load(kPage));
}

TEST(LocationMap, AWriteTakesAProtectedPageBackUntilTheDiscardIsCommitted) {
  LocationMap map = make(10);
  ASSERT_TRUE(map.try_begin_evict_wp(kPage, ServerId{2}));
  EXPECT_FALSE(map.try_begin_urgent(kPage));
  EXPECT_FALSE(map.finish_evict(kPage));
  EXPECT_FALSE(map.cancel_evict(kPage));
  EXPECT_TRUE(map.cancel_evict_wp(kPage));
  EXPECT_FALSE(map.commit_discard(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kLocal), map.load(kPage));

  ASSERT_TRUE(map.try_begin_evict_wp(kPage, ServerId{2}));
  EXPECT_TRUE(map.commit_discard(kPage));
  EXPECT_FALSE(map.cancel_evict_wp(kPage));
  EXPECT_FALSE(map.try_begin_urgent(kPage));
  EXPECT_TRUE(map.unmapped(kPage));
  EXPECT_EQ(PageEntry::of(PageState::kEvicting, ServerId{2}), map.load(kPage));
  EXPECT_TRUE(map.finish_evict(kPage));
}

// The same rules written as a table: what each operation does to (state, server, flags).
struct ModelEntry {
  PageState state = PageState::kLocal;
  std::uint8_t server = 0;
  bool urgent = false;
  bool prefetch = false;
};

enum Op {
  kBeginUrgent,
  kCompleteUrgent,
  kAbandonUrgent,
  kBeginPrefetch,
  kCompletePrefetch,
  kAbandonPrefetch,
  kBeginEvict,
  kCancelEvict,
  kBeginEvictWp,
  kCancelEvictWp,
  kCommitDiscard,
  kUnmapped,
  kFinishEvict,
  kFinishEvictZero,
  kOps
};

bool apply(ModelEntry& e, int op, std::uint8_t server) {
  const bool idle = !e.urgent && !e.prefetch;
  const auto go = [&](bool allowed, PageState state, std::uint8_t to) {
    if (allowed) e.state = state, e.server = to;
    return allowed;
  };
  const auto finish = [&](bool& flag) {
    if (!flag) return false;
    flag = false;
    const bool was_away = e.state != PageState::kLocal;
    go(true, PageState::kLocal, 0);
    return was_away;
  };
  const auto drop = [](bool& flag) { return std::exchange(flag, false); };
  switch (op) {
    case kBeginUrgent:
      if (e.urgent || e.state == PageState::kEvictingWp || e.state == PageState::kUnmapping) {
        return false;
      }
      return e.urgent = true;
    case kCompleteUrgent:
      return finish(e.urgent);
    case kAbandonUrgent:
      return drop(e.urgent);
    case kBeginPrefetch:
      if (!idle || e.state != PageState::kRemote) return false;
      return e.prefetch = true;
    case kCompletePrefetch:
      return finish(e.prefetch);
    case kAbandonPrefetch:
      return drop(e.prefetch);
    case kBeginEvict:
      return go(idle && e.state == PageState::kLocal, PageState::kUnmapping, server);
    case kCancelEvict:
      return go(e.state == PageState::kUnmapping, PageState::kLocal, 0);
    case kBeginEvictWp:
      return go(idle && e.state == PageState::kLocal, PageState::kEvictingWp, server);
    case kCancelEvictWp:
      return go(e.state == PageState::kEvictingWp, PageState::kLocal, 0);
    case kCommitDiscard:
      return go(e.state == PageState::kEvictingWp, PageState::kUnmapping, e.server);
    case kUnmapped:
      return go(e.state == PageState::kUnmapping, PageState::kEvicting, e.server);
    case kFinishEvict:
      return go(idle && e.state == PageState::kEvicting, PageState::kRemote, e.server);
    case kFinishEvictZero:
      return go(idle && e.state == PageState::kEvicting, PageState::kZero, 0);
    default:
      return false;
  }
}

bool apply(LocationMap& map, int op, PageIndex page, ServerId server) {
  switch (op) {
    case kBeginUrgent:
      return map.try_begin_urgent(page).claimed;
    case kCompleteUrgent:
      return map.complete_urgent(page);
    case kAbandonUrgent:
      return map.abandon_urgent(page);
    case kBeginPrefetch:
      return map.try_begin_prefetch(page).claimed;
    case kCompletePrefetch:
      return map.complete_prefetch(page);
    case kAbandonPrefetch:
      return map.abandon_prefetch(page);
    case kBeginEvict:
      return map.try_begin_evict(page, server);
    case kCancelEvict:
      return map.cancel_evict(page);
    case kBeginEvictWp:
      return map.try_begin_evict_wp(page, server);
    case kCancelEvictWp:
      return map.cancel_evict_wp(page);
    case kCommitDiscard:
      return map.commit_discard(page);
    case kUnmapped:
      return map.unmapped(page);
    case kFinishEvict:
      return map.finish_evict(page);
    case kFinishEvictZero:
      return map.finish_evict_zero(page);
    default:
      return false;
  }
}

RC_GTEST_PROP(LocationMapProperty, TransitionsAsTheModelDoes, ()) {
  constexpr std::uint64_t kPages = 4;
  LocationMap map = make(kPages);
  std::array<ModelEntry, kPages> model;
  map.set_remote(PageIndex{1}, PageCount{2}, ServerId{9});
  map.set_zero(PageIndex{2}, PageCount{1});
  model[1] = {PageState::kRemote, 9};
  model[2] = {PageState::kZero, 0};
  const auto ops = *rc::gen::container<std::vector<std::tuple<int, int, int>>>(rc::gen::tuple(
      rc::gen::inRange(0, static_cast<int>(kOps)), rc::gen::inRange(0, static_cast<int>(kPages)),
      rc::gen::inRange(1, static_cast<int>(kMaxServers) + 1)));
  for (const auto& [op, page, server] : ops) {
    const auto id = static_cast<std::uint8_t>(server);
    const PageIndex index{static_cast<std::uint64_t>(page)};
    RC_ASSERT(apply(map, op, index, ServerId{id}) == apply(model[page], op, id));
    const PageEntry entry = map.load(index);
    RC_ASSERT(entry.state() == model[page].state);
    RC_ASSERT(entry.server().value == model[page].server);
    RC_ASSERT(entry.urgent() == model[page].urgent);
    RC_ASSERT(entry.prefetch() == model[page].prefetch);
  }
}

// A pager in miniature: what a page holds is a number, "memory" and "server" are arrays of them
// that are only safe to touch because of the map's rules. The fault thread reads and writes pages,
// the prefetcher fetches, the evictor evicts both ways. A lost or stale content is a wrong number,
// and a broken rule is a data race that TSan sees.
class Miniature {
 public:
  static constexpr std::uint64_t kPages = 4;  // few, so that the threads meet
  static constexpr int kNothing = -1;

  Miniature() : map_(make(kPages)), memory_(kPages), server_(kPages), queue_(kPages) {
    map_.set_remote(PageIndex{0}, PageCount{kPages}, ServerId{1});
    for (auto& cell : memory_) cell = kNothing;
    for (auto& cell : server_) cell = 0;
  }

  // The guest and the fault thread in one; a fault is tried at any state, as late events are. Page
  // `p` holds `expected`, and is to hold one more.
  void fault_and_write(std::uint64_t p, int& expected) {
    const PageIndex page{p};
    // Bounded: the other threads finish what they hold in a few steps.
    for (int attempt = 0; attempt < 1'000'000; ++attempt) {
      const PageEntry seen = map_.load(page);
      if (seen.state() == PageState::kEvictingWp) {
        (void)map_.cancel_evict_wp(page);
        continue;
      }
      const PageClaim claim = map_.try_begin_urgent(page);
      if (!claim) {
        std::this_thread::yield();
        continue;
      }
      int content = kNothing;
      switch (claim.seen.state()) {
        case PageState::kRemote:
          content = server_[p].load();
          break;
        case PageState::kEvicting:
          content = queue_[p].load();
          ASSERT_EQ(kNothing, memory_[p].load());
          break;
        case PageState::kZero:
          content = 0;
          break;
        default:
          break;
      }
      int none = kNothing;
      if (content != kNothing) memory_[p].compare_exchange_strong(none, content);  // EEXIST is fine
      ASSERT_EQ(expected, memory_[p].load()) << "page " << p;
      memory_[p] = ++expected;
      (void)map_.complete_urgent(page);
      return;
    }
    FAIL() << "page " << p << " never became local";
  }

  void prefetch(std::uint64_t p) {
    const PageIndex page{p};
    if (!map_.try_begin_prefetch(page)) return;
    const int content = server_[p].load();
    std::this_thread::yield();  // the answer travels
    int none = kNothing;
    if (map_.load(page).state() != PageState::kLocal) {
      memory_[p].compare_exchange_strong(none, content);
    }
    prefetches += map_.complete_prefetch(page);
  }

  void evict(std::uint64_t p, bool write_protect) {
    const PageIndex page{p};
    if (write_protect) {
      if (!map_.try_begin_evict_wp(page, ServerId{1})) return;
      const int content = memory_[p].load();
      std::this_thread::yield();
      queue_[p] = content;
      if (!map_.commit_discard(page)) return;
      std::this_thread::yield();
      memory_[p] = kNothing;
    } else {
      if (!map_.try_begin_evict(page, ServerId{1})) return;
      if (p % 7 == 0) {  // pinned
        ASSERT_TRUE(map_.cancel_evict(page));
        return;
      }
      queue_[p] = memory_[p].exchange(kNothing);
    }
    ASSERT_TRUE(map_.unmapped(page));
    std::this_thread::yield();  // on its way to the server
    const int sent = queue_[p].load();
    const int before = server_[p].exchange(sent);
    if (map_.finish_evict(page)) {
      ++evictions;
    } else {
      server_[p] = before;
      ++taken_back;
    }
  }

  // How often the threads met.
  std::atomic<std::uint64_t> evictions{0};
  std::atomic<std::uint64_t> taken_back{0};
  std::atomic<std::uint64_t> prefetches{0};

 private:
  LocationMap map_;
  std::vector<std::atomic<int>> memory_;
  std::vector<std::atomic<int>> server_;
  std::vector<std::atomic<int>> queue_;
};

TEST(LocationMapThreads, NoContentIsLostOrStale) {
  // Until the threads have met often enough, and not for ever on a machine where they do not.
  constexpr std::uint64_t kMeetings = 3'000;
  constexpr int kMaxSteps = 100'000;
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  Miniature pager;
  std::atomic<bool> done{false};
  std::thread prefetcher([&] {
    std::mt19937 random(seed + 1);
    while (!done) pager.prefetch(random() % Miniature::kPages);
  });
  std::thread evictor([&] {
    std::mt19937 random(seed + 2);
    while (!done) pager.evict(random() % Miniature::kPages, random() % 2 == 0);
  });
  std::mt19937 random(seed);
  std::vector<int> expected(Miniature::kPages);
  for (int step = 0; step < kMaxSteps && !::testing::Test::HasFailure(); ++step) {
    if (pager.evictions > kMeetings && pager.taken_back > kMeetings / 10 &&
        pager.prefetches > kMeetings) {
      break;
    }
    const std::uint64_t page = random() % Miniature::kPages;
    pager.fault_and_write(page, expected[page]);
    for (unsigned idle = random() % 4; idle > 0; --idle) std::this_thread::yield();
  }
  done = true;
  prefetcher.join();
  evictor.join();
  std::printf("%llu evictions, %llu taken back, %llu prefetches\n",
              static_cast<unsigned long long>(pager.evictions.load()),
              static_cast<unsigned long long>(pager.taken_back.load()),
              static_cast<unsigned long long>(pager.prefetches.load()));
}

// Of threads that try the same step on the same page, exactly one succeeds.
TEST(LocationMapThreads, EachStepIsTakenOnce) {
  constexpr std::uint64_t kPages = 300'000;
  LocationMap map = make(kPages);
  map.set_remote(PageIndex{0}, PageCount{kPages}, ServerId{1});
  std::atomic<std::uint64_t> begun{0};
  std::atomic<std::uint64_t> completed{0};
  std::atomic<std::uint64_t> evicted{0};
  const auto work = [&] {
    for (std::uint64_t p = 0; p < kPages; ++p) {
      const PageIndex page{p};
      begun += map.try_begin_prefetch(page).claimed;
      completed += map.complete_prefetch(page);
      evicted += map.try_begin_evict(page, ServerId{2}) && map.unmapped(page);
    }
  };
  std::thread one(work);
  std::thread two(work);
  one.join();
  two.join();
  EXPECT_EQ(kPages, begun.load());
  EXPECT_EQ(kPages, completed.load());
  EXPECT_EQ(kPages, evicted.load());
  for (std::uint64_t p = 0; p < kPages; ++p) {
    EXPECT_EQ(PageEntry::of(PageState::kEvicting, ServerId{2}), map.load(PageIndex{p}));
  }
}

}  // namespace
}  // namespace kintsugi
