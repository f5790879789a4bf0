// SPDX-License-Identifier: GPL-2.0-or-later
// Recorded accesses of a guest, one set of pages for each scan period: docs/access-trace.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

// Pages [first, first + count).
struct PageRun {
  PageIndex first;
  PageCount count;
  bool operator==(const PageRun&) const = default;
};

// What happened to a page in a scan period. The values are the letters in the file.
enum class TraceAccess : char {
  kAccessed = 'a',  // read or written: version 1 cannot tell
  kRead = 'r',      // and not written
  kWritten = 'w',   // and perhaps read
  kNone = 'n',      // neither, but cache lines of an earlier period were written back
};

// Pages of a scan period with the same fate.
struct TraceRun {
  PageIndex first;
  PageCount count;
  TraceAccess access = TraceAccess::kWritten;
  // Cache lines of 64 bytes of each page of the run that were written back to memory. 0 unless the
  // trace has them.
  std::uint32_t write_backs = 0;
  bool operator==(const TraceRun&) const = default;
};

inline constexpr std::uint32_t kWriteBackBytes = 64;
inline constexpr PageCount kMaxTracePages{std::uint64_t{1} << 40};

// Reads a trace from front to back, one scan at a time, in memory of one scan. One thread. Errors
// name the file and the line and say what was expected; nothing in the file is trusted.
class TraceReader {
 public:
  // Opens the file and reads its header.
  static Result<TraceReader> open(const std::string& path);
  // Reads from an open file; `name` is for errors.
  static Result<TraceReader> read_from(FilePtr file, std::string name);

  // Pages of the VM that was traced.
  [[nodiscard]] PageCount pages() const { return pages_; }
  // 1 or 2. A trace of version 1 has TraceAccess::kAccessed only.
  [[nodiscard]] unsigned version() const { return version_; }
  // Whether write-backs were counted when the trace was recorded.
  [[nodiscard]] bool has_write_backs() const { return write_backs_; }
  // The next scan's runs, ascending and apart; false at the end of the trace. After an error the
  // reader is of no more use.
  Result<bool> next_scan(std::vector<TraceRun>& runs);
  // The same, but only what was accessed, whether read or written.
  Result<bool> next_scan(std::vector<PageRun>& runs);

 private:
  TraceReader(FilePtr file, std::string name) : file_(std::move(file)), name_(std::move(name)) {}

  Result<void> read_header();
  Result<bool> next_line();
  Result<TraceRun> parse_run() const;
  template <typename... Args>
  Error bad_line(fmt::format_string<Args...> format, Args&&... args) const;

  FilePtr file_;
  std::string name_;
  std::string line_;               // without its newline
  std::uint64_t line_number_ = 0;  // of line_
  bool in_scan_ = false;           // line_ is the "scan" of the scan to read next
  unsigned version_ = 0;
  bool write_backs_ = false;
  std::vector<TraceRun> scratch_;
  PageCount pages_;
};

// Writes a trace of version 2. One thread.
class TraceWriter {
 public:
  // `write_backs`: they were counted, so a run with none of them says that there was none.
  static Result<TraceWriter> create(const std::string& path, PageCount pages,
                                    bool write_backs = false);
  static Result<TraceWriter> write_to(FilePtr file, std::string name, PageCount pages,
                                      bool write_backs = false);

  // One scan period: runs ascending, apart, and within the VM; none with TraceAccess::kAccessed,
  // and write-backs only if they are counted.
  [[nodiscard]] Result<void> add_scan(std::span<const TraceRun> runs);
  // Says whether everything reached the file. Without it the file is closed all the same.
  [[nodiscard]] Result<void> close();

 private:
  TraceWriter(FilePtr file, std::string name, PageCount pages, bool write_backs)
      : file_(std::move(file)), name_(std::move(name)), pages_(pages), write_backs_(write_backs) {}

  FilePtr file_;
  std::string name_;
  PageCount pages_;
  bool write_backs_;
};

}  // namespace kintsugi
