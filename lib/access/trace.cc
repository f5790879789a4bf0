// SPDX-License-Identifier: GPL-2.0-or-later
#include "access/trace.h"

#include <charconv>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

namespace kintsugi {
namespace {

constexpr std::string_view kFirstLine = "kintsugi-access-trace ";
constexpr std::string_view kWriteBacksLine = "write-backs";
constexpr std::string_view kPagesWord = "pages ";
constexpr std::string_view kScanLine = "scan";
constexpr int kMaxLineBytes = 256;

// Takes a decimal number off the front of `text`.
bool take_number(std::string_view& text, std::uint64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(end - text.data());
  return true;
}

Error file_error(const char* doing, const std::string& name) {
  const int code = errno != 0 ? errno : EIO;
  return make_error(code, "cannot {} the access trace {}: {}", doing, name, std::strerror(code));
}

Result<FilePtr> open_file(const std::string& path, const char* mode, const char* doing) {
  errno = 0;
  FilePtr file(std::fopen(path.c_str(), mode));
  if (!file) return file_error(doing, path);
  return file;
}

}  // namespace

template <typename... Args>
Error TraceReader::bad_line(fmt::format_string<Args...> format, Args&&... args) const {
  return make_error(EINVAL, "{}:{}: {}", name_, line_number_,
                    fmt::format(format, std::forward<Args>(args)...));
}

Result<TraceReader> TraceReader::open(const std::string& path) {
  auto file = open_file(path, "re", "open");
  if (!file) return file.error();
  return read_from(std::move(*file), path);
}

Result<TraceReader> TraceReader::read_from(FilePtr file, std::string name) {
  TraceReader reader(std::move(file), std::move(name));
  if (auto ok = reader.read_header(); !ok) return ok.error();
  return reader;
}

// Reads into line_ what comes next, comments left out; false at the end of the file.
Result<bool> TraceReader::next_line() {
  char buffer[kMaxLineBytes + 2];
  do {
    ++line_number_;
    errno = 0;
    if (std::fgets(buffer, sizeof buffer, file_.get()) == nullptr) {
      if (std::ferror(file_.get()) != 0) return file_error("read", name_);
      return false;
    }
    line_ = buffer;
    if (line_.empty() || line_.back() != '\n') {
      // fgets() also stops at the end of the file, and a NUL byte hides the rest of a line.
      if (std::feof(file_.get()) != 0)
        return bad_line("the line is cut off: the trace is incomplete");
      return bad_line("not a line of text of at most {} characters", kMaxLineBytes);
    }
    line_.pop_back();
  } while (line_.starts_with('#'));
  return true;
}

Result<void> TraceReader::read_header() {
  auto line = next_line();
  if (!line) return line.error();
  std::string_view text = line_;
  if (!*line || !text.starts_with(kFirstLine)) {
    return bad_line("not an access trace: it must begin with \"{}2\"", kFirstLine);
  }
  text.remove_prefix(kFirstLine.size());
  if (text != "1" && text != "2") {
    return bad_line("an access trace of version {}, but only 1 and 2 are known", text);
  }
  version_ = text == "1" ? 1 : 2;
  line = next_line();
  if (!line) return line.error();
  text = line_;
  if (!*line || !text.starts_with(kPagesWord)) {
    return bad_line("expected \"pages N\", the pages of the VM");
  }
  text.remove_prefix(kPagesWord.size());
  if (!take_number(text, pages_.value) || !text.empty() || pages_.value == 0 ||
      pages_ > kMaxTracePages) {
    return bad_line("\"{}\": expected a number of pages from 1 to {}", line_, kMaxTracePages.value);
  }
  line = next_line();
  if (!line) return line.error();
  if (*line && version_ == 2 && line_ == kWriteBacksLine) {
    write_backs_ = true;
    line = next_line();
    if (!line) return line.error();
  }
  if (*line && line_ != kScanLine) return bad_line("\"{}\": expected \"scan\"", line_);
  in_scan_ = *line;
  return {};
}

// The run that line_ tells.
Result<TraceRun> TraceReader::parse_run() const {
  std::string_view text = line_;
  TraceRun run{.access = TraceAccess::kAccessed};
  bool good = true;
  if (version_ == 2) {
    good = text.size() > 2 && text[1] == ' ' &&
           (text[0] == 'r' || text[0] == 'w' || (text[0] == 'n' && write_backs_));
    if (good) {
      run.access = static_cast<TraceAccess>(text[0]);
      text.remove_prefix(2);
    }
  }
  good = good && take_number(text, run.first.value) && text.starts_with(' ');
  if (good) text.remove_prefix(1);
  good = good && take_number(text, run.count.value) && run.count.value > 0;
  if (good && write_backs_ && text.starts_with(' ')) {
    text.remove_prefix(1);
    std::uint64_t lines = 0;
    good = take_number(text, lines) && lines <= UINT32_MAX;
    run.write_backs = static_cast<std::uint32_t>(lines);
  }
  if (!good || !text.empty()) {
    return bad_line("\"{}\": expected \"{}FIRST COUNT{}\" in pages, or \"scan\"", line_,
                    version_ == 1  ? ""
                    : write_backs_ ? "r|w|n "
                                   : "r|w ",
                    write_backs_ ? " [LINES]" : "");
  }
  return run;
}

Result<bool> TraceReader::next_scan(std::vector<TraceRun>& runs) {
  runs.clear();
  if (!in_scan_) return false;
  std::uint64_t free_from = 0;  // where the next run may begin
  for (;;) {
    auto line = next_line();
    if (!line) return line.error();
    in_scan_ = *line && line_ == kScanLine;
    if (!*line || in_scan_) return true;
    const auto parsed = parse_run();
    if (!parsed) return parsed.error();
    const TraceRun& run = *parsed;
    if (run.first.value >= pages_.value || run.count.value > pages_.value - run.first.value) {
      return bad_line("\"{}\": past the end of the VM's {} pages", line_, pages_.value);
    }
    if (run.first.value < free_from) {
      return bad_line("\"{}\": runs of a scan must ascend and not overlap", line_);
    }
    free_from = run.first.value + run.count.value;
    runs.push_back(run);
  }
}

Result<bool> TraceReader::next_scan(std::vector<PageRun>& runs) {
  runs.clear();
  auto more = next_scan(scratch_);
  if (!more) return more;
  for (const TraceRun& run : scratch_) {
    if (run.access != TraceAccess::kNone) runs.push_back({run.first, run.count});
  }
  return more;
}

Result<TraceWriter> TraceWriter::create(const std::string& path, PageCount pages,
                                        bool write_backs) {
  auto file = open_file(path, "we", "create");
  if (!file) return file.error();
  return write_to(std::move(*file), path, pages, write_backs);
}

Result<TraceWriter> TraceWriter::write_to(FilePtr file, std::string name, PageCount pages,
                                          bool write_backs) {
  if (pages.value == 0 || pages > kMaxTracePages) {
    return make_error(EINVAL, "an access trace is of 1 to {} pages, not {}", kMaxTracePages.value,
                      pages.value);
  }
  TraceWriter writer(std::move(file), std::move(name), pages, write_backs);
  errno = 0;
  if (std::fprintf(writer.file_.get(), "%s2\npages %llu\n%s", kFirstLine.data(),
                   static_cast<unsigned long long>(pages.value),
                   write_backs ? "write-backs\n" : "") < 0) {
    return file_error("write", writer.name_);
  }
  return writer;
}

Result<void> TraceWriter::add_scan(std::span<const TraceRun> runs) {
  std::uint64_t free_from = 0;
  for (const TraceRun& run : runs) {
    if (run.count.value == 0 || run.first.value < free_from ||
        run.first >= PageIndex{pages_.value} || run.count.value > pages_.value - run.first.value) {
      return make_error(EINVAL, "run {} {} is empty, out of order, or past the VM's {} pages",
                        run.first.value, run.count.value, pages_.value);
    }
    if (run.access == TraceAccess::kAccessed ||
        (!write_backs_ && (run.access == TraceAccess::kNone || run.write_backs != 0))) {
      return make_error(EINVAL,
                        "run {} {} does not say whether it was written, or has write-backs "
                        "in a trace without them",
                        run.first.value, run.count.value);
    }
    free_from = run.first.value + run.count.value;
  }
  errno = 0;
  bool good = std::fprintf(file_.get(), "%s\n", kScanLine.data()) > 0;
  for (const TraceRun& run : runs) {
    good = good && std::fprintf(file_.get(), "%c %llu %llu", static_cast<char>(run.access),
                                static_cast<unsigned long long>(run.first.value),
                                static_cast<unsigned long long>(run.count.value)) > 0;
    if (run.write_backs != 0) good = good && std::fprintf(file_.get(), " %u", run.write_backs) > 0;
    good = good && std::fputc('\n', file_.get()) != EOF;
  }
  if (!good) return file_error("write", name_);
  return {};
}

Result<void> TraceWriter::close() {
  errno = 0;
  if (std::fclose(file_.release()) != 0) return file_error("write", name_);
  return {};
}

}  // namespace kintsugi
