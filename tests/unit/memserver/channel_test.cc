// SPDX-License-Identifier: GPL-2.0-or-later
// The protocol as docs/wire-protocol.md tells it, on arrays instead of sockets.
#include "memserver/channel.h"

#include <random>

#include "memserver/harness.h"

namespace kintsugi::memserver {
namespace {

using testing::ChannelClient;
using testing::make_pages;
using testing::open_request;
using testing::Reply;
using testing::session_id;
using testing::small_arena;
using testing::Store;
using wire::Op;
using wire::Status;

class ChannelTest : public ::testing::Test {
 protected:
  // A client that has said Hello.
  std::unique_ptr<ChannelClient> connect() {
    auto client = std::make_unique<ChannelClient>(&store_);
    EXPECT_EQ(client->hello(), Status::kOk);
    return client;
  }
  // And has opened session n.
  std::unique_ptr<ChannelClient> opened(std::uint8_t n, std::uint64_t capacity = 512,
                                        std::uint32_t tag_bytes = 0) {
    auto client = connect();
    EXPECT_EQ(client->open(open_request(n, capacity, 4096, tag_bytes)), Status::kOk);
    return client;
  }
  void expect_refused_and_closed(ChannelClient* client, const wire::FrameHeader& header,
                                 std::span<const std::uint8_t> payload = {}) {
    EXPECT_EQ(client->call(header, payload).status(), Status::kBadRequest);
    EXPECT_TRUE(client->channel->closing());
    // Nothing more is answered.
    client->post(client->request(Op::kStat));
    client->collect();
    EXPECT_TRUE(client->replies.empty());
  }

  // A Put of session 1 of which only the header has come.
  std::unique_ptr<ChannelClient> begun_put(std::uint32_t count, std::uint32_t tag_bytes) {
    auto client = connect();
    EXPECT_EQ(client->attach(1, 1), Status::kOk);
    wire::FrameHeader put = client->request(Op::kPut, 0, count);
    put.length = count * (static_cast<std::uint32_t>(kPageSize) + tag_bytes);
    client->feed(&put, sizeof(put));
    return client;
  }
  static constexpr std::uint64_t kMostInFlight = Arena::kMaxInFlight;

  Store store_{small_arena(2048)};
};

// ---- Hello --------------------------------------------------------------------------------------

TEST_F(ChannelTest, HelloTellsWhatTheServerHas) {
  const auto first = opened(1, 512);
  ChannelClient c(&store_);
  const wire::HelloRequest hello;
  const Reply reply = c.call(c.request(Op::kHello), ChannelClient::bytes_of(hello));
  EXPECT_EQ(reply.status(), Status::kOk);
  wire::HelloReply answer;
  ASSERT_TRUE(wire::read_payload(std::span(reply.payload), &answer));
  EXPECT_EQ(answer.version, wire::kVersion);
  EXPECT_EQ(answer.capacity_pages, 2048U);
  EXPECT_EQ(answer.free_pages, 2048U - 512U);
  EXPECT_EQ(answer.server_id, store_.arena->server_id());
  EXPECT_EQ(answer.features, 0U);
}

TEST_F(ChannelTest, HelloChoosesAVersionOrSaysWhichThereAre) {
  const auto greet = [&](std::uint16_t min, std::uint16_t max) {
    ChannelClient c(&store_);
    const wire::HelloRequest hello{min, max, 0};
    const Reply reply = c.call(c.request(Op::kHello), ChannelClient::bytes_of(hello));
    wire::HelloReply answer;
    EXPECT_TRUE(wire::read_payload(std::span(reply.payload), &answer));
    EXPECT_EQ(answer.version, wire::kVersion);
    EXPECT_EQ(c.channel->closing(), reply.status() != Status::kOk);
    return reply.status();
  };
  EXPECT_EQ(greet(wire::kVersion, wire::kVersion), Status::kOk);
  EXPECT_EQ(greet(0, 9), Status::kOk);
  EXPECT_EQ(greet(wire::kVersion + 1, 9), Status::kVersion);
  EXPECT_EQ(greet(0, wire::kVersion - 1), Status::kVersion);
  EXPECT_EQ(greet(2, 1), Status::kBadRequest);
}

TEST_F(ChannelTest, HelloComesFirstAndOnce) {
  ChannelClient c(&store_);
  expect_refused_and_closed(&c, c.request(Op::kStat));
  const auto greeted = connect();
  const wire::HelloRequest hello;
  expect_refused_and_closed(greeted.get(), greeted->request(Op::kHello),
                            ChannelClient::bytes_of(hello));
  EXPECT_EQ(store_.stats.protocol_errors, 2U);
}

TEST_F(ChannelTest, OneConnectionTooManyIsToldSo) {
  Channel::Options options;
  options.refuse = true;
  ChannelClient c(&store_, options);
  EXPECT_EQ(c.hello(), Status::kTooMany);
  EXPECT_TRUE(c.channel->closing());
}

// ---- What is not allowed ------------------------------------------------------------------------

TEST_F(ChannelTest, GarbageIsNotAnsweredAndEndsTheConnection) {
  const std::string garbage(200, 'G');  // an HTTP client, say
  ChannelClient c(&store_);
  c.feed(garbage.data(), garbage.size());
  EXPECT_TRUE(c.channel->closing());
  EXPECT_FALSE(c.collect());
}

TEST_F(ChannelTest, BrokenHeadersEndTheConnection) {
  using Change = void (*)(wire::FrameHeader*);
  const std::vector<Change> changes{
      [](wire::FrameHeader* h) { h->flags = wire::kReply; },
      [](wire::FrameHeader* h) { h->flags = 1 << 9; },
      [](wire::FrameHeader* h) { h->flags = 1 << 1; },
      [](wire::FrameHeader* h) { h->status = 1; },
      [](wire::FrameHeader* h) { h->reserved = 1; },
      [](wire::FrameHeader* h) { h->mask = 1U << 1; },
      [](wire::FrameHeader* h) { h->count = 0; },
      [](wire::FrameHeader* h) { h->count = wire::kMaxPagesPerFrame + 1; },
      [](wire::FrameHeader* h) { h->page = 4096; },
      [](wire::FrameHeader* h) { h->page = UINT64_MAX; },
      [](wire::FrameHeader* h) { h->epoch = 2; },  // another than the binding's
      [](wire::FrameHeader* h) { h->op = 0; },
      [](wire::FrameHeader* h) { h->op = 11; },
      [](wire::FrameHeader* h) { h->op = 999; },
  };
  std::uint8_t n = 1;
  for (const Change change : changes) {
    SCOPED_TRACE(static_cast<int>(n));
    {
      const auto c = opened(n++, 8);
      wire::FrameHeader header = c->request(Op::kGet, 0, 1);
      change(&header);
      expect_refused_and_closed(c.get(), header);
    }
    const auto s = store_.sessions->find(session_id(n - 1));
    ASSERT_TRUE(s->end_by_operator(false)) << "the connection still holds the session";
    store_.sessions->free_ended(s);
  }
}

TEST_F(ChannelTest, WhatNeedsASessionNeedsABinding) {
  for (const Op op : {Op::kGet, Op::kDiscard, Op::kStat, Op::kCommit, Op::kDrop}) {
    const auto c = connect();
    expect_refused_and_closed(c.get(), c->request(op, 0, 1));
  }
  const auto c = connect();
  expect_refused_and_closed(c.get(), c->request(Op::kPut, 0, 1), make_pages(0, 1, 1));
}

TEST_F(ChannelTest, AConnectionIsBoundOnce) {
  const auto other = opened(9);
  const wire::OpenRequest open = open_request(2);
  const wire::BindRequest nine{session_id(9)};
  for (int i = 0; i < 3; i++) {
    const auto c = opened(static_cast<std::uint8_t>(i), 1);
    if (i == 0) {
      expect_refused_and_closed(c.get(), c->request(Op::kOpen), ChannelClient::bytes_of(open));
    } else {
      expect_refused_and_closed(c.get(), c->request(i == 1 ? Op::kAttach : Op::kClaim),
                                ChannelClient::bytes_of(nine));
    }
  }
}

TEST_F(ChannelTest, ARefusedBindingLeavesTheConnectionGood) {
  const auto c = connect();
  EXPECT_EQ(c->attach(1, 1), Status::kNoSession);
  EXPECT_EQ(c->claim(1, 1), Status::kNoSession);
  EXPECT_EQ(c->open(open_request(1, 4096)), Status::kFull);
  EXPECT_EQ(c->open(open_request(1, 512)), Status::kOk);
  const auto d = connect();
  wire::OpenRequest another = open_request(1, 512);
  another.ticket = {1};
  EXPECT_EQ(d->open(another), Status::kExists);
  EXPECT_EQ(store_.stats.refused_opens[static_cast<std::size_t>(Status::kFull)], 1U);
  EXPECT_EQ(store_.stats.refused_opens[static_cast<std::size_t>(Status::kExists)], 1U);
}

// ---- Pages --------------------------------------------------------------------------------------

TEST_F(ChannelTest, PagesComeBackAsTheyWere) {
  for (const std::uint32_t tag_bytes : {0U, 1U, 28U, 64U}) {
    const auto c = opened(static_cast<std::uint8_t>(tag_bytes), 500, tag_bytes);
    EXPECT_EQ(c->put(0, 256, 1), Status::kOk);
    EXPECT_EQ(c->put(300, 1, 2), Status::kOk);
    EXPECT_EQ(c->put(100, 7, 3), Status::kOk);
    auto found = c->get(0, 256);
    EXPECT_EQ(found.size(), 256U);
    EXPECT_EQ(found.at(99), 1U);
    EXPECT_EQ(found.at(106), 3U);
    EXPECT_EQ(c->get(256, 256), (std::map<std::uint64_t, std::uint64_t>{{300, 2}}));
    EXPECT_TRUE(c->get(4000, 96).empty());
    const Reply reply = c->call(c->request(Op::kGet, 99, 3));
    EXPECT_EQ(reply.header.version, 1U);  // the lowest
    EXPECT_EQ(c->call(c->request(Op::kDiscard, 0, 4096)).status(), Status::kOk);
    EXPECT_TRUE(c->get(0, 256).empty());
    EXPECT_EQ(c->simple(Op::kDrop), Status::kOk);
  }
  EXPECT_EQ(store_.arena->free_slots(), store_.all_slots());
}

// However the bytes are cut, the same comes out.
TEST_F(ChannelTest, FramesMayComeInAnyPieces) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto c = opened(1, 512, 5);
  for (const std::size_t step : {1UL, 3UL, 63UL, 64UL, 65UL, 4095UL, 4161UL, 20000UL, 70000UL}) {
    const auto count = static_cast<std::uint32_t>(step == 1 ? 2 : 40 + random() % 100);
    EXPECT_EQ(c->put(random() % 256, count, step, step), Status::kOk);
    EXPECT_EQ(c->get(0, 256).size() + c->get(256, 256).size(),
              c->bound(c->call(c->request(Op::kStat), {}, step)) == Status::kOk
                  ? c->last_figures.used_pages
                  : 0);
  }
}

TEST_F(ChannelTest, PipelinedRequestsAreAllAnswered) {
  const auto c = opened(1);
  std::vector<std::uint8_t> stream;
  const auto add = [&](wire::FrameHeader header, const std::vector<std::uint8_t>& payload) {
    header.length = static_cast<std::uint32_t>(payload.size());
    const auto* at = reinterpret_cast<const std::uint8_t*>(&header);
    stream.insert(stream.end(), at, at + sizeof(header));
    stream.insert(stream.end(), payload.begin(), payload.end());
  };
  for (std::uint64_t i = 0; i < 120; i++) {
    const auto count = static_cast<std::uint32_t>(i % 9 + 1);
    wire::FrameHeader put = c->request(Op::kPut, i, count);
    put.version = i + 1;
    add(put, make_pages(i, count, i + 1));
    add(c->request(Op::kGet, i, 1), {});
    if (i % 10 == 0) add(c->request(Op::kDiscard, i, 1), {});
  }
  const std::uint64_t first = c->next_seq - 120 * 2 - 12;
  c->feed(stream.data(), stream.size());
  c->collect();
  ASSERT_EQ(c->replies.size(), 120U * 2 + 12);
  for (std::size_t i = 0; i < c->replies.size(); i++) {
    const Reply& reply = c->replies[i];
    EXPECT_EQ(reply.header.seq, first + i);
    EXPECT_EQ(reply.status(), Status::kOk);
    if (reply.header.op == static_cast<std::uint16_t>(Op::kGet)) {
      EXPECT_EQ(c->parse_get(reply).at(reply.header.page), reply.header.page + 1);
    }
  }
}

TEST_F(ChannelTest, APutWithAMaskStoresThosePages) {
  std::uint8_t n = 1;
  for (const std::uint32_t tag_bytes : {0U, 28U}) {
    for (const std::size_t step : {std::size_t{1000}, SIZE_MAX}) {
      const auto c = opened(n++, 128, tag_bytes);
      ASSERT_EQ(c->put(10, 64, 1), Status::kOk);
      const std::uint64_t mask = std::uint64_t{1} << 63 | 0xff00'0000'0011ULL;
      ASSERT_EQ(c->put(10, 64, 2, step, mask), Status::kOk);
      ASSERT_EQ(c->put(80, 3, 2, step, 0b101), Status::kOk);
      const std::map<std::uint64_t, std::uint64_t> versions = c->get(10, 128);
      ASSERT_EQ(versions.size(), 66U);
      for (std::uint64_t i = 0; i < 64; i++) {
        EXPECT_EQ(versions.at(10 + i), (mask >> i & 1) != 0 ? 2U : 1U) << i;
      }
      EXPECT_EQ(versions.at(80), 2U);
      EXPECT_FALSE(versions.contains(81));
      EXPECT_EQ(versions.at(82), 2U);
    }
  }
}

TEST_F(ChannelTest, APeerThatDoesNotReadIsNotReadFrom) {
  const auto c = opened(1);
  ASSERT_EQ(c->put(0, 256, 1), Status::kOk);
  c->drain_on_block = false;
  const wire::FrameHeader get = c->request(Op::kGet, 0, 256);
  std::uint64_t asked = 0;
  std::size_t most = 0;
  // It asks for a gigabyte and takes nothing.
  for (int i = 0; i < 1024; i++) {
    if (c->feed(&get, sizeof(get)) < sizeof(get)) break;
    asked++;
    most = std::max(most, c->channel->output_bytes());
  }
  const std::size_t answer = sizeof(get) + wire::get_bitmap_bytes(256) + 256 * kPageSize;
  EXPECT_LE(most, Channel::kOutputLimit + answer);
  EXPECT_LT(asked, 3U);
  // Begun but not finished sending: one such measure more.
  ASSERT_FALSE(c->channel->take_output().empty());
  for (int i = 0; i < 1024; i++) {
    if (c->feed(&get, sizeof(get)) < sizeof(get)) break;
    asked++;
  }
  EXPECT_LE(c->channel->output_bytes(), 2 * (Channel::kOutputLimit + answer));
  EXPECT_LT(asked, 6U);
}

TEST_F(ChannelTest, RequestsThatWaitedForRoomAreAnswered) {
  const auto c = opened(1);
  ASSERT_EQ(c->put(0, 256, 1), Status::kOk);
  std::vector<wire::FrameHeader> gets;
  for (int i = 0; i < 50; i++) gets.push_back(c->request(Op::kGet, 0, 256));
  c->feed(gets.data(), gets.size() * sizeof(gets[0]));
  while (c->collect()) {
  }
  EXPECT_EQ(c->replies.size(), 50U);
}

// ---- Epochs -------------------------------------------------------------------------------------

TEST_F(ChannelTest, APutInFlightDuringAClaimIsFenced) {
  const auto source = opened(1);
  ASSERT_EQ(source->put(0, 64, 1), Status::kOk);
  // All but the last byte of a newer version has arrived, and lies in slots already.
  wire::FrameHeader put = source->request(Op::kPut, 0, 64);
  put.version = 2;
  const std::vector<std::uint8_t> pages = make_pages(0, 64, 2);
  put.length = static_cast<std::uint32_t>(pages.size());
  source->feed(&put, sizeof(put));
  source->feed(pages.data(), pages.size() - 1);

  const auto destination = connect();
  ASSERT_EQ(destination->claim(1, 1), Status::kOk);
  EXPECT_EQ(destination->epoch, 2U);
  source->feed(pages.data() + pages.size() - 1, 1);
  EXPECT_EQ(source->take().status(), Status::kFenced);
  for (const auto& [page, version] : destination->get(0, 64)) EXPECT_EQ(version, 1U) << page;
  EXPECT_EQ(store_.arena->free_slots(), store_.all_slots() - 64);
  EXPECT_EQ(store_.stats.fenced, 1U);
}

TEST_F(ChannelTest, AfterACommitTheSourceGetsNothingAndTheConnectionStays) {
  const auto source = opened(1);
  const auto second = connect();
  ASSERT_EQ(second->attach(1, 1), Status::kOk);
  const auto destination = connect();
  ASSERT_EQ(destination->claim(1, 1), Status::kOk);
  ASSERT_EQ(destination->simple(Op::kCommit), Status::kOk);
  for (ChannelClient* c : {source.get(), second.get()}) {
    EXPECT_EQ(c->put(0, 200, 5), Status::kFenced);
    EXPECT_EQ(c->call(c->request(Op::kGet, 0, 1)).status(), Status::kFenced);
    EXPECT_EQ(c->call(c->request(Op::kDiscard, 0, 1)).status(), Status::kFenced);
    EXPECT_EQ(c->simple(Op::kCommit), Status::kFenced);
    EXPECT_EQ(c->simple(Op::kStat), Status::kFenced);
    EXPECT_EQ(c->simple(Op::kDrop), Status::kFenced);
    EXPECT_FALSE(c->channel->closing());
  }
  EXPECT_EQ(destination->put(0, 1, 1), Status::kOk);
}

// The stream breaks while END is under way: the source takes the VM back and runs it, and the
// destination, slow, makes its first Claim only now.
TEST_F(ChannelTest, AClaimThatComesAfterTheReclaimIsRefused) {
  const auto source = opened(1);
  ASSERT_EQ(source->reclaim(1, 1), Status::kOk);
  const auto destination = connect();
  EXPECT_EQ(destination->claim(1, 1), Status::kFenced);
  EXPECT_EQ(destination->claim(1, 2), Status::kFenced) << "nothing is offered in this epoch";
  EXPECT_EQ(source->put(0, 1, 1), Status::kOk);
}

TEST_F(ChannelTest, ASourceInDoubtLearnsWhoOwnsTheVm) {
  const wire::Ticket again{1};
  const auto source = opened(1);
  const auto destination = connect();
  ASSERT_EQ(destination->claim(1, 1), Status::kOk);
  // Not committed yet: the source may take it back, and the destination is fenced for good.
  ASSERT_EQ(source->reclaim(1, 1), Status::kOk);
  EXPECT_EQ(source->epoch, 3U);
  EXPECT_EQ(destination->simple(Op::kCommit), Status::kFenced);
  EXPECT_EQ(source->put(0, 1, 1), Status::kOk);
  // Its answer was lost, and it asks in the epoch it knows.
  const auto repeat = connect();
  wire::FrameHeader header = repeat->request(Op::kReclaim);
  header.epoch = 1;
  const Reply stale = repeat->call(header, repeat->bytes_of(wire::BindRequest{session_id(1), {}}));
  EXPECT_EQ(stale.status(), Status::kStale);
  EXPECT_EQ(stale.header.epoch, 3U);
  // Another attempt, and this time the destination is quicker.
  EXPECT_EQ(connect()->claim(1, 3, again), Status::kFenced);
  ASSERT_EQ(source->offer(1, again), Status::kOk);
  const auto other = connect();
  ASSERT_EQ(other->claim(1, 3, again), Status::kOk);
  ASSERT_EQ(other->simple(Op::kCommit), Status::kOk);
  EXPECT_EQ(source->reclaim(1, 3), Status::kCommitted);
  EXPECT_EQ(source->put(0, 1, 1), Status::kFenced);
  EXPECT_EQ(other->put(0, 1, 1), Status::kOk);
}

TEST_F(ChannelTest, ARepeatedOpenClaimOrDropIsAnsweredAlike) {
  const auto source = opened(1);
  wire::OpenRequest other = open_request(1);
  other.ticket = {9};
  EXPECT_EQ(connect()->open(other), Status::kExists);
  const auto repeat = connect();
  EXPECT_EQ(repeat->open(open_request(1)), Status::kOk);
  EXPECT_EQ(repeat->epoch, 1U);
  for (int i = 0; i < 2; i++) {
    const auto destination = connect();
    EXPECT_EQ(destination->claim(1, 1), Status::kOk);
    EXPECT_EQ(destination->epoch, 2U);
  }
  ASSERT_EQ(source->reclaim(1, 1), Status::kOk);
  EXPECT_EQ(source->simple(Op::kDrop), Status::kOk);
  EXPECT_EQ(source->simple(Op::kDrop), Status::kOk);
  EXPECT_EQ(connect()->reclaim(1, 3), Status::kGone);
  EXPECT_EQ(connect()->reclaim(2, 1), Status::kNoSession);
}

TEST_F(ChannelTest, AFencedPutOfTheLargestSizeIsSkippedWhole) {
  const auto source = opened(1);
  const auto destination = connect();
  ASSERT_EQ(destination->claim(1, 1), Status::kOk);
  for (const std::size_t step : {1000UL, 65536UL, SIZE_MAX}) {
    EXPECT_EQ(source->put(0, 256, 1, step), Status::kFenced);
  }
  EXPECT_EQ(source->simple(Op::kStat), Status::kOk) << "it may still read";
}

// ---- The end of sessions and connections --------------------------------------------------------

TEST_F(ChannelTest, DropEndsTheSessionForAll) {
  const auto a = opened(1);
  const auto b = connect();
  ASSERT_EQ(b->attach(1, 1), Status::kOk);
  ASSERT_EQ(a->put(0, 256, 1), Status::kOk);
  EXPECT_EQ(a->simple(Op::kDrop), Status::kOk);
  EXPECT_EQ(b->put(0, 1, 1), Status::kGone);
  EXPECT_EQ(b->simple(Op::kStat), Status::kGone);
  EXPECT_EQ(a->simple(Op::kStat), Status::kGone);
  EXPECT_EQ(store_.sessions->reserved(), PageCount{0});
  // Both may begin again, with another session.
  EXPECT_EQ(b->open(open_request(2)), Status::kOk);
  EXPECT_EQ(a->attach(2, 1), Status::kOk);
  EXPECT_TRUE(a->get(0, 256).empty());
}

TEST_F(ChannelTest, ADropElsewhereWaitsForItsEnd) {
  std::vector<std::pair<std::function<void()>, std::function<void()>>> tasks;
  Channel::Options options;
  options.offload = [&](std::function<void()> work, std::function<void()> done) {
    tasks.emplace_back(std::move(work), std::move(done));
  };
  ChannelClient c(&store_, options);
  ASSERT_EQ(c.hello(), Status::kOk);
  ASSERT_EQ(c.open(open_request(1)), Status::kOk);
  ASSERT_EQ(c.put(0, 100, 1), Status::kOk);
  c.drain_on_block = false;
  // A Stat behind the Drop in one piece: answered after it.
  const std::array<wire::FrameHeader, 2> two{c.request(Op::kDrop), c.request(Op::kStat)};
  EXPECT_EQ(c.feed(two.data(), sizeof(two)), sizeof(two));
  std::array<iovec, Channel::kMaxIovecs> iov;
  EXPECT_EQ(c.channel->receive_buffers(iov), 0U);
  EXPECT_FALSE(c.collect());
  ASSERT_EQ(tasks.size(), 1U);
  tasks[0].first();
  tasks[0].second();
  EXPECT_EQ(c.take().status(), Status::kOk);
  EXPECT_EQ(c.take().status(), Status::kGone);
  EXPECT_EQ(store_.arena->free_slots(), store_.all_slots());
}

TEST_F(ChannelTest, AConnectionThatBreaksLeavesNothingBehind) {
  std::uint8_t id = 0;
  for (const std::size_t cut : {10UL, 64UL, 100UL, 5000UL, 64UL + 256 * kPageSize - 1}) {
    const auto c = connect();
    ASSERT_EQ(c->open(open_request(++id)), Status::kOk);
    wire::FrameHeader put = c->request(Op::kPut, 0, 256);
    std::vector<std::uint8_t> pages = make_pages(0, 256, 1);
    put.length = static_cast<std::uint32_t>(pages.size());
    pages.insert(pages.begin(), reinterpret_cast<std::uint8_t*>(&put),
                 reinterpret_cast<std::uint8_t*>(&put) + sizeof(put));
    c->feed(pages.data(), cut);
    c->channel.reset();
    EXPECT_EQ(store_.arena->free_slots(), store_.all_slots());
    const auto s = store_.sessions->find(session_id(id));
    EXPECT_EQ(s->figures().connections, 0U);
    ASSERT_TRUE(s->end_by_operator(false));
    store_.sessions->free_ended(s);
  }
}

// ---- A server that is full to the brim ----------------------------------------------------------

TEST_F(ChannelTest, WithoutFreeSlotsPutsTakeTheOtherWay) {
  const auto c = opened(1, 2048, 12);
  for (std::uint64_t page = 0; page < 2048; page += 256) {
    ASSERT_EQ(c->put(page, 256, 1), Status::kOk);
  }
  // Puts that never end hold the spare slots.
  std::vector<std::unique_ptr<ChannelClient>> stuck;
  while (store_.arena->in_flight() < kMostInFlight) {
    const std::uint64_t left = kMostInFlight - store_.arena->in_flight();
    stuck.push_back(begun_put(static_cast<std::uint32_t>(std::min<std::uint64_t>(left, 256)), 12));
    ASSERT_LT(stuck.size(), 20U);
  }
  EXPECT_EQ(store_.stats.bounced_puts, 0U);
  EXPECT_EQ(c->put(100, 256, 2), Status::kOk);
  EXPECT_EQ(c->put(0, 3, 2, 1000), Status::kOk);
  EXPECT_EQ(store_.stats.bounced_puts, 2U);
  const auto found = c->get(50, 256);
  EXPECT_EQ(found.at(99), 1U);
  EXPECT_EQ(found.at(100), 2U);
  EXPECT_EQ(found.at(305), 2U);
  EXPECT_EQ(c->get(0, 3).at(2), 2U);
  EXPECT_EQ(c->put(3000, 1, 2), Status::kFull);
  // A Claim in the middle fences this way too.
  wire::FrameHeader put = c->request(Op::kPut, 0, 1);
  put.version = 9;
  std::vector<std::uint8_t> payload = make_pages(0, 1, 9);
  payload.resize(kPageSize + 12);
  put.length = static_cast<std::uint32_t>(payload.size());
  c->feed(&put, sizeof(put));
  c->feed(payload.data(), payload.size() - 1);
  const auto destination = connect();
  ASSERT_EQ(destination->claim(1, 1), Status::kOk);
  c->feed(payload.data() + payload.size() - 1, 1);
  EXPECT_EQ(c->take().status(), Status::kFenced);
  EXPECT_EQ(destination->get(0, 1).at(0), 2U);
  stuck.clear();
  EXPECT_EQ(store_.arena->free_slots(), store_.all_slots() - 2048);
}

// However many stall in the middle of a Put, capacity that is reserved is not theirs.
TEST_F(ChannelTest, PutsInFlightTakeSpareSlotsOnly) {
  const auto c = opened(1, 2048);
  std::vector<std::unique_ptr<ChannelClient>> stuck;
  for (int i = 0; i < 40; i++) stuck.push_back(begun_put(256, 0));
  EXPECT_LE(store_.arena->in_flight(), kMostInFlight);
  EXPECT_GE(store_.arena->free_slots(), 2048 + Arena::kEmergencySlots);
  for (std::uint64_t page = 0; page < 2048; page += 256) {
    EXPECT_EQ(c->put(page, 256, 1), Status::kOk);
  }
  EXPECT_EQ(c->get(0, 256).size(), 256U);
  stuck.clear();
  EXPECT_EQ(store_.arena->in_flight(), 0U);
  EXPECT_EQ(store_.arena->free_slots(), store_.all_slots() - 2048);
}

// ---- Anything at all ----------------------------------------------------------------------------

TEST_F(ChannelTest, RandomBytesInValidEnvelopesDoNoHarm) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; round++) {
    ChannelClient c(&store_);
    ASSERT_EQ(c.hello(), Status::kOk);
    static_cast<void>(c.open(open_request(static_cast<std::uint8_t>(round % 6), 64, 300)));
    for (int i = 0; i < 30 && !c.channel->closing(); i++) {
      wire::FrameHeader header = c.request(static_cast<Op>(random() % 14), random() % 310,
                                           static_cast<std::uint32_t>(random() % 20));
      header.epoch = random() % 8 == 0 ? random() % 4 : c.epoch;
      header.version = random() % 4;
      const std::size_t length = header.op == static_cast<std::uint16_t>(Op::kPut)
                                     ? header.count * kPageSize
                                     : (random() % 4 == 0 ? random() % 200 : 0);
      const std::vector<std::uint8_t> payload(length);
      c.post(header, payload, random() % 5000 + 1);
    }
    c.collect();
  }
  for (const auto& s : store_.sessions->list()) {
    EXPECT_EQ(s->figures().connections, 0U);
    if (s->end_by_operator(true)) store_.sessions->free_ended(s);
  }
  EXPECT_EQ(store_.arena->free_slots(), store_.all_slots());
  EXPECT_EQ(store_.sessions->reserved(), PageCount{0});
}

}  // namespace
}  // namespace kintsugi::memserver
