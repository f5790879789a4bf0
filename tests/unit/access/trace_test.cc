// SPDX-License-Identifier: GPL-2.0-or-later
#include "access/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace kintsugi {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr const char* kHeader = "kintsugi-access-trace 1\npages 100\n";

FilePtr file_of(std::string_view text) {
  FilePtr file(std::tmpfile());
  EXPECT_EQ(text.size(), std::fwrite(text.data(), 1, text.size(), file.get()));
  std::rewind(file.get());
  return file;
}

PageRun run(std::uint64_t first, std::uint64_t count) {
  return {PageIndex{first}, PageCount{count}};
}

TraceRun run(TraceAccess access, std::uint64_t first, std::uint64_t count, unsigned lines = 0) {
  return {PageIndex{first}, PageCount{count}, access, lines};
}

// All scans of a trace, or the first error.
template <typename Run = PageRun>
Result<std::vector<std::vector<Run>>> read_all(std::string_view text) {
  auto reader = TraceReader::read_from(file_of(text), "t");
  if (!reader) return reader.error();
  std::vector<std::vector<Run>> scans;
  std::vector<Run> runs;
  for (;;) {
    auto more = reader->next_scan(runs);
    if (!more) return more.error();
    if (!*more) return scans;
    scans.push_back(runs);
  }
}

std::string error_of(std::string_view text) {
  const auto scans = read_all(text);
  return scans.ok() ? "no error" : scans.error().message;
}

TEST(TraceReader, ReadsScans) {
  const auto scans = read_all(
      "kintsugi-access-trace 1\n# by hand\npages 100\n# one\nscan\n0 16\n# two\n16 1\n99 1\n"
      "scan\nscan\n3 4\n");
  ASSERT_TRUE(scans.ok()) << scans.error().message;
  EXPECT_THAT(*scans, ElementsAre(ElementsAre(run(0, 16), run(16, 1), run(99, 1)), IsEmpty(),
                                  ElementsAre(run(3, 4))));
}

TEST(TraceReader, ReadsATraceWithoutScans) {
  const auto scans = read_all(kHeader);
  ASSERT_TRUE(scans.ok()) << scans.error().message;
  EXPECT_THAT(*scans, IsEmpty());
}

TEST(TraceReader, NamesTheLineOfAnError) {
  const std::string header = kHeader;
  EXPECT_THAT(error_of(""), StartsWith("t:1: not an access trace"));
  EXPECT_THAT(error_of("kintsugi-access-trace 3\n"),
              StartsWith("t:1: an access trace of version 3"));
  EXPECT_THAT(error_of("kintsugi-access-trace 1\n"), StartsWith("t:2: expected \"pages N\""));
  EXPECT_THAT(error_of("kintsugi-access-trace 1\npages 0\n"), StartsWith("t:2: \"pages 0\""));
  EXPECT_THAT(error_of("kintsugi-access-trace 1\npages 1x\n"), StartsWith("t:2: \"pages 1x\""));
  EXPECT_THAT(error_of(header + "0 1\n"), StartsWith("t:3: \"0 1\": expected \"scan\""));
  EXPECT_THAT(error_of(header + "scan\n5\n"), StartsWith("t:4: \"5\": expected \"FIRST COUNT\""));
  for (const char* bad : {"5 0", "5 -1", "-5 1", "5  1", " 5 1", "5 1 ", "5 1 1", "5\t1", "0x5 1",
                          "", "Scan", "scan 1", "5 1\r", "99999999999999999999 1"}) {
    EXPECT_THAT(error_of(header + "scan\n" + bad + "\n"), HasSubstr("t:4: ")) << bad;
  }
  EXPECT_THAT(error_of(header + "scan\n99 2\n"), HasSubstr("past the end of the VM's 100 pages"));
  EXPECT_THAT(error_of(header + "scan\n1 18446744073709551615\n"), HasSubstr("past the end"));
  EXPECT_THAT(error_of(header + "scan\n5 5\n9 1\n"), StartsWith("t:5: \"9 1\": runs of a scan"));
  EXPECT_THAT(error_of(header + "scan\n5 5\n2 1\n"), HasSubstr("must ascend"));
}

TEST(TraceReader, RefusesWhatIsCutOffOrNoText) {
  const std::string header = kHeader;
  EXPECT_THAT(error_of(header + "scan\n5 1"), HasSubstr("t:4: the line is cut off"));
  EXPECT_THAT(error_of(header + "scan\n" + std::string(257, '1') + "\n"), HasSubstr("at most 256"));
  EXPECT_THAT(error_of(header + "scan\n5 " + std::string(1, '\0') + "1\n0 1\n"),
              HasSubstr("not a line of text"));
}

TEST(TraceReader, SaysWhyAFileCannotBeOpened) {
  const auto reader = TraceReader::open("/nonexistent/trace");
  ASSERT_FALSE(reader.ok());
  EXPECT_EQ(ENOENT, reader.error().code);
  EXPECT_THAT(reader.error().message, HasSubstr("/nonexistent/trace"));
}

TEST(TraceReader, TellsReadsFromWrites) {
  const std::string_view text =
      "kintsugi-access-trace 2\npages 100\n# settings\nscan\nr 0 16\nw 16 3\nscan\n";
  const auto scans = read_all<TraceRun>(text);
  ASSERT_TRUE(scans.ok()) << scans.error().message;
  EXPECT_THAT(*scans, ElementsAre(ElementsAre(run(TraceAccess::kRead, 0, 16),
                                              run(TraceAccess::kWritten, 16, 3)),
                                  IsEmpty()));
  const auto accessed = read_all(text);
  ASSERT_TRUE(accessed.ok());
  EXPECT_THAT(*accessed, ElementsAre(ElementsAre(run(0, 16), run(16, 3)), IsEmpty()));
}

TEST(TraceReader, ReadsWriteBacks) {
  const std::string_view text =
      "kintsugi-access-trace 2\npages 100\nwrite-backs\nscan\nr 0 16\nw 16 3 64\nn 20 1 7\n";
  const auto scans = read_all<TraceRun>(text);
  ASSERT_TRUE(scans.ok()) << scans.error().message;
  EXPECT_THAT(*scans, ElementsAre(ElementsAre(run(TraceAccess::kRead, 0, 16),
                                              run(TraceAccess::kWritten, 16, 3, 64),
                                              run(TraceAccess::kNone, 20, 1, 7))));
  const auto accessed = read_all(text);
  ASSERT_TRUE(accessed.ok());
  EXPECT_THAT(*accessed, ElementsAre(ElementsAre(run(0, 16), run(16, 3))));
}

TEST(TraceReader, SaysOfVersion1ThatItCannotTell) {
  const auto scans = read_all<TraceRun>("kintsugi-access-trace 1\npages 100\nscan\n5 6\n");
  ASSERT_TRUE(scans.ok()) << scans.error().message;
  EXPECT_THAT(*scans, ElementsAre(ElementsAre(run(TraceAccess::kAccessed, 5, 6))));
  EXPECT_THAT(error_of("kintsugi-access-trace 1\npages 100\nwrite-backs\n"),
              HasSubstr("expected \"scan\""));
}

TEST(TraceReader, NamesTheLineOfAnErrorInVersion2) {
  const std::string plain = "kintsugi-access-trace 2\npages 100\nscan\n";
  for (const char* bad : {"5 1", "x 5 1", "n 5 1", "a 5 1", "w 5 1 1", "w  5 1", "w5 1", "w 5", "w",
                          "w ", "W 5 1", "w 5 0"}) {
    EXPECT_THAT(error_of(plain + bad + "\n"), StartsWith("t:4: \"")) << bad;
    EXPECT_THAT(error_of(plain + bad + "\n"), HasSubstr("\"r|w FIRST COUNT\" in pages")) << bad;
  }
  const std::string metered = "kintsugi-access-trace 2\npages 100\nwrite-backs\nscan\n";
  for (const char* bad : {"w 5 1 4294967296", "w 5 1 -1", "w 5 1 ", "w 5 1 1 1"}) {
    EXPECT_THAT(error_of(metered + bad + "\n"), HasSubstr("\"r|w|n FIRST COUNT [LINES]\"")) << bad;
  }
  EXPECT_THAT(error_of(plain + "w 5 5\nr 9 1\n"), HasSubstr("must ascend"));
  EXPECT_THAT(error_of(plain + "w 99 2\n"), HasSubstr("past the end"));
}

RC_GTEST_PROP(TraceProperty, WhatIsWrittenIsRead, (bool write_backs)) {
  std::vector<std::vector<TraceRun>> scans(*rc::gen::inRange(0, 6));
  std::uint64_t pages = 1;
  for (auto& scan : scans) {
    std::uint64_t at = 0;
    for (const auto& [gap, count, lines] :
         *rc::gen::arbitrary<std::vector<std::tuple<unsigned, unsigned, unsigned>>>()) {
      const TraceAccess accesses[] = {TraceAccess::kRead, TraceAccess::kWritten,
                                      TraceAccess::kNone};
      scan.push_back(run(accesses[lines % (write_backs ? 3 : 2)], at + gap,
                         std::uint64_t{count} + 1, write_backs ? lines : 0));
      at += std::uint64_t{gap} + count + 1;
    }
    pages = std::max(pages, at);
  }
  char path[] = "/tmp/kintsugi-trace-XXXXXX";
  const int fd = mkstemp(path);
  RC_ASSERT(fd >= 0);
  auto writer =
      TraceWriter::write_to(FilePtr(fdopen(fd, "w")), path, PageCount{pages}, write_backs);
  RC_ASSERT(writer.ok());
  for (const auto& scan : scans) RC_ASSERT(writer->add_scan(scan).ok());
  RC_ASSERT(writer->close().ok());

  auto reader = TraceReader::open(path);
  std::remove(path);
  RC_ASSERT(reader.ok());
  RC_ASSERT(reader->pages() == PageCount{pages});
  RC_ASSERT(reader->version() == 2U);
  RC_ASSERT(reader->has_write_backs() == write_backs);
  std::vector<TraceRun> runs;
  for (const auto& scan : scans) {
    auto more = reader->next_scan(runs);
    RC_ASSERT(more.ok());
    RC_ASSERT(*more);
    RC_ASSERT(runs == scan);
  }
  auto more = reader->next_scan(runs);
  RC_ASSERT(more.ok());
  RC_ASSERT(!*more);
}

RC_GTEST_PROP(TraceProperty, AnyTextIsReadOrRefused, (const std::string& noise)) {
  (void)read_all(noise);
  (void)read_all(kHeader + noise);
  (void)read_all("kintsugi-access-trace 2\npages 100\nwrite-backs\nscan\nw 0 1 " + noise);
  (void)read_all(std::string(kHeader) + "scan\n0 1\n" + noise);
}

TEST(TraceWriter, RefusesRunsThatAReaderWould) {
  constexpr auto kWritten = TraceAccess::kWritten;
  auto writer = TraceWriter::write_to(FilePtr(std::tmpfile()), "t", PageCount{10});
  ASSERT_TRUE(writer.ok());
  for (const auto& bad :
       std::vector<std::vector<TraceRun>>{{run(kWritten, 0, 0)},
                                          {run(kWritten, 10, 1)},
                                          {run(kWritten, 9, 2)},
                                          {run(kWritten, 5, 2), run(TraceAccess::kRead, 6, 1)},
                                          {run(kWritten, 1, ~0ULL)},
                                          {run(kWritten, 1, 1, 1)},
                                          {run(TraceAccess::kNone, 1, 1)},
                                          {run(TraceAccess::kAccessed, 1, 1)}}) {
    EXPECT_FALSE(writer->add_scan(bad).ok());
  }
  EXPECT_TRUE(writer->add_scan({}).ok());
  EXPECT_TRUE(writer->close().ok());
  EXPECT_FALSE(TraceWriter::write_to(FilePtr(std::tmpfile()), "t", PageCount{0}).ok());
}

TEST(TraceWriter, SaysWhenTheDiskIsFull) {
  auto writer = TraceWriter::create("/dev/full", PageCount{10});
  ASSERT_TRUE(writer.ok());
  const std::vector<TraceRun> runs = {run(TraceAccess::kRead, 0, 1)};
  ASSERT_TRUE(writer->add_scan(runs).ok());
  const auto closed = writer->close();
  ASSERT_FALSE(closed.ok());
  EXPECT_EQ(ENOSPC, closed.error().code);
}

}  // namespace
}  // namespace kintsugi
