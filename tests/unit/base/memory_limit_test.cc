// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/memory_limit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace kintsugi {
namespace {

using testing::HasSubstr;

class MemoryLimitTest : public testing::Test {
 protected:
  MemoryLimitTest() {
    std::string name = "/tmp/ks-limit-XXXXXX";
    root_ = mkdtemp(name.data());
    write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
  }
  ~MemoryLimitTest() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  [[nodiscard]] MemoryLimit limit() const { return memory_limit(root_ / "proc", root_ / "sys"); }

  std::filesystem::path root_;
};

TEST_F(MemoryLimitTest, WithoutAGroupItIsTheMachines) {
  EXPECT_EQ(limit().bytes, Bytes{16ULL << 30});
  write("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(limit().bytes, Bytes{16ULL << 30});
  EXPECT_THAT(limit().where, HasSubstr("RAM"));
}

TEST_F(MemoryLimitTest, TheSmallestGroupOfVersion2Counts) {
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  write("sys/fs/cgroup/a/memory.max", "2147483648\n");
  EXPECT_EQ(limit().bytes, Bytes{2ULL << 30});
  EXPECT_THAT(limit().where, HasSubstr("memory.max of the control group /a"));
  write("sys/fs/cgroup/a/b/memory.max", "1073741824\n");
  EXPECT_EQ(limit().bytes, Bytes{1ULL << 30});
}

TEST_F(MemoryLimitTest, TheMemoryGroupOfVersion1Counts) {
  write("proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/vm\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/vm/memory.limit_in_bytes", "536870912\n");
  EXPECT_EQ(limit().bytes, Bytes{512ULL << 20});
  EXPECT_THAT(limit().where, HasSubstr("memory.limit_in_bytes"));
}

TEST_F(MemoryLimitTest, NonsenseIsNoLimit) {
  write("proc/self/cgroup", "\n:::\nnothing\n4:memory\n1:memory:relative\n");
  EXPECT_EQ(limit().bytes, Bytes{16ULL << 30});
}

TEST(MemoryLimit, OfThisMachineIsSomething) { EXPECT_GT(memory_limit().bytes.value, 1ULL << 20); }

}  // namespace
}  // namespace kintsugi
