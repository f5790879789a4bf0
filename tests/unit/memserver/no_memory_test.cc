// SPDX-License-Identifier: GPL-2.0-or-later
// A server whose memory is used up: every allocation fails in turn, and whoever it was for ends
// alone.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "memserver/harness.h"
#include "memserver/server.h"
#include "wire/connection.h"

namespace {

// Of this thread, so many succeed; negative: all.
thread_local long allocations_left = -1;
// Of any thread, bigger ones fail.
std::atomic<std::size_t> biggest{SIZE_MAX};

void* allocate(std::size_t bytes) {
  if (allocations_left == 0 || bytes > biggest) throw std::bad_alloc();
  if (allocations_left > 0) allocations_left--;
  void* at = std::malloc(bytes > 0 ? bytes : 1);
  if (!at) throw std::bad_alloc();
  return at;
}

}  // namespace

// Not inlined, else the compiler takes each for half of a pair that does not match.
#define REPLACED [[gnu::noinline]]
REPLACED void* operator new(std::size_t bytes) { return allocate(bytes); }
REPLACED void* operator new[](std::size_t bytes) { return allocate(bytes); }
REPLACED void operator delete(void* at) noexcept { std::free(at); }
REPLACED void operator delete[](void* at) noexcept { std::free(at); }
REPLACED void operator delete(void* at, std::size_t) noexcept { std::free(at); }
REPLACED void operator delete[](void* at, std::size_t) noexcept { std::free(at); }

namespace kintsugi::memserver {
namespace {

using testing::ChannelClient;
using testing::open_request;
using testing::session_id;
using testing::Store;
using wire::Op;
using wire::Status;

// What a source and a destination do with session 2, which is dropped at the end; throws when there
// is no memory.
void live_a_life(Store* store) {
  Channel::Options options;
  options.offload = [](const std::function<void()>& work, const std::function<void()>& done) {
    const auto task = std::make_unique<std::function<void()>>(work);
    (*task)();
    done();
  };
  ChannelClient source(store, options);
  static_cast<void>(source.hello());
  static_cast<void>(source.open(open_request(2, 512, 4096, 16)));
  static_cast<void>(source.put(0, 8, 1));
  // The other way for a Put, when all spare slots are in flight.
  std::vector<SlotIndex> taken(Arena::kMaxInFlight - store->arena->in_flight());
  AllocationHint hint;
  ASSERT_TRUE(store->arena->allocate_in_flight(taken, &hint));
  const auto give_back = [&] {
    store->arena->free(taken);
    store->arena->landed(taken.size());
  };
  try {
    static_cast<void>(source.put(8, 8, 1));
  } catch (const std::bad_alloc&) {
    give_back();
    throw;
  }
  give_back();
  static_cast<void>(source.get(0, 16));
  ChannelClient destination(store, options);
  static_cast<void>(destination.hello());
  static_cast<void>(destination.claim(2, 1));
  static_cast<void>(destination.simple(Op::kCommit));
  static_cast<void>(destination.get(0, 16));
  static_cast<void>(destination.simple(Op::kDrop));
}

TEST(NoMemory, AChannelThatGetsNoneLeavesNothingBehind) {
  SessionLimits limits;
  limits.tombstone_timeout = std::chrono::seconds(0);
  Store store(testing::small_arena(2048), limits);
  ChannelClient good(&store);
  ASSERT_EQ(good.hello(), Status::kOk);
  ASSERT_EQ(good.open(open_request(1)), Status::kOk);
  ASSERT_EQ(good.put(0, 256, 7), Status::kOk);
  const std::uint64_t free_slots = store.arena->free_slots();
  bool failed = true;
  long allocations = 0;
  for (; failed && allocations < 100'000; allocations++) {
    failed = false;
    allocations_left = allocations;
    try {
      live_a_life(&store);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    allocations_left = -1;
    if (const auto left = store.sessions->find(session_id(2))) {
      ASSERT_EQ(left->figures().connections, 0U) << "after " << allocations << " allocations";
      ASSERT_TRUE(left->end_by_operator(true)) << "after " << allocations << " allocations";
      store.sessions->free_ended(left);
    }
    store.sessions->expire();  // forgets the tombstone
    ASSERT_EQ(store.arena->in_flight(), 0U) << "after " << allocations << " allocations";
    ASSERT_EQ(store.arena->free_slots(), free_slots) << "after " << allocations << " allocations";
  }
  EXPECT_GT(allocations, 50);
  EXPECT_GT(store.stats.bounced_puts, 0U);
  EXPECT_EQ(good.get(0, 256).size(), 256U);
}

TEST(NoMemory, AConnectionThatGetsNoneEndsAlone) {
  for (const LoopKind kind : {LoopKind::kEpoll, LoopKind::kUring}) {
    if (kind == LoopKind::kUring && !make_uring_loop()) continue;
    ServerOptions options;
    options.listen = {"tcp:127.0.0.1:0"};
    options.arena = testing::small_arena(2048);
    options.loop = kind;
    Result<std::unique_ptr<Server>> server = Server::start(options);
    ASSERT_TRUE(server.ok()) << server.error().message;
    const int stop_fd = eventfd(0, EFD_CLOEXEC);
    std::thread thread([&] { (*server)->run(stop_fd); });
    const wire::Uri uri = *wire::parse_uri((*server)->uris().at(0));
    const auto connect = [&] { return std::move(*wire::Connection::connect(uri, {})); };
    const auto good = connect();
    const auto bad = connect();
    EXPECT_TRUE(good->open(open_request(1)).ok());
    EXPECT_TRUE(bad->attach(session_id(1), Epoch{1}).ok());
    biggest = std::size_t{200} << 10;  // less than the answer takes
    wire::FrameHeader get = bad->request(Op::kGet, 1);
    get.count = 256;
    EXPECT_TRUE(bad->send_frame(get, {}).ok());
    EXPECT_FALSE(bad->receive_header().ok());
    biggest = SIZE_MAX;
    EXPECT_TRUE(good->stat().ok());
    EXPECT_TRUE(connect()->attach(session_id(1), Epoch{1}).ok());
    eventfd_write(stop_fd, 1);
    thread.join();
    close(stop_fd);
  }
}

}  // namespace
}  // namespace kintsugi::memserver
