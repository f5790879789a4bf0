// SPDX-License-Identifier: GPL-2.0-or-later
// The pager against the real memory server, over both of its event loops and both address
// families, and across a restart that keeps the arena file.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <thread>

#include "memserver/server.h"
#include "pager/pager_rig.h"

namespace kintsugi::test {
namespace {

class RunningServer {
 public:
  explicit RunningServer(const memserver::ServerOptions& options) {
    Result<std::unique_ptr<memserver::Server>> server = memserver::Server::start(options);
    if (!server) {
      ADD_FAILURE() << server.error().message;
      return;
    }
    server_ = std::move(*server);
    thread_ = std::thread([this] { server_->run(stop_); });
  }
  ~RunningServer() {
    if (thread_.joinable()) {
      const std::uint64_t one = 1;
      [[maybe_unused]] const ssize_t n = write(stop_, &one, sizeof(one));
      thread_.join();
    }
    server_.reset();
    close(stop_);
  }
  RunningServer(const RunningServer&) = delete;
  RunningServer& operator=(const RunningServer&) = delete;
  [[nodiscard]] std::string uri() const { return server_ ? server_->uris().front() : ""; }

 private:
  const int stop_ = eventfd(0, EFD_CLOEXEC);
  std::unique_ptr<memserver::Server> server_;
  std::thread thread_;
};

memserver::ServerOptions server_options(const std::string& listen) {
  memserver::ServerOptions options;
  options.listen = {listen};
  options.arena.capacity = PageCount{8192};
  options.arena.max_tag_bytes = 0;
  options.arena.max_sessions = 4;
  return options;
}

// A folder of its own that goes away with it.
class Folder {
 public:
  Folder() {
    char name[] = "/dev/shm/kintsugi-test.XXXXXX";  // an arena must be on tmpfs
    if (mkdtemp(name) != nullptr) path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void stress(Rig& rig, std::uint64_t pages, std::vector<std::uint64_t>* generations) {
  constexpr unsigned kThreads = 4;
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t + 1);
      for (int i = 0; i < 300; i++) {
        const std::uint64_t first = random() % pages / kThreads * kThreads + t;
        for (std::uint64_t p = first; p < first + 16 * kThreads && p < pages; p += kThreads) {
          if (check_pattern(rig.page(p), p, (*generations)[p]) != kWords) wrong++;
          if (random() % 2 == 0) write_pattern(rig.page(p), p, ++(*generations)[p]);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0U);
  for (std::uint64_t i = 0; i < pages; i++) rig.expect_page(i, (*generations)[i]);
}

class WithLoop : public testing::TestWithParam<memserver::LoopKind> {};

TEST_P(WithLoop, StressKeepsEveryByte) {
  SKIP_WITHOUT_UFFD();
  const Folder folder;
  memserver::ServerOptions tcp = server_options("tcp:127.0.0.1:0");
  memserver::ServerOptions local = server_options("unix:" + folder.path() + "/socket");
  tcp.loop = local.loop = GetParam();
  const RunningServer first(tcp);
  const RunningServer second(local);
  RigOptions options;
  options.pages = 2048;
  options.local = 768;
  options.limit = 819;
  options.reserve = 96;
  for (const std::string& uri : {first.uri(), second.uri()}) {
    const Result<wire::Uri> parsed = wire::parse_uri(uri);
    ASSERT_TRUE(parsed);
    options.uris.push_back(*parsed);
  }
  Rig rig(options);
  rig.run();
  std::vector<std::uint64_t> generations(options.pages, 0);
  stress(rig, options.pages, &generations);
  EXPECT_TRUE(rig.settle());
  EXPECT_EQ(rig.events(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Loops, WithLoop,
                         testing::Values(memserver::LoopKind::kAuto, memserver::LoopKind::kEpoll),
                         [](const testing::TestParamInfo<memserver::LoopKind>& info) {
                           return info.param == memserver::LoopKind::kAuto ? "Auto" : "Epoll";
                         });

TEST(PagerMemserver, ARestartWithTheArenaKeptIsSurvived) {
  SKIP_WITHOUT_UFFD();
  const Folder folder;
  memserver::ServerOptions server = server_options("unix:" + folder.path() + "/socket");
  server.arena.path = folder.path() + "/arena";
  auto running = std::make_unique<RunningServer>(server);
  RigOptions options;
  options.limit = 256;
  const Result<wire::Uri> uri = wire::parse_uri(running->uri());
  ASSERT_TRUE(uri);
  options.uris.push_back(*uri);
  Rig rig(options);
  rig.run();
  for (std::uint64_t i = 0; i < options.pages; i++) {
    rig.expect_page(i);
    write_pattern(rig.page(i), i, 1);
  }
  running.reset();
  EXPECT_EQ(rig.event(0).state, LinkState::kLost);
  // A socket that is not there is no lost session, though both say ENOENT.
  EXPECT_TRUE(eventually([&] {
    return rig.pager().stats().servers[0].error.find("No such file") != std::string::npos;
  }));
  EXPECT_FALSE(rig.pager().stats().servers[0].pages_lost);
  EXPECT_EQ(rig.events(), 1U);
  running = std::make_unique<RunningServer>(server);
  EXPECT_EQ(rig.event(1).state, LinkState::kConnected);
  for (int round = 0; round < 2; round++) {
    for (std::uint64_t i = 0; i < options.pages; i++) rig.expect_page(i, 1);
  }
}

}  // namespace
}  // namespace kintsugi::test
