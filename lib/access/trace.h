// SPDX-License-Identifier: GPL-2.0-or-later
// Recorded accesses of a guest, one set of pages for each scan period: docs/access-trace.md.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

// Pages [first, first + count), all accessed in the same scan period.
struct PageRun {
  PageIndex first;
  PageCount count;
  bool operator==(const PageRun&) const = default;
};

inline constexpr PageCount kMaxTracePages{std::uint64_t{1} << 40};

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FilePtr = std::unique_ptr<std::FILE, CloseFile>;

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
  // The next scan's runs, ascending and apart; false at the end of the trace. After an error the
  // reader is of no more use.
  Result<bool> next_scan(std::vector<PageRun>& runs);

 private:
  TraceReader(FilePtr file, std::string name) : file_(std::move(file)), name_(std::move(name)) {}

  Result<void> read_header();
  Result<bool> next_line();
  template <typename... Args>
  Error bad_line(fmt::format_string<Args...> format, Args&&... args) const;

  FilePtr file_;
  std::string name_;
  std::string line_;               // without its newline
  std::uint64_t line_number_ = 0;  // of line_
  bool in_scan_ = false;           // line_ is the "scan" of the scan to read next
  PageCount pages_;
};

// Writes a trace. One thread.
class TraceWriter {
 public:
  static Result<TraceWriter> create(const std::string& path, PageCount pages);
  static Result<TraceWriter> write_to(FilePtr file, std::string name, PageCount pages);

  // One scan period: runs ascending, apart, and within the VM.
  [[nodiscard]] Result<void> add_scan(std::span<const PageRun> runs);
  // Says whether everything reached the file. Without it the file is closed all the same.
  [[nodiscard]] Result<void> close();

 private:
  TraceWriter(FilePtr file, std::string name, PageCount pages)
      : file_(std::move(file)), name_(std::move(name)), pages_(pages) {}

  FilePtr file_;
  std::string name_;
  PageCount pages_;
};

}  // namespace kintsugi
