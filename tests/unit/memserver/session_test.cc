// SPDX-License-Identifier: GPL-2.0-or-later
// Sessions and their table: epochs, capacity, versions, orphans. What crosses the wire is in
// channel_test.
#include "memserver/session.h"

#include <thread>

#include "memserver/harness.h"

namespace kintsugi::memserver {
namespace {

using testing::open_request;
using testing::session_id;
using testing::small_arena;
using testing::Store;
using wire::Status;

// Publishes pages whose first byte is `content`.
Status put(Store* store, Session* session, std::uint64_t epoch, std::uint64_t page,
           std::uint32_t count, std::uint64_t version, std::uint8_t content = 0) {
  std::vector<SlotIndex> slots(count);
  AllocationHint hint;
  EXPECT_EQ(store->arena->allocate(slots, &hint), count);
  for (const SlotIndex slot : slots) *store->arena->page(slot) = content;
  const Session::Published p = session->publish(epoch, wire::PutPages(page, 0), version, slots);
  store->arena->free({slots.data(), p.unused});
  return p.status;
}

Session::GetAnswer get(Session* session, std::uint64_t epoch, std::uint64_t page,
                       std::vector<std::uint8_t>* out) {
  out->resize(session->get_payload_bound(1));
  return session->get(epoch, page, 1, out->data());
}

TEST(Session, OpenReservesWithinCapacityAndQuota) {
  SessionLimits limits;
  limits.quota = PageCount{600};
  Store store(small_arena(1000), limits);
  EXPECT_EQ(store.sessions->open(open_request(1, 601)).answer.status, Status::kQuota);
  EXPECT_EQ(store.sessions->open(open_request(1, 600)).answer.status, Status::kOk);
  EXPECT_EQ(store.sessions->open(open_request(1, 1)).answer.status, Status::kExists);
  EXPECT_EQ(store.sessions->open(open_request(2, 401)).answer.status, Status::kFull);
  EXPECT_EQ(store.sessions->open(open_request(2, 400)).answer.status, Status::kOk);
  EXPECT_EQ(store.sessions->open(open_request(3, 1)).answer.status, Status::kFull);
  EXPECT_EQ(store.sessions->reserved(), PageCount{1000});
}

TEST(Session, OpenRefusesFiguresOutOfRange) {
  Store store(small_arena());
  EXPECT_EQ(store.sessions->open(open_request(1, 0)).answer.status, Status::kBadRequest);
  EXPECT_EQ(store.sessions->open(open_request(1, 1, 0)).answer.status, Status::kBadRequest);
  EXPECT_EQ(store.sessions->open(open_request(1, 1, kMaxVmPages + 1)).answer.status,
            Status::kBadRequest);
  EXPECT_EQ(store.sessions->open(open_request(1, 1, 1, wire::kMaxTagBytes + 1)).answer.status,
            Status::kBadRequest);
  wire::OpenRequest request = open_request(1);
  request.reserved = 1;
  EXPECT_EQ(store.sessions->open(request).answer.status, Status::kBadRequest);
  // The biggest VM there may be costs addresses, not memory.
  EXPECT_EQ(store.sessions->open(open_request(1, 1, kMaxVmPages)).answer.status, Status::kOk);
}

TEST(Session, SessionsAreBounded) {
  Store store(small_arena());
  for (std::uint8_t i = 0; i < 8; i++) {
    ASSERT_EQ(store.sessions->open(open_request(i, 1)).answer.status, Status::kOk);
  }
  EXPECT_EQ(store.sessions->open(open_request(9, 1)).answer.status, Status::kTooMany);
  const std::shared_ptr<Session> one = store.sessions->find(session_id(3));
  ASSERT_EQ(one->end(1), Status::kOk);
  store.sessions->reclaim(one);
  EXPECT_EQ(store.sessions->open(open_request(9, 1)).answer.status, Status::kOk);
}

TEST(Session, ANameFromTheWireCannotHurtALog) {
  Store store(small_arena());
  wire::OpenRequest request = open_request(1);
  std::memset(request.name, 0x1b, sizeof(request.name));  // no end, all escapes
  const Sessions::Opened opened = store.sessions->open(request);
  EXPECT_EQ(opened.session->name(), std::string(63, '?'));
}

TEST(Session, EpochsFence) {
  Store store(small_arena());
  const std::shared_ptr<Session> s = store.sessions->open(open_request(1)).session;
  EXPECT_EQ(put(&store, s.get(), 1, 0, 1, 1), Status::kOk);
  EXPECT_EQ(s->attach(2).status, Status::kFenced);
  EXPECT_EQ(s->attach(1).status, Status::kOk);
  EXPECT_EQ(s->claim(0, false).status, Status::kFenced);  // must know the epoch
  EXPECT_EQ(s->claim(1, false).epoch, 2U);
  EXPECT_EQ(s->claim(0, true).epoch, 3U);  // or ask for an uncommitted one
  for (const std::uint64_t old : {0, 1, 2, 4}) {
    std::vector<std::uint8_t> out;
    std::uint64_t discarded = 0;
    EXPECT_EQ(put(&store, s.get(), old, 0, 1, 9), Status::kFenced);
    EXPECT_EQ(get(s.get(), old, 0, &out).status, Status::kFenced);
    EXPECT_EQ(s->discard(old, 0, 1, &discarded), Status::kFenced);
    EXPECT_EQ(s->commit(old), Status::kFenced);
    EXPECT_EQ(s->stat(old).status, Status::kFenced);
    EXPECT_EQ(s->end(old), Status::kFenced);
    EXPECT_EQ(discarded, 0U);
  }
  EXPECT_EQ(s->commit(3), Status::kOk);
  EXPECT_EQ(s->commit(3), Status::kOk);
  EXPECT_EQ(s->claim(0, true).status, Status::kCommitted);
  EXPECT_EQ(s->claim(3, false).epoch, 4U);  // a later migration
  EXPECT_EQ(s->figures().used_pages, 1U);
}

TEST(Session, CapacityIsPerSessionAndAPutIsAllOrNothing) {
  Store store(small_arena());
  const std::shared_ptr<Session> s = store.sessions->open(open_request(1, 10)).session;
  EXPECT_EQ(put(&store, s.get(), 1, 0, 8, 1), Status::kOk);
  EXPECT_EQ(put(&store, s.get(), 1, 6, 5, 2), Status::kFull);  // 3 new ones
  std::vector<std::uint8_t> out;
  EXPECT_EQ(get(s.get(), 1, 7, &out).version, 1U);
  EXPECT_EQ(put(&store, s.get(), 1, 6, 4, 2), Status::kOk);  // 2 new ones
  EXPECT_EQ(put(&store, s.get(), 1, 100, 1, 2), Status::kFull);
  EXPECT_EQ(put(&store, s.get(), 1, 0, 10, 3), Status::kOk);  // none
  std::uint64_t discarded = 0;
  EXPECT_EQ(s->discard(1, 0, 4096, &discarded), Status::kOk);
  EXPECT_EQ(discarded, 10U);
  EXPECT_EQ(put(&store, s.get(), 1, 100, 10, 3), Status::kOk);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots() - 10);
}

TEST(Session, TheHighestVersionStays) {
  Store store(small_arena());
  const std::shared_ptr<Session> s = store.sessions->open(open_request(1)).session;
  std::vector<std::uint8_t> out;
  EXPECT_EQ(put(&store, s.get(), 1, 5, 1, 7, 'a'), Status::kOk);
  EXPECT_EQ(put(&store, s.get(), 1, 4, 3, 6, 'b'), Status::kOk);  // ignored for page 5 only
  EXPECT_EQ(get(s.get(), 1, 5, &out).version, 7U);
  EXPECT_EQ(out[8], 'a');
  EXPECT_EQ(get(s.get(), 1, 4, &out).version, 6U);
  EXPECT_EQ(out[8], 'b');
  EXPECT_EQ(put(&store, s.get(), 1, 5, 1, 7, 'c'), Status::kOk);  // equal: the later one
  EXPECT_EQ(get(s.get(), 1, 5, &out).version, 7U);
  EXPECT_EQ(out[8], 'c');
  EXPECT_EQ(s->figures().used_pages, 3U);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots() - 3);
}

TEST(Session, DiscardSkipsWhatWasNeverThere) {
  Store store(small_arena());
  const std::shared_ptr<Session> s =
      store.sessions->open(open_request(1, 512, kMaxVmPages)).session;
  // At both ends, and around the borders of blocks and words.
  for (const std::uint64_t page :
       {std::uint64_t{0}, std::uint64_t{1023}, std::uint64_t{1024}, std::uint64_t{64 * 1024 - 1},
        std::uint64_t{64 * 1024}, kMaxVmPages - 1}) {
    ASSERT_EQ(put(&store, s.get(), 1, page, 1, 1), Status::kOk);
  }
  std::uint64_t discarded = 0;
  EXPECT_EQ(s->discard(1, 1, kMaxVmPages - 2, &discarded), Status::kOk);
  EXPECT_EQ(discarded, 4U);
  EXPECT_EQ(s->discard(1, 0, kMaxVmPages, &discarded), Status::kOk);
  EXPECT_EQ(discarded, 6U);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots());
}

TEST(Session, DropGivesEverythingBack) {
  Store store(small_arena(2048));
  const std::shared_ptr<Session> s = store.sessions->open(open_request(1, 2048)).session;
  for (std::uint64_t page = 0; page < 2048; page += 256) {
    ASSERT_EQ(put(&store, s.get(), 1, page, 256, 1), Status::kOk);
  }
  EXPECT_GE(store.arena->populated().value, 2048 * kPageSize);
  ASSERT_EQ(s->end(1), Status::kOk);
  EXPECT_EQ(s->end(1), Status::kNoSession);
  EXPECT_EQ(s->attach(1).status, Status::kNoSession);
  // Until the memory is free nobody else can reserve it.
  EXPECT_EQ(store.sessions->open(open_request(2, 1)).answer.status, Status::kFull);
  store.sessions->reclaim(s);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots());
  EXPECT_EQ(store.arena->populated(), Bytes{0});
  EXPECT_EQ(store.sessions->open(open_request(1, 2048)).answer.status, Status::kOk);
}

TEST(Session, OrphansAreDroppedWhenTheirTimeIsOver) {
  SessionLimits limits;
  limits.orphan_timeout = std::chrono::seconds(120);
  Store store(small_arena(), limits);
  const auto connected = store.sessions->open(open_request(1)).session;
  const auto orphan = store.sessions->open(open_request(2)).session;
  const auto committed = store.sessions->open(open_request(3)).session;
  ASSERT_EQ(put(&store, orphan.get(), 1, 0, 100, 1), Status::kOk);
  ASSERT_EQ(committed->commit(1), Status::kOk);
  store.clock.advance(std::chrono::hours(1));
  EXPECT_EQ(store.sessions->expire(), 0U);  // all have connections
  orphan->unbind(store.sessions->now());
  committed->unbind(store.sessions->now());
  store.clock.advance(std::chrono::milliseconds(119'999));
  EXPECT_EQ(store.sessions->expire(), 0U);
  // Whoever comes back starts the time again.
  ASSERT_EQ(orphan->attach(1).status, Status::kOk);
  store.clock.advance(std::chrono::milliseconds(2));
  EXPECT_EQ(store.sessions->expire(), 0U);
  orphan->unbind(store.sessions->now());
  store.clock.advance(std::chrono::seconds(120));
  EXPECT_EQ(store.sessions->expire(), 1U);
  EXPECT_EQ(store.sessions->find(session_id(2)), nullptr);
  EXPECT_NE(store.sessions->find(session_id(1)), nullptr);
  EXPECT_NE(store.sessions->find(session_id(3)), nullptr);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots());
  EXPECT_EQ(store.sessions->reserved(), PageCount{512});
}

TEST(Session, TheOperatorNeedsForceForALiveOne) {
  Store store(small_arena());
  const auto s = store.sessions->open(open_request(1)).session;
  EXPECT_FALSE(s->end_by_operator(false));  // connected
  s->unbind(store.sessions->now());
  ASSERT_EQ(s->attach(1).status, Status::kOk);
  ASSERT_EQ(s->commit(1), Status::kOk);
  s->unbind(store.sessions->now());
  EXPECT_FALSE(s->end_by_operator(false));  // committed
  EXPECT_TRUE(s->end_by_operator(true));
  EXPECT_FALSE(s->end_by_operator(true));
}

// Run under TSan for its sake: one session, many threads, a claim in the middle.
TEST(Session, ThreadsMeet) {
  Store store(small_arena(4096));
  const auto s = store.sessions->open(open_request(1, 64)).session;
  std::vector<std::thread> threads;
  std::atomic<int> fenced{0};
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      std::vector<std::uint8_t> out;
      for (std::uint64_t i = 0;; i++) {
        std::vector<SlotIndex> slots(4);
        AllocationHint hint;
        ASSERT_EQ(store.arena->allocate(slots, &hint), 4U);
        const auto content = static_cast<std::uint8_t>(t);
        for (const SlotIndex slot : slots) std::memset(store.arena->page(slot), content, kPageSize);
        const auto p = s->publish(1, wire::PutPages(i * 4 % 64, 0), i, slots);
        store.arena->free({slots.data(), p.unused});
        if (p.status == Status::kFenced) break;
        const auto answer = get(s.get(), 1, i % 64, &out);
        if (answer.found == 1) {
          for (std::size_t b = 9; b < 8 + kPageSize; b++) ASSERT_EQ(out[b], out[8]);
        }
        std::uint64_t discarded = 0;
        if (i % 7 == 0) static_cast<void>(s->discard(1, i % 64, 1, &discarded));
        if (i == 300 && t == 0) {
          ASSERT_EQ(s->claim(1, false).status, Status::kOk);
        }
      }
      fenced++;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(fenced, 4);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots() - s->figures().used_pages);
}

}  // namespace
}  // namespace kintsugi::memserver
