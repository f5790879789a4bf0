// SPDX-License-Identifier: GPL-2.0-or-later
// The arena's file over restarts, also over those that come at the worst moment.
#include "memserver/arena.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <random>

#include "memserver/harness.h"

namespace kintsugi::memserver {
namespace {

using testing::ChannelClient;
using testing::open_request;
using testing::session_id;
using testing::small_arena;
using testing::Store;
using testing::TempDir;
using wire::Op;
using wire::Status;

std::string open_error(const ArenaOptions& options) {
  const Result<std::unique_ptr<Arena>> arena = Arena::open(options);
  return arena ? "" : arena.error().message;
}

TEST(Arena, ARestartedServerHasItsPages) {
  const TempDir dir;
  const ArenaOptions options = small_arena(1024, dir / "arena");
  std::array<std::uint8_t, 16> server_id{};
  {
    Store store(options);
    server_id = store.arena->server_id();
    ChannelClient a(&store), b(&store), gone(&store);
    ASSERT_EQ(a.hello(), Status::kOk);
    ASSERT_EQ(b.hello(), Status::kOk);
    ASSERT_EQ(gone.hello(), Status::kOk);
    ASSERT_EQ(a.open(open_request(1)), Status::kOk);
    ASSERT_EQ(b.open(open_request(2, 256, 4096, 24)), Status::kOk);
    ASSERT_EQ(gone.open(open_request(3)), Status::kOk);
    ASSERT_EQ(a.put(10, 100, 3), Status::kOk);
    ASSERT_EQ(a.put(20, 5, 4), Status::kOk);
    ASSERT_EQ(a.call(a.request(Op::kDiscard, 30, 2)).status(), Status::kOk);
    ASSERT_EQ(a.claim(1, 1), Status::kOk);
    ASSERT_EQ(a.simple(Op::kCommit), Status::kOk);
    ASSERT_EQ(b.put(0, 50, 9), Status::kOk);
    ASSERT_EQ(gone.put(0, 50, 9), Status::kOk);
    ASSERT_EQ(gone.simple(Op::kDrop), Status::kOk);
  }
  ArenaOptions again = options;
  again.capacity.reset();  // the file knows
  Store store(again);
  EXPECT_EQ(store.arena->server_id(), server_id);
  EXPECT_EQ(store.arena->capacity(), PageCount{1024});
  EXPECT_EQ(store.sessions->reserved(), PageCount{512});
  EXPECT_EQ(store.sessions->find(session_id(3)), nullptr);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots() - 98 - 50);
  ChannelClient a(&store), b(&store);
  ASSERT_EQ(a.hello(), Status::kOk);
  ASSERT_EQ(b.hello(), Status::kOk);
  EXPECT_EQ(a.attach(1, 1), Status::kFenced);
  EXPECT_EQ(a.reclaim(1, 1), Status::kCommitted);
  ASSERT_EQ(a.attach(1, 2), Status::kOk);
  EXPECT_EQ(a.last_figures.used_pages, 98U);
  const auto found = a.get(0, 200);
  EXPECT_EQ(found.size(), 98U);
  EXPECT_EQ(found.at(10), 3U);
  EXPECT_EQ(found.at(24), 4U);
  EXPECT_FALSE(found.contains(30));
  ASSERT_EQ(b.attach(2, 1), Status::kOk);
  EXPECT_EQ(b.tag_bytes, 24U);
  EXPECT_EQ(b.get(0, 256).size(), 50U);
  // And the free slots are really free.
  EXPECT_EQ(a.put(1000, 158, 1), Status::kOk);
  EXPECT_EQ(a.put(0, 1, 1), Status::kFull);
  EXPECT_EQ(b.get(0, 256).size(), 50U);
}

TEST(Arena, AReusedRecordDoesNotInheritSlots) {
  const TempDir dir;
  const ArenaOptions options = small_arena(1024, dir / "arena");
  {
    Store store(options);
    for (int round = 0; round < 3; round++) {
      ChannelClient c(&store);
      ASSERT_EQ(c.hello(), Status::kOk);
      ASSERT_EQ(c.open(open_request(static_cast<std::uint8_t>(round))), Status::kOk);
      ASSERT_EQ(c.put(static_cast<std::uint64_t>(round) * 100, 80, 1), Status::kOk);
      if (round < 2) {
        ASSERT_EQ(c.simple(Op::kDrop), Status::kOk);
      }
    }
  }
  Store store(options);
  ChannelClient c(&store);
  ASSERT_EQ(c.hello(), Status::kOk);
  ASSERT_EQ(c.attach(2, 1), Status::kOk);
  EXPECT_EQ(c.last_figures.used_pages, 80U);
  EXPECT_EQ(c.get(0, 200).size(), 0U);
  EXPECT_EQ(c.get(200, 80).size(), 80U);
}

TEST(Arena, OfTwoSlotsOfAPageTheNewerStays) {
  const TempDir dir;
  const ArenaOptions options = small_arena(1024, dir / "arena");
  for (const bool newer_first : {true, false}) {
    std::filesystem::remove(options.path);
    {
      // As a process leaves it that dies between publishing a slot and retiring the old one.
      Store store(options);
      const auto s = store.sessions->open(open_request(1)).session;
      std::array<SlotIndex, 2> slots{};
      AllocationHint hint;
      ASSERT_TRUE(store.arena->allocate_in_flight(slots, &hint));
      for (std::size_t i = 0; i < 2; i++) {
        const std::uint64_t version = (i == 0) == newer_first ? 8 : 7;
        testing::fill_page(store.arena->page(slots[i]), 5, version);
        store.arena->publish(slots[i], s->record(), 5, version);
      }
    }
    Store store(options);
    EXPECT_EQ(store.arena->free_slots(), store.all_slots() - 1);
    ChannelClient c(&store);
    ASSERT_EQ(c.hello(), Status::kOk);
    ASSERT_EQ(c.attach(1, 1), Status::kOk);
    EXPECT_EQ(c.last_figures.used_pages, 1U);
    EXPECT_EQ(c.get(0, 10), (std::map<std::uint64_t, std::uint64_t>{{5, 8}}));
  }
}

// A process is killed in the middle of a stream of Puts, wherever it happens to be. All that it had
// acknowledged must be there, whole, and nothing torn.
TEST(Arena, SurvivesKill9InAStreamOfPuts) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  constexpr std::uint64_t kPages = 96;
  for (int round = 0; round < 12; round++) {
    const TempDir dir;
    const ArenaOptions options = small_arena(kPages, dir / "arena");
    // acked[page]: the version whose Put was answered; written after the answer.
    auto* acked = static_cast<std::atomic<std::uint64_t>*>(
        mmap(nullptr, (kPages + 1) * sizeof(std::uint64_t), PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(acked, MAP_FAILED);
    std::atomic<std::uint64_t>& puts = acked[kPages];
    const unsigned child_seed = random();
    const std::uint64_t enough = 20 + random() % 400;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Store store(options);
      ChannelClient c(&store);
      std::mt19937 r(child_seed);
      if (c.hello() != Status::kOk || c.open(open_request(1, kPages, kPages)) != Status::kOk) {
        _exit(1);
      }
      for (std::uint64_t version = 1;; version++) {
        const auto count = static_cast<std::uint32_t>(r() % 16 + 1);
        const std::uint64_t page = r() % (kPages - count + 1);
        if (c.put(page, count, version) != Status::kOk) _exit(2);
        for (std::uint32_t i = 0; i < count; i++) acked[page + i].store(version);
        puts.fetch_add(1);
      }
    }
    while (puts.load() < enough) {
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, WNOHANG), 0) << "the child ended by itself: " << status;
      sched_yield();
    }
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));

    Store store(options);
    ChannelClient c(&store);
    ASSERT_EQ(c.hello(), Status::kOk);
    ASSERT_EQ(c.attach(1, 1), Status::kOk);
    const auto found = c.get(0, kPages);  // checks each page's content against its own version
    EXPECT_EQ(found.size(), c.last_figures.used_pages);
    for (std::uint64_t page = 0; page < kPages; page++) {
      const std::uint64_t version = acked[page].load();
      if (version == 0) continue;
      ASSERT_TRUE(found.contains(page)) << "page " << page << " is lost";
      EXPECT_GE(found.at(page), version) << "page " << page << " went back";
    }
    EXPECT_EQ(store.arena->free_slots(), store.all_slots() - found.size());
    // The stream goes on.
    EXPECT_EQ(c.put(0, kPages, 1'000'000), Status::kOk);
    munmap(acked, (kPages + 1) * sizeof(std::uint64_t));
  }
}

TEST(Arena, OneServerAFile) {
  const TempDir dir;
  const ArenaOptions options = small_arena(1024, dir / "arena");
  Store store(options);
  EXPECT_NE(open_error(options).find("in use by another memory server"), std::string::npos);
}

TEST(Arena, ErrorsSayWhatToChange) {
  const TempDir dir;
  ArenaOptions options = small_arena(1024, dir / "arena");
  { Store store(options); }
  options.capacity = PageCount{2048};
  EXPECT_NE(open_error(options).find("holds 4 MiB, --capacity says 8 MiB: leave --capacity out"),
            std::string::npos);
  options.path = dir / "new";
  options.capacity.reset();
  EXPECT_NE(open_error(options).find("is new: give --capacity"), std::string::npos);
  options.capacity = PageCount{std::uint64_t{1} << 30};
  EXPECT_NE(open_error(options).find("with its tables"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(options.path)) << "a failed creation leaves nothing";
  options.path = dir / "no/such/dir";
  EXPECT_NE(open_error(options).find("No such file or directory"), std::string::npos);
  options.path = "/dev/null";
  EXPECT_NE(open_error(options).find("is not a file"), std::string::npos);
  ArenaOptions anonymous;
  EXPECT_NE(open_error(anonymous).find("give --capacity"), std::string::npos);
  anonymous.capacity = PageCount{std::uint64_t{1} << 31};
  EXPECT_NE(open_error(anonymous).find("RAM is"), std::string::npos);
  anonymous.capacity = PageCount{0};
  EXPECT_NE(open_error(anonymous).find("out of range"), std::string::npos);
}

TEST(Arena, AFileThatIsNoArenaIsLeftAlone) {
  const TempDir dir;
  const std::string path = dir / "letter";
  std::ofstream(path) << "dear reader";
  EXPECT_NE(open_error(small_arena(1024, path)).find("too short for an arena"), std::string::npos);
  std::ofstream(path) << std::string(100'000, 'x');
  EXPECT_NE(open_error(small_arena(1024, path)).find("is not a memory server's arena"),
            std::string::npos);
  EXPECT_EQ(std::filesystem::file_size(path), 100'000U);
}

// Every bit of the superblock and the first records, flipped: the file is refused, or it is used;
// the server neither crashes nor goes beyond the file.
TEST(Arena, DamagedTablesAreRefusedOrHarmless) {
  const TempDir dir;
  const ArenaOptions options = small_arena(64, dir / "arena");
  {
    Store store(options);
    ChannelClient c(&store);
    ASSERT_EQ(c.hello(), Status::kOk);
    ASSERT_EQ(c.open(open_request(1, 32)), Status::kOk);
    ASSERT_EQ(c.put(0, 32, 1), Status::kOk);
  }
  int refused = 0;
  const int fd = ::open(options.path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ArenaOptions again = options;
  again.capacity.reset();
  for (off_t at = 0; at < static_cast<off_t>(kPageSize + sizeof(SessionRecord)); at++) {
    if (at == 72) at = kPageSize;
    std::uint8_t good = 0;
    ASSERT_EQ(pread(fd, &good, 1, at), 1);
    for (int bit = 0; bit < 8; bit += 3) {
      const auto bad = static_cast<std::uint8_t>(good ^ 1 << bit);
      ASSERT_EQ(pwrite(fd, &bad, 1, at), 1);
      Result<std::unique_ptr<Arena>> arena = Arena::open(again);
      if (!arena) {
        refused++;
        EXPECT_EQ(arena.error().message.find("lose") == std::string::npos, false)
            << arena.error().message;
      } else {
        const auto sessions = Sessions::create(arena->get(), {});
        EXPECT_TRUE(sessions.ok());
      }
      ASSERT_EQ(pwrite(fd, &good, 1, at), 1);
      // Slots that seemed to belong to nobody have been retired: make them valid again.
    }
  }
  close(fd);
  EXPECT_GT(refused, 50);
}

TEST(Arena, ACreationCutShortIsDoneAgain) {
  const TempDir dir;
  const ArenaOptions options = small_arena(64, dir / "arena");
  std::ofstream(options.path).close();
  std::filesystem::resize_file(options.path, 1 << 22);  // no superblock yet
  Store store(options);
  EXPECT_EQ(store.arena->capacity(), PageCount{64});
}

class FailingMemory final : public ArenaMemory {
 public:
  int populate(void* at, std::size_t bytes) override {
    if (failing) return ENOMEM;
    return ArenaMemory::populate(at, bytes);
  }
  int release(void* at, std::size_t bytes, bool file) override {
    if (failing) return EINVAL;
    return ArenaMemory::release(at, bytes, file);
  }
  bool failing = false;
};

TEST(Arena, LackOfMemoryIsAnAnswer) {
  FailingMemory memory;
  memory.failing = true;
  EXPECT_EQ(Arena::open(small_arena(), &memory).error().code, ENOMEM);
  memory.failing = false;
  Store store(small_arena(2048), {}, &memory);
  ChannelClient c(&store);
  ASSERT_EQ(c.hello(), Status::kOk);
  ASSERT_EQ(c.open(open_request(1, 1024)), Status::kOk);
  ASSERT_EQ(c.put(0, 200, 1), Status::kOk);
  memory.failing = true;
  // What is populated is used up, then the answer is that we could not.
  EXPECT_EQ(c.put(200, 256, 1), Status::kOk);
  EXPECT_EQ(c.put(456, 256, 1), Status::kInternal);
  EXPECT_EQ(c.get(0, 256).size(), 256U);
  memory.failing = false;
  EXPECT_EQ(c.put(456, 256, 1), Status::kOk);
  memory.failing = true;  // a failed release costs memory, nothing else
  EXPECT_EQ(c.simple(Op::kDrop), Status::kOk);
  EXPECT_EQ(store.arena->free_slots(), store.all_slots());
}

TEST(Arena, PrefaultTakesAllAtStart) {
  const TempDir dir;
  ArenaOptions options = small_arena(512, dir / "arena");
  options.prefault = true;
  Store store(options);
  struct stat st {};
  ASSERT_EQ(stat(options.path.c_str(), &st), 0);
  EXPECT_EQ(st.st_blocks * 512, st.st_size);
}

TEST(Arena, MemoryOfDroppedSessionsGoesBackToTheFileSystem) {
  const TempDir dir;
  const ArenaOptions options = small_arena(4096, dir / "arena");
  Store store(options);
  const auto blocks = [&] {
    struct stat st {};
    EXPECT_EQ(stat(options.path.c_str(), &st), 0);
    return st.st_blocks * 512;
  };
  const auto before = blocks();
  ChannelClient c(&store);
  ASSERT_EQ(c.hello(), Status::kOk);
  ASSERT_EQ(c.open(open_request(1, 4096)), Status::kOk);
  for (std::uint64_t page = 0; page < 4096; page += 256) {
    ASSERT_EQ(c.put(page, 256, 1), Status::kOk);
  }
  EXPECT_GE(blocks() - before, static_cast<long>(4096 * kPageSize));
  ASSERT_EQ(c.simple(Op::kDrop), Status::kOk);
  // Slot metadata and tags stay: 0.8 % and 1.6 %.
  EXPECT_LT(blocks() - before, static_cast<long>(4096 * kPageSize / 20));
}

// ---- What an arena may be -----------------------------------------------------------------------

TEST(Arena, OneOnADiskIsRefusedAndLeavesNothing) {
  char path[] = "/var/tmp/ks-arena-XXXXXX";
  const int fd = mkstemp(path);
  ASSERT_GE(fd, 0);
  struct statfs fs {};
  ASSERT_EQ(fstatfs(fd, &fs), 0);
  close(fd);
  if (fs.f_type == TMPFS_MAGIC) GTEST_SKIP() << "/var/tmp is a tmpfs here";
  EXPECT_NE(open_error(small_arena(1024, path)).find("is on a disk"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(path)) << "what was there before is left there";
  std::filesystem::remove(path);
  EXPECT_NE(open_error(small_arena(1024, path)).find("is on a disk"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Arena, ALimitBelowTheCapacityIsRefused) {
  const TempDir dir;
  ArenaOptions options = small_arena(65536, dir / "arena");
  options.limit = MemoryLimit{Bytes{std::uint64_t{256} << 20}, "memory.max of a group"};
  const std::string error = open_error(options);
  EXPECT_NE(error.find("memory.max of a group is 256 MiB"), std::string::npos) << error;
  EXPECT_FALSE(std::filesystem::exists(options.path));
  // What it says is enough: pages, their tables and tags, page tables, connections.
  options.other_memory = Bytes{std::uint64_t{64} << 20};
  options.limit->bytes = Bytes{std::uint64_t{480} << 20};
  EXPECT_EQ(open_error(options), "");
}

TEST(Arena, WithoutABootIdNothingIsOpened) {
  // As where /proc shows processes only: it would take an arena of another boot for its own.
  ArenaOptions options = small_arena();
  options.boot_id_file = "/nowhere/boot_id";
  EXPECT_NE(open_error(options).find("cannot read /nowhere/boot_id"), std::string::npos);
}

TEST(Arena, OneOfAnotherBootIsRefused) {
  const TempDir dir;
  ArenaOptions options = small_arena(1024, dir / "arena");
  options.boot_id = "yesterday";
  { Store store(options); }
  EXPECT_NE(open_error(small_arena(1024, dir / "arena")).find("another boot"), std::string::npos);
  options.capacity.reset();
  Store store(options);
}

TEST(Arena, AMemfdIsHandedOnWithEverything) {
  ArenaOptions options = small_arena(1024);
  options.memfd = true;
  int kept = -1;
  {
    Store store(options);
    kept = dup(store.arena->fd());
    ChannelClient c(&store);
    ASSERT_EQ(c.hello(), Status::kOk);
    ASSERT_EQ(c.open(open_request(1)), Status::kOk);
    ASSERT_EQ(c.put(10, 100, 3), Status::kOk);
  }
  options.fd = dup(kept);
  options.capacity = PageCount{2048};  // takes effect when there are no sessions
  {
    Store store(options);
    EXPECT_TRUE(store.arena->recovered());
    EXPECT_EQ(store.arena->capacity(), PageCount{1024});
    ChannelClient c(&store);
    ASSERT_EQ(c.hello(), Status::kOk);
    ASSERT_EQ(c.attach(1, 1), Status::kOk);
    EXPECT_EQ(c.get(0, 200).size(), 100U);
    ASSERT_EQ(c.simple(Op::kDrop), Status::kOk);
  }
  options.fd = kept;
  Store store(options);
  EXPECT_FALSE(store.arena->recovered());
  EXPECT_EQ(store.arena->capacity(), PageCount{2048});
}

TEST(Arena, AFileTakesOverWhenTheMemoryHandedOnHasNoSessions) {
  const TempDir dir;
  ArenaOptions options = small_arena(1024);
  options.memfd = true;
  int kept = -1;
  {
    Store store(options);
    kept = dup(store.arena->fd());
    ASSERT_EQ(store.sessions->open(open_request(1)).answer.status, Status::kOk);
  }
  options.path = dir / "arena";
  options.fd = dup(kept);
  {
    Store store(options);
    EXPECT_TRUE(store.arena->recovered());
    EXPECT_FALSE(store.arena->in_file());
    const auto session = store.sessions->find(session_id(1));
    ASSERT_NE(session, nullptr) << "its pages are in the memory";
    ASSERT_TRUE(session->end_by_operator(true));
    store.sessions->free_ended(session);
  }
  options.fd = kept;
  Store store(options);
  EXPECT_TRUE(store.arena->in_file());
  EXPECT_FALSE(store.arena->recovered());
}

TEST(Arena, WhatIsHandedOnMustBeAnArena) {
  ArenaOptions options = small_arena(1024);
  options.fd = memfd_create("not-an-arena", 0);
  EXPECT_NE(open_error(options).find("no arena"), std::string::npos);
  options.fd = memfd_create("not-an-arena", 0);
  ASSERT_EQ(ftruncate(options.fd, 1 << 20), 0);
  EXPECT_NE(open_error(options), "");
}

}  // namespace
}  // namespace kintsugi::memserver
