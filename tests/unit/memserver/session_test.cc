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
  EXPECT_TRUE(store->arena->allocate_in_flight(slots, &hint));
  for (const SlotIndex slot : slots) *store->arena->page(slot) = content;
  const Session::Published p = session->publish(epoch, wire::PutPages(page, 0), version, slots);
  store->arena->free({slots.data(), p.unused});
  store->arena->landed(count);
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
  wire::OpenRequest another = open_request(1, 1);
  another.ticket = {1};
  EXPECT_EQ(store.sessions->open(another).answer.status, Status::kExists);
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
  ASSERT_EQ(one->end(1).status, Status::kOk);
  store.sessions->free_ended(one);
  EXPECT_EQ(store.sessions->open(open_request(9, 1)).answer.status, Status::kOk);
}

TEST(Session, PageTablesAreBounded) {
  Store store(small_arena(65536));
  // A page stored may take a page of the table each, if the VM is large enough for that.
  const std::uint64_t most = store.arena->max_table_pages().value;
  ASSERT_LT(most, 65536U);
  EXPECT_EQ(store.sessions->open(open_request(1, most + 1, kMaxVmPages)).answer.status,
            Status::kFull);
  EXPECT_EQ(store.sessions->open(open_request(1, most, kMaxVmPages)).answer.status, Status::kOk);
  EXPECT_EQ(store.sessions->open(open_request(2, 1, 4096)).answer.status, Status::kFull);
  const std::shared_ptr<Session> one = store.sessions->find(session_id(1));
  ASSERT_EQ(one->end(1).status, Status::kOk);
  store.sessions->free_ended(one);
  EXPECT_EQ(store.sessions->open(open_request(2, 4096, 4096)).answer.status, Status::kOk);
}

TEST(Session, ConnectionsAreKeptForSessionsThatAreCommitted) {
  SessionLimits limits;
  limits.uncommitted_connections = 3;
  Store store(small_arena(), limits);
  std::array<std::unique_ptr<testing::ChannelClient>, 8> c;
  for (auto& client : c) {
    client = std::make_unique<testing::ChannelClient>(&store);
    ASSERT_EQ(client->hello(), Status::kOk);
  }
  ASSERT_EQ(c[0]->open(open_request(1)), Status::kOk);
  ASSERT_EQ(c[1]->attach(1, 1), Status::kOk);
  ASSERT_EQ(c[2]->open(open_request(2)), Status::kOk);
  EXPECT_EQ(c[3]->attach(2, 1), Status::kTooMany);
  EXPECT_EQ(c[3]->open(open_request(3)), Status::kTooMany);
  // Who owns a VM is decided whatever there is of connections.
  ASSERT_EQ(c[3]->claim(2, 1), Status::kOk);
  ASSERT_EQ(c[3]->simple(wire::Op::kCommit), Status::kOk);
  EXPECT_EQ(c[4]->attach(2, 2), Status::kOk);
  EXPECT_EQ(c[5]->attach(1, 1), Status::kOk) << "two of the three are session 2's, which runs";
  EXPECT_EQ(c[6]->attach(1, 1), Status::kTooMany);
  EXPECT_EQ(c[6]->attach(2, 2), Status::kOk);
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
  EXPECT_EQ(s->claim(0, {}).status, Status::kFenced);   // must know the epoch
  EXPECT_EQ(s->claim(1, {7}).status, Status::kFenced);  // and have the ticket
  EXPECT_EQ(s->claim(1, {}).epoch, 2U);
  EXPECT_EQ(s->claim(1, {}).epoch, 2U);  // an answer was lost
  EXPECT_EQ(s->reclaim(1).epoch, 3U);
  EXPECT_EQ(s->claim(1, {}).status, Status::kFenced);  // came late
  for (const std::uint64_t old : {0, 1, 2, 4}) {
    std::vector<std::uint8_t> out;
    std::uint64_t discarded = 0;
    EXPECT_EQ(put(&store, s.get(), old, 0, 1, 9), Status::kFenced);
    EXPECT_EQ(get(s.get(), old, 0, &out).status, Status::kFenced);
    EXPECT_EQ(s->discard(old, 0, 1, UINT64_MAX, &discarded), Status::kFenced);
    EXPECT_EQ(s->commit(old), Status::kFenced);
    EXPECT_EQ(s->stat(old).status, Status::kFenced);
    EXPECT_EQ(s->end(old).status, Status::kFenced);
    EXPECT_EQ(discarded, 0U);
  }
  EXPECT_EQ(s->commit(3), Status::kFenced);  // nobody has claimed it
  EXPECT_EQ(s->offer(3, {5}), Status::kOk);
  EXPECT_EQ(s->claim(3, {5}).epoch, 4U);
  EXPECT_EQ(s->commit(4), Status::kOk);
  EXPECT_EQ(s->commit(4), Status::kOk);
  EXPECT_EQ(s->reclaim(3).status, Status::kCommitted);
  EXPECT_EQ(s->offer(4, {6}), Status::kOk);
  EXPECT_EQ(s->claim(4, {6}).epoch, 5U);  // a later migration
  EXPECT_EQ(s->figures().used_pages, 1U);
}

// A Discard left over on a broken connection, that is served after the page was evicted again.
TEST(Session, ADiscardLeavesWhatIsNewer) {
  Store store(small_arena());
  const std::shared_ptr<Session> s = store.sessions->open(open_request(1)).session;
  ASSERT_EQ(put(&store, s.get(), 1, 0, 4, 7), Status::kOk);
  ASSERT_EQ(put(&store, s.get(), 1, 2, 1, 9), Status::kOk);
  std::uint64_t discarded = 0;
  EXPECT_EQ(s->discard(1, 0, 4, 8, &discarded), Status::kOk);
  EXPECT_EQ(discarded, 3U);
  EXPECT_EQ(s->figures().used_pages, 1U);
}

TEST(Session, OnlyTheOwnerWritesWhileBothRead) {
  Store store(small_arena());
  const std::shared_ptr<Session> s = store.sessions->open(open_request(1)).session;
  std::vector<std::uint8_t> out;
  ASSERT_EQ(put(&store, s.get(), 1, 0, 1, 1), Status::kOk);
  ASSERT_EQ(s->claim(1, {}).epoch, 2U);
  for (const std::uint64_t epoch : {1, 2}) {
    EXPECT_EQ(put(&store, s.get(), epoch, 0, 1, 2), Status::kFenced);
    EXPECT_EQ(s->end(epoch).status, Status::kFenced);
    EXPECT_EQ(get(s.get(), epoch, 0, &out).found, 1U);
    EXPECT_EQ(s->attach(epoch).status, Status::kOk);
  }
  ASSERT_EQ(s->commit(2), Status::kOk);
  EXPECT_EQ(get(s.get(), 1, 0, &out).status, Status::kFenced);
  EXPECT_EQ(put(&store, s.get(), 2, 0, 1, 2), Status::kOk);
}

TEST(Session, ATombstoneTellsWhetherAnybodyCommitted) {
  Store store(small_arena());
  const auto answer = [&](std::uint8_t n, std::uint64_t epoch) {
    return store.sessions->find_ended(session_id(n), epoch).status;
  };
  const auto dropped = [&](std::uint8_t n, bool commit) {
    const std::shared_ptr<Session> s = store.sessions->open(open_request(n)).session;
    if (commit) {
      EXPECT_EQ(s->claim(1, {}).status, Status::kOk);
      EXPECT_EQ(s->commit(2), Status::kOk);
    }
    EXPECT_EQ(s->end(commit ? 2 : 1).status, Status::kOk);
    // Before its slots are free and afterwards.
    EXPECT_EQ(s->reclaim(1).status, commit ? Status::kCommitted : Status::kGone);
    EXPECT_EQ(s->claim(1, {}).status, Status::kGone);
    EXPECT_EQ(store.sessions->open(open_request(n)).answer.status, Status::kExists);
    store.sessions->free_ended(s);
  };
  dropped(1, false);
  dropped(2, true);
  EXPECT_EQ(answer(1, 1), Status::kGone);
  EXPECT_EQ(answer(2, 1), Status::kCommitted);
  EXPECT_EQ(answer(2, 2), Status::kGone);
  EXPECT_EQ(answer(3, 1), Status::kNoSession);
  EXPECT_EQ(store.sessions->open(open_request(1)).answer.status, Status::kExists)
      << "an id is used once";
}

TEST(Session, TheOldestTombstoneMakesRoom) {
  Store store(small_arena());
  for (std::uint8_t n = 0; n < 20; n++) {
    const std::shared_ptr<Session> s = store.sessions->open(open_request(n)).session;
    ASSERT_TRUE(s) << unsigned{n};
    ASSERT_EQ(s->end(1).status, Status::kOk);
    store.sessions->free_ended(s);
    ASSERT_EQ(store.sessions->find_ended(session_id(n), 1).status, Status::kGone);
  }
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
  EXPECT_EQ(s->discard(1, 0, 4096, UINT64_MAX, &discarded), Status::kOk);
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
  EXPECT_EQ(s->discard(1, 1, kMaxVmPages - 2, UINT64_MAX, &discarded), Status::kOk);
  EXPECT_EQ(discarded, 4U);
  EXPECT_EQ(s->discard(1, 0, kMaxVmPages, UINT64_MAX, &discarded), Status::kOk);
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
  ASSERT_TRUE(s->end(1).first);
  EXPECT_EQ(s->end(1).status, Status::kOk);
  EXPECT_FALSE(s->end(1).first) << "somebody else frees the slots";
  EXPECT_EQ(s->attach(1).status, Status::kGone);
  // Until the memory is free nobody else can reserve it.
  EXPECT_EQ(store.sessions->open(open_request(2, 1)).answer.status, Status::kFull);
  store.sessions->free_ended(s);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots());
  EXPECT_EQ(store.arena->populated(), Bytes{0});
  EXPECT_EQ(store.sessions->open(open_request(2, 2048)).answer.status, Status::kOk);
}

TEST(Session, OrphansAreDroppedWhenTheirTimeIsOver) {
  SessionLimits limits;
  limits.orphan_timeout = std::chrono::seconds(120);
  Store store(small_arena(), limits);
  const auto connected = store.sessions->open(open_request(1)).session;
  const auto orphan = store.sessions->open(open_request(2)).session;
  const auto committed = store.sessions->open(open_request(3)).session;
  ASSERT_EQ(put(&store, orphan.get(), 1, 0, 100, 1), Status::kOk);
  ASSERT_EQ(committed->claim(1, {}).status, Status::kOk);
  ASSERT_EQ(committed->commit(2), Status::kOk);
  store.clock.advance(std::chrono::hours(1));
  EXPECT_EQ(store.sessions->expire(), 0U);  // all have connections
  orphan->unbind(store.sessions->now());
  committed->unbind(store.sessions->now());
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

// A destination has claimed it, so the VM may run there: its host may be cut off from this server
// for as long as it likes. Only the arbiter can tell.
TEST(Session, AClaimedSessionDiesOfAgeWhenTheArbiterSaysSo) {
  SessionLimits limits;
  limits.orphan_timeout = std::chrono::seconds(120);
  std::optional<Status> arbiter;
  int asked = 0;
  const AskArbiter ask = [&](const std::string& uri,
                             const wire::SessionId& id) -> Result<handover::Answer> {
    EXPECT_EQ(uri, "tcp:arbiter:1");
    EXPECT_EQ(id, session_id(1));
    asked++;
    if (!arbiter) return make_error(EHOSTUNREACH, "no way there");
    return handover::Answer{*arbiter, {}};
  };
  Store store(small_arena(), limits, nullptr, ask);
  wire::OpenRequest request = open_request(1);
  std::strcpy(request.arbiter, "tcp:arbiter:1");
  const auto s = store.sessions->open(request).session;
  ASSERT_EQ(s->claim(1, {}).status, Status::kOk);
  s->unbind(store.sessions->now());
  s->unbind(store.sessions->now());
  // Cut off; it has the session; it has committed it; it was restarted without its arena.
  for (const std::optional<Status> answer :
       {std::optional<Status>{}, std::optional{Status::kStale}, std::optional{Status::kCommitted},
        std::optional{Status::kNoSession}}) {
    arbiter = answer;
    store.clock.advance(std::chrono::seconds(121));
    EXPECT_EQ(store.sessions->expire(), 0U);
    const int before = asked;
    EXPECT_EQ(store.sessions->expire(), 0U);
    EXPECT_EQ(asked, before) << "not each time";
  }
  EXPECT_EQ(asked, 4);
  arbiter = Status::kGone;
  store.clock.advance(std::chrono::seconds(121));
  EXPECT_EQ(store.sessions->expire(), 1U);
  // Before a Claim, and on the arbiter itself, nobody is asked.
  store.sessions->open(open_request(2)).session->unbind(store.sessions->now());
  request = open_request(3);
  std::strcpy(request.arbiter, "tcp:arbiter:1");
  store.sessions->open(request).session->unbind(store.sessions->now());
  store.clock.advance(std::chrono::seconds(121));
  EXPECT_EQ(store.sessions->expire(), 2U);
  EXPECT_EQ(asked, 5);
}

TEST(Session, TheOperatorNeedsForceForALiveOne) {
  Store store(small_arena());
  const auto s = store.sessions->open(open_request(1)).session;
  EXPECT_FALSE(s->end_by_operator(false));  // connected
  s->unbind(store.sessions->now());
  ASSERT_EQ(s->attach(1).status, Status::kOk);
  ASSERT_EQ(s->claim(1, {}).status, Status::kOk);
  ASSERT_EQ(s->commit(2), Status::kOk);
  s->unbind(store.sessions->now());
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
        ASSERT_TRUE(store.arena->allocate_in_flight(slots, &hint));
        const auto content = static_cast<std::uint8_t>(t);
        for (const SlotIndex slot : slots) std::memset(store.arena->page(slot), content, kPageSize);
        const auto p = s->publish(1, wire::PutPages(i * 4 % 64, 0), i, slots);
        store.arena->free({slots.data(), p.unused});
        store.arena->landed(slots.size());
        if (p.status == Status::kFenced) break;
        const auto answer = get(s.get(), 1, i % 64, &out);
        if (answer.found == 1) {
          for (std::size_t b = 9; b < 8 + kPageSize; b++) ASSERT_EQ(out[b], out[8]);
        }
        std::uint64_t discarded = 0;
        if (i % 7 == 0) static_cast<void>(s->discard(1, i % 64, 1, UINT64_MAX, &discarded));
        if (i == 300 && t == 0) {
          ASSERT_EQ(s->claim(1, {}).status, Status::kOk);
          ASSERT_EQ(s->commit(2), Status::kOk);
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
