// SPDX-License-Identifier: GPL-2.0-or-later
// The meter, what it writes down, and its arguments.
#include "meter/meter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "meter/options.h"
#include "meter/recorder.h"

namespace kintsugi::meter {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr std::uint64_t kFast = 0x100000;
constexpr std::uint64_t kSlow = 0x200000;

// 64 KiB of 16 ways, all sets; ranges of 1 MiB.
std::unique_ptr<Meter> meter_of(unsigned vcpus, bool pages, unsigned sample = 1) {
  CacheGeometry g;
  g.size = Bytes{64 << 10};
  g.sample = sample;
  auto ranges =
      RangeMap::create({{"fast", kFast, Bytes{1 << 20}}, {"slow", kSlow, Bytes{1 << 20}}});
  EXPECT_TRUE(ranges.ok());
  auto meter = Meter::create(g, std::move(*ranges), vcpus, pages);
  EXPECT_TRUE(meter.ok());
  return std::make_unique<Meter>(std::move(*meter));
}

void sweep(Meter& meter, unsigned vcpu, std::uint64_t start, std::uint64_t bytes, bool write) {
  for (std::uint64_t at = start; at < start + bytes; at += 8) {
    if (!meter.cache().sampled(at) || meter.repeats(vcpu, at, write)) continue;
    meter.access(vcpu, {at, at, 8, write});
  }
}

std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "meter-test-XXXXXX";  // mktemp
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory); }

  std::filesystem::path directory;
};

TEST(Meter, CountsEachRangeByItself) {
  const auto meter = meter_of(1, false);
  sweep(*meter, 0, kFast, 1 << 20, true);
  sweep(*meter, 0, kSlow, 1 << 20, false);
  sweep(*meter, 0, 0, 4096, false);
  EXPECT_THAT(meter->traffic(), ElementsAre(Traffic{Bytes{1 << 20}, Bytes{1 << 20}},
                                            Traffic{Bytes{1 << 20}, {}}, Traffic{Bytes{4096}, {}}));
  EXPECT_EQ(meter->totals().sampled, (2 << 17) + 512);
}

TEST(Meter, WhatFitsIntoTheCacheIsNotWritten) {
  const auto meter = meter_of(1, false);
  for (int round = 0; round < 10; round++) sweep(*meter, 0, kSlow, 64 << 10, true);
  EXPECT_EQ(meter->traffic()[1], (Traffic{Bytes{64 << 10}, Bytes{0}}));
  EXPECT_EQ(meter->dirty()[1], Bytes{64 << 10});
}

TEST(Meter, ASampleIsScaled) {
  const auto meter = meter_of(1, true, 8);
  sweep(*meter, 0, kFast, 1 << 20, true);
  sweep(*meter, 0, kSlow, 1 << 20, false);
  EXPECT_EQ(meter->traffic()[0], (Traffic{Bytes{1 << 20}, Bytes{1 << 20}}));
  EXPECT_EQ(meter->totals().sampled, 2 << 14);
  std::uint64_t pages = 0;
  meter->take_page_writes([&](std::uint64_t address, Bytes written) {
    EXPECT_EQ(address, kFast + pages++ * kPageSize);
    EXPECT_EQ(written, Bytes{kPageSize});
  });
  EXPECT_EQ(pages, 256);
  meter->take_page_writes([](std::uint64_t, Bytes) { FAIL() << "they were taken already"; });
}

TEST(Meter, VcpusCountTogether) {
  constexpr unsigned kVcpus = 4;
  const auto meter = meter_of(kVcpus, true);
  std::vector<std::thread> threads;
  for (unsigned vcpu = 0; vcpu < kVcpus; vcpu++) {
    threads.emplace_back(
        [&, vcpu] { sweep(*meter, vcpu, kSlow + vcpu * (256 << 10), 256 << 10, true); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(meter->traffic()[1].read, Bytes{1 << 20});
  EXPECT_EQ(meter->traffic()[1].written + meter->dirty()[1], Bytes{1 << 20});
}

TEST(Meter, WithoutAllocationAWriteGoesPast) {
  CacheGeometry g;
  g.write_allocate = false;
  auto ranges = RangeMap::create({{"slow", kSlow, Bytes{1 << 20}}});
  auto meter = Meter::create(g, std::move(*ranges), 1, true);
  ASSERT_TRUE(meter.ok());
  meter->access(0, {kSlow + 8, kSlow + 8, 4, true});
  EXPECT_FALSE(meter->repeats(0, kSlow + 12, true));
  meter->access(0, {kSlow + 12, kSlow + 12, 4, true});
  EXPECT_EQ(meter->traffic()[0], (Traffic{Bytes{0}, Bytes{8 * 8}}));
  meter->access(0, {kSlow, kSlow, 8, false});
  EXPECT_FALSE(meter->repeats(0, kSlow, true));
  meter->access(0, {kSlow, kSlow, 8, true});  // a hit, which stays in the cache
  EXPECT_EQ(meter->traffic()[0], (Traffic{Bytes{8 * 64}, Bytes{8 * 8}}));
}

TEST(Meter, TheLastLineRepeatsUntilItIsAnother) {
  const auto meter = meter_of(2, false);
  EXPECT_FALSE(meter->repeats(0, kSlow, false));
  meter->access(0, {kSlow, kSlow, 8, false});
  EXPECT_TRUE(meter->repeats(0, kSlow + 63, false));
  EXPECT_FALSE(meter->repeats(0, kSlow + 64, false));
  EXPECT_FALSE(meter->repeats(1, kSlow, false));  // each vCPU has its own
  EXPECT_FALSE(meter->repeats(0, kSlow, true));   // it is not dirty yet
  meter->access(0, {kSlow, kSlow, 8, true});
  EXPECT_TRUE(meter->repeats(0, kSlow, true));
  EXPECT_TRUE(meter->repeats(0, kSlow, false));
  EXPECT_EQ(meter->dirty()[1], Bytes{64});
  EXPECT_EQ(meter->totals().sampled, 7);
}

TEST(Meter, PagesNeedRanges) {
  auto none = RangeMap::create({});
  const auto meter = Meter::create({}, std::move(*none), 1, true);
  ASSERT_FALSE(meter.ok());
  EXPECT_THAT(meter.error().message, HasSubstr("pages="));
}

TEST_F(Files, TheRecordIsJsonLines) {
  const auto meter = meter_of(1, true);
  const auto out = directory / "meter.jsonl";
  const auto pages = directory / "pages";
  auto recorder = Recorder::create(*meter, out, pages, std::chrono::milliseconds(500));
  ASSERT_TRUE(recorder.ok()) << recorder.error().message;
  sweep(*meter, 0, kFast, 1 << 20, true);
  ASSERT_TRUE(recorder->record().ok());
  sweep(*meter, 0, kSlow, 4096, true);
  meter->saw_io(0);
  ASSERT_TRUE(recorder->finish().ok());

  std::istringstream lines(text_of(out));
  std::vector<json> objects;
  for (std::string line; std::getline(lines, line);) objects.push_back(json::parse(line));
  ASSERT_EQ(objects.size(), 8);
  const json& header = objects.front();
  EXPECT_EQ(header["format"], "kintsugi-meter");
  EXPECT_EQ(header["version"], 1);
  EXPECT_EQ(header["interval"], 0.5);
  EXPECT_GT(header["unix_time"], 1.7e9);
  EXPECT_EQ(header["ranges"][1], (json{{"name", "slow"}, {"start", kSlow}, {"size", 1 << 20}}));
  EXPECT_EQ(header["cache"]["sample"], 1);
  const std::uint64_t held = 64 << 10;
  EXPECT_EQ(objects[1]["range"], "fast");
  EXPECT_EQ(objects[1]["read"], 1 << 20);
  EXPECT_EQ(objects[1]["written"], (1 << 20) - held);
  EXPECT_EQ(objects[2]["range"], "slow");
  EXPECT_EQ(objects[2]["read"], 0);
  EXPECT_EQ(objects[3]["range"], "other");
  EXPECT_EQ(objects[4]["written"], 4096);  // what the other page drove out
  EXPECT_GE(objects[4]["time"], objects[1]["time"]);
  EXPECT_EQ(objects[5]["read"], 4096);
  const json& end = objects.back();
  EXPECT_EQ(end["dirty"], (json{{"fast", held - 4096}, {"slow", 4096}, {"other", 0}}));
  EXPECT_EQ(end["sampled"], (1 << 17) + 512);
  EXPECT_EQ(end["io"], 1);

  std::istringstream page_lines(text_of(pages));
  std::string line;
  std::getline(page_lines, line);
  EXPECT_EQ(line, "kintsugi-page-writes 1");
  std::getline(page_lines, line);
  EXPECT_THAT(line, HasSubstr("unix-time "));
  std::getline(page_lines, line);
  EXPECT_THAT(line, HasSubstr("interval "));
  std::getline(page_lines, line);
  EXPECT_EQ(line, "0x100 4096");
}

TEST_F(Files, AFileThatCannotBeIsNamed) {
  const auto meter = meter_of(1, false);
  const auto missing = directory / "no" / "such";
  const auto recorder = Recorder::create(*meter, missing, "", std::chrono::milliseconds(500));
  ASSERT_FALSE(recorder.ok());
  EXPECT_THAT(recorder.error().message, HasSubstr(missing.string()));
  auto full = Recorder::create(*meter, "/dev/full", "", std::chrono::milliseconds(500));
  ASSERT_FALSE(full.ok());
  EXPECT_THAT(full.error().message, HasSubstr("No space left"));
}

std::string refused(std::vector<const char*> arguments) {
  const auto options = parse_options(arguments);
  return options.ok() ? "accepted" : options.error().message;
}

TEST(Options, AreRead) {
  const std::vector<const char*> arguments{"out=a",
                                           "range=dram:4G:100M",
                                           "range=mram:8G:4000M",
                                           "interval=0.5",
                                           "pages=b",
                                           "size=4M",
                                           "ways=8",
                                           "line=128",
                                           "sample=4",
                                           "policy=plru",
                                           "write-allocate=off"};
  const auto options = parse_options(arguments);
  ASSERT_TRUE(options.ok()) << options.error().message;
  EXPECT_EQ(options->out, "a");
  EXPECT_EQ(options->pages, "b");
  EXPECT_EQ(options->interval.count(), 500);
  ASSERT_EQ(options->pieces.size(), 2);
  EXPECT_EQ(options->pieces[1].start, std::uint64_t{8} << 30);
  EXPECT_EQ(options->cache.size, Bytes{4 << 20});
  EXPECT_EQ(options->cache.ways, 8);
  EXPECT_EQ(options->cache.line_bytes, 128);
  EXPECT_EQ(options->cache.sample, 4);
  EXPECT_EQ(options->cache.replacement, Replacement::kTreePlru);
  EXPECT_FALSE(options->cache.write_allocate);
}

TEST(Options, SayWhatTheyMayBe) {
  EXPECT_EQ(refused({"out=a"}), "accepted");
  EXPECT_THAT(refused({}), HasSubstr("out= is missing"));
  EXPECT_THAT(refused({"out"}), HasSubstr("'out' is not NAME=VALUE"));
  EXPECT_THAT(refused({"out=a", "pages=a"}), HasSubstr("same file"));
  EXPECT_THAT(refused({"out=a", "cache=1M"}), HasSubstr("unknown argument cache="));
  EXPECT_THAT(refused({"out=a", "size=x"}), HasSubstr("size=x"));
  EXPECT_THAT(refused({"out=a", "ways=8x"}), HasSubstr("ways=8x"));
  EXPECT_THAT(refused({"out=a", "ways=-1"}), HasSubstr("a whole number"));
  EXPECT_THAT(refused({"out=a", "policy=mru"}), HasSubstr("lru or plru"));
  EXPECT_THAT(refused({"out=a", "write-allocate=1"}), HasSubstr("on or off"));
  EXPECT_THAT(refused({"out=a", "interval=0"}), HasSubstr("0.01 to 3600 seconds"));
  EXPECT_THAT(refused({"out=a", "interval=nan"}), HasSubstr("interval=nan"));
  EXPECT_THAT(refused({"out=a", "range=x"}), HasSubstr("NAME:START:SIZE"));
}

}  // namespace
}  // namespace kintsugi::meter
