// SPDX-License-Identifier: GPL-2.0-or-later
// A split VM in miniature: memory with a checkable pattern, servers that hold the remote part, a
// pager over both.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "pager/fake_server.h"
#include "pager/pager.h"
#include "placement/split_plan.h"
#include "wire/connection.h"

namespace kintsugi::test {

// Word `word` of a page in its `generation`-th writing: no page and no generation looks like
// another.
inline std::uint64_t pattern(std::uint64_t page, std::uint64_t generation, std::uint64_t word) {
  std::uint64_t x = page * 0x9e3779b97f4a7c15ULL ^ generation * 0xc2b2ae3d27d4eb4fULL ^ word;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9ULL;
  return x ^ x >> 32;
}

inline constexpr std::size_t kWords = kPageSize / 8;

inline void write_pattern(void* at, std::uint64_t page, std::uint64_t generation) {
  auto* words = static_cast<volatile std::uint64_t*>(at);
  for (std::size_t i = 0; i < kWords; i++) words[i] = pattern(page, generation, i);
}

// The first wrong word, or kWords when all are right.
inline std::size_t check_pattern(const void* at, std::uint64_t page, std::uint64_t generation) {
  const auto* words = static_cast<const volatile std::uint64_t*>(at);
  for (std::size_t i = 0; i < kWords; i++) {
    if (words[i] != pattern(page, generation, i)) return i;
  }
  return kWords;
}

// Polls with a deadline: for states that have no event. The deadline only bounds a failure.
template <typename Condition>
bool eventually(const Condition& condition,
                std::chrono::milliseconds deadline = std::chrono::seconds(20)) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

struct RigOptions {
  std::uint64_t pages = 512;
  std::uint64_t local = 256;  // planned for the main host: pages 0..local-1
  std::uint64_t chunk_pages = 16;
  unsigned servers = 1;
  // Servers that run already; empty: as many fake ones.
  std::vector<wire::Uri> uris;
  std::uint64_t limit = 0;  // 0: all pages and some
  std::uint64_t reserve = 16;
  std::uint64_t capacity = 0;  // of each server; 0: all pages
  PageOutMethod method = PageOutMethod::kAuto;
  bool prefetch = true;
  bool zero = false;  // what is planned away is all zero, so nothing is sent
  AccessHistory* history = nullptr;
  std::chrono::milliseconds io_timeout{5000};
  std::function<Result<std::unique_ptr<Uffd>>()> open_uffd = &kintsugi::open_uffd;
};

class Rig {
 public:
  explicit Rig(const RigOptions& options) : options_(options) {
    if (options_.capacity == 0) options_.capacity = options_.pages;
    if (options_.limit == 0) options_.limit = options_.pages + 4 * options_.reserve;
    if (options_.uris.empty()) {
      for (unsigned i = 0; i < options_.servers; i++) {
        servers_.push_back(std::make_unique<FakeServer>());
        options_.uris.push_back(servers_.back()->uri());
      }
    }
    options_.servers = static_cast<unsigned>(options_.uris.size());
    memory_ = static_cast<char*>(
        mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SplitRequest request;
    request.pages = PageCount{options_.pages};
    request.chunk_pages = PageCount{options_.chunk_pages};
    request.main_capacity = PageCount{options_.local};
    request.server_capacities.assign(options_.servers, PageCount{options_.capacity});
    Result<SplitPlan> plan = plan_split(request, {});
    if (!plan) {
      ADD_FAILURE() << plan.error().message;
      return;
    }
    plan_.emplace(std::move(*plan));
    for (std::size_t i = 0; i < session_.size(); i++) {
      session_[i] = static_cast<std::uint8_t>(i + 1);
    }
  }

  ~Rig() {
    if (pager_) {
      pager_->release();
      pager_->stop(false);
    }
    pager_.reset();
    munmap(memory_, bytes());
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  [[nodiscard]] std::size_t bytes() const { return options_.pages * kPageSize; }
  [[nodiscard]] char* page(std::uint64_t i) const { return memory_ + i * kPageSize; }
  [[nodiscard]] Pager& pager() { return *pager_; }
  [[nodiscard]] FakeServer& server(unsigned i) { return *servers_[i]; }
  [[nodiscard]] const SplitPlan& plan() const { return *plan_; }

  // As the source did: every page is written (generation 0), remote ones to their servers.
  void send_all() {
    for (std::uint64_t i = 0; i < options_.pages; i++) {
      if (plan_->owner(PageIndex{i}) == kMainHost) write_pattern(page(i), i, 0);
    }
    std::vector<char> content(kPageSize);
    for (unsigned s = 0; s < options_.servers; s++) {
      auto connection = wire::Connection::connect(options_.uris[s], {});
      ASSERT_TRUE(connection) << connection.error().message;
      wire::OpenRequest open;
      open.session = session_;
      open.vm_pages = options_.pages;
      open.capacity_pages = options_.capacity;
      const auto opened = (*connection)->open(open);
      ASSERT_TRUE(opened) << opened.error().message;
      epochs_.push_back(opened->epoch);
      for (std::uint64_t i = 0; i < options_.pages; i++) {
        if (options_.zero || plan_->owner(PageIndex{i}).value != s + 1) continue;
        write_pattern(content.data(), i, 0);
        wire::FrameHeader put = (*connection)->request(wire::Op::kPut, i + 100);
        put.page = i;
        put.count = 1;
        put.version = 1;
        put.length = kPageSize;
        iovec part{content.data(), content.size()};
        ASSERT_TRUE((*connection)->send_frame(put, {&part, 1}));
        const auto reply = (*connection)->receive_header();
        ASSERT_TRUE(reply && reply->status == 0);
      }
    }
  }

  PagerConfig config() {
    PagerConfig config;
    config.session = session_;
    for (unsigned s = 0; s < options_.servers; s++) {
      config.servers.push_back({options_.uris[s], PageCount{options_.capacity},
                                s < epochs_.size() ? epochs_[s] : Epoch{1}});
    }
    config.vm_pages = PageCount{options_.pages};
    config.chunk_pages = PageCount{options_.chunk_pages};
    config.limit = PageCount{options_.limit};
    config.reserve = PageCount{options_.reserve};
    config.method = options_.method;
    config.prefetch = options_.prefetch;
    config.history = options_.history;
    config.io_timeout = options_.io_timeout;
    config.connect_timeout = std::chrono::milliseconds(2000);
    config.ping_interval = std::chrono::milliseconds(100);
    config.backoff_min = std::chrono::milliseconds(5);
    config.backoff_max = std::chrono::milliseconds(50);
    config.open_uffd = options_.open_uffd;
    config.on_server_event = [this](const ServerEvent& event) {
      const std::lock_guard lock(mutex_);
      if (events_.size() < 8) {
        std::fprintf(stderr, "%s is %s %s\n", event.uri.c_str(),
                     event.state == LinkState::kConnected ? "back" : "lost:", event.error.c_str());
      }
      events_.push_back(event);
      happened_.notify_all();
    };
    return config;
  }

  Result<void> create() {
    Result<std::unique_ptr<Pager>> pager = Pager::create(config(), *plan_);
    if (!pager) return pager.error();
    pager_ = std::move(*pager);
    Result<void> added = pager_->add_region(memory_, PageIndex{0}, PageCount{options_.pages});
    if (options_.zero) pager_->apply_zero(PageIndex{0}, PageCount{options_.pages}, true);
    return added;
  }
  // `gated`: requests of the op to the first server wait from the start on.
  void run(std::optional<wire::Op> gated = std::nullopt) {
    send_all();
    if (testing::Test::HasFatalFailure()) return;
    Result<void> done = create();
    if (done) done = pager_->connect();
    if (done) done = pager_->claim();
    if (gated) servers_[0]->close_gate(*gated);
    if (done) done = pager_->start();
    if (done) done = pager_->commit();
    ASSERT_TRUE(done) << done.error().message;
  }

  // Waits for the n-th event.
  ServerEvent event(std::size_t n) {
    std::unique_lock lock(mutex_);
    if (!happened_.wait_for(lock, std::chrono::seconds(20), [&] { return events_.size() > n; })) {
      ADD_FAILURE() << "event " << n << " did not come";
      return {};
    }
    return events_[n];
  }
  [[nodiscard]] std::size_t events() {
    const std::lock_guard lock(mutex_);
    return events_.size();
  }
  bool settle() {
    return eventually([&] { return pager_->settled(); });
  }
  // Counters are read one by one, so what they say together is waited for.
  bool balances() {
    return eventually([&] {
      const PagerStats stats = pager_->stats();
      return stats.resident_pages + stats.remote_pages + stats.zero_pages == stats.vm_pages;
    });
  }
  bool comes_within_limit() {
    return eventually([&] {
      const PagerStats stats = pager_->stats();
      return stats.resident_pages + stats.queued_pages <= stats.limit_pages;
    });
  }
  void expect_page(std::uint64_t i, std::uint64_t generation = 0) {
    EXPECT_EQ(check_pattern(page(i), i, generation), kWords) << "page " << i;
  }
  void expect_zero(std::uint64_t i) {
    const auto* words = reinterpret_cast<const volatile std::uint64_t*>(page(i));
    for (std::size_t w = 0; w < kWords; w++) ASSERT_EQ(words[w], 0U) << "page " << i;
  }

 private:
  RigOptions options_;
  std::vector<std::unique_ptr<FakeServer>> servers_;
  char* memory_ = nullptr;
  std::optional<SplitPlan> plan_;
  wire::SessionId session_{};
  std::vector<Epoch> epochs_;
  std::unique_ptr<Pager> pager_;
  std::mutex mutex_;
  std::condition_variable happened_;
  std::vector<ServerEvent> events_;
};

// Tests skip where userfaultfd is not permitted, and say why.
#define SKIP_WITHOUT_UFFD()                              \
  do {                                                   \
    const auto probe_ = kintsugi::open_uffd();           \
    if (!probe_) GTEST_SKIP() << probe_.error().message; \
  } while (false)

}  // namespace kintsugi::test
