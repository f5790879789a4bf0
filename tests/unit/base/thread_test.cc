// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/thread.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>

namespace kintsugi {
namespace {

// In a child process: from here on no thread can be made.
void allow_no_threads() {
  [[maybe_unused]] const int not_root = setuid(65534);
  const rlimit none{0, 0};
  setrlimit(RLIMIT_NPROC, &none);
}

TEST(Thread, OneThatCannotBeMadeIsAnError) {
  EXPECT_EXIT(
      {
        allow_no_threads();
        const Result<std::thread> thread = start_thread("ks-test", [] {});
        const bool good = !thread && thread.error().code == EAGAIN &&
                          thread.error().message.find("ks-test") != std::string::npos;
        _exit(good ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST(Thread, WorkGetsDoneWithoutThreads) {
  EXPECT_EXIT(
      {
        allow_no_threads();
        int done = 0;
        for_each_at_once(7, [&](std::size_t) { done++; });
        _exit(done == 7 ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST(Thread, WorkIsDoneAtOnce) {
  constexpr std::size_t kCount = 5;
  std::atomic<std::size_t> there{0};
  std::atomic<std::size_t> done{0};
  for_each_at_once(kCount, [&](std::size_t) {
    there++;
    there.notify_all();
    for (std::size_t n = there; n < kCount; n = there) there.wait(n);
    done++;
  });
  EXPECT_EQ(done, kCount);
}

}  // namespace
}  // namespace kintsugi
