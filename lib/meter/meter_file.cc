// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/meter_file.h"

#include <cerrno>
#include <cstdio>
#include <system_error>

namespace kintsugi::meter {
namespace {

Error file_error(const char* doing, const std::string& path) {
  const int code = errno != 0 ? errno : EIO;
  return make_error(code, "cannot {} {}: {}", doing, path, std::generic_category().message(code));
}

Result<FilePtr> create_file(const std::string& path) {
  errno = 0;
  FilePtr file(std::fopen(path.c_str(), "we"));
  if (!file) return file_error("create", path);
  return file;
}

Result<void> write_text(std::FILE* file, const std::string& path, const std::string& text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), file) != text.size() || std::fflush(file) != 0) {
    return file_error("write", path);
  }
  return {};
}

}  // namespace

Result<MeterFile> MeterFile::create(const std::string& path, const MeterHeader& header) {
  auto file = create_file(path);
  if (!file) return file.error();
  MeterFile meter(std::move(*file), path);
  std::string ranges;
  for (const Piece& piece : header.pieces) {
    ranges += fmt::format(R"({}{{"name":"{}","start":{},"size":{}}})", ranges.empty() ? "" : ",",
                          piece.name, piece.start, piece.size.value);
  }
  auto good = meter.write(
      fmt::format(R"({{"format":"kintsugi-meter","version":1,"source":"{}","unix_time":{:.3f},)"
                  R"("interval":{:.3f},"ranges":[{}]{}{}}})",
                  header.source, header.unix_time_s, header.interval_s, ranges,
                  header.details.empty() ? "" : ",", header.details));
  if (!good) return good.error();
  return meter;
}

Result<void> MeterFile::write(const std::string& line) {
  return write_text(file_.get(), path_, line + "\n");
}

Result<void> MeterFile::add(double time_s, std::string_view name, const Traffic& traffic) {
  return write(fmt::format(R"({{"time":{:.3f},"range":"{}","read":{},"written":{}}})", time_s, name,
                           traffic.read.value, traffic.written.value));
}

Result<void> MeterFile::end(double time_s, std::string_view details) {
  return write(fmt::format(R"({{"end":{:.3f}{}{}}})", time_s, details.empty() ? "" : ",", details));
}

Result<PageWritesFile> PageWritesFile::create(const std::string& path, double unix_time_s) {
  auto file = create_file(path);
  if (!file) return file.error();
  PageWritesFile pages(std::move(*file), path);
  const std::string header = fmt::format("kintsugi-page-writes 1\nunix-time {:.3f}\n", unix_time_s);
  if (auto good = write_text(pages.file_.get(), path, header); !good) return good.error();
  return pages;
}

void PageWritesFile::begin(double time_s) { fmt::print(file_.get(), "interval {:.3f}\n", time_s); }

void PageWritesFile::add(std::uint64_t address, Bytes written) {
  fmt::print(file_.get(), "{:#x} {}\n", address >> kPageShift, written.value);
}

Result<void> PageWritesFile::flush() {
  errno = 0;
  if (std::fflush(file_.get()) != 0 || std::ferror(file_.get()) != 0) {
    return file_error("write", path_);
  }
  return {};
}

}  // namespace kintsugi::meter
