// SPDX-License-Identifier: GPL-2.0-or-later
// What meters of memory traffic write, whatever they measure with: docs/write-meter.md.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/file.h"
#include "base/result.h"
#include "base/types.h"
#include "meter/ranges.h"

namespace kintsugi::meter {

// To and from memory; of a sample, already multiplied.
struct Traffic {
  Bytes read;
  Bytes written;
  bool operator==(const Traffic&) const = default;
};

// The first line of a file.
struct MeterHeader {
  std::string source;      // the program: "write-meter"
  double unix_time_s = 0;  // when the measurement began: time 0 of the lines
  double interval_s = 1;
  std::span<const Piece> pieces;
  std::string details;  // more members of the JSON object, for people; may be empty
};

// JSON, one object a line, each line written out at once. One thread. After an error the file is of
// no more use; the error names it.
class MeterFile {
 public:
  static Result<MeterFile> create(const std::string& path, const MeterHeader& header);

  // Traffic of one name in the interval that ended at `time_s`; times ascend.
  [[nodiscard]] Result<void> add(double time_s, std::string_view name, const Traffic& traffic);
  // The last line. `details`: more members.
  [[nodiscard]] Result<void> end(double time_s, std::string_view details);

 private:
  MeterFile(FilePtr file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}
  Result<void> write(const std::string& line);

  FilePtr file_;
  std::string path_;
};

// Bytes written page by page, as text: docs/write-meter.md. As MeterFile.
class PageWritesFile {
 public:
  static Result<PageWritesFile> create(const std::string& path, double unix_time_s);

  // Begins the list of the interval that ended at `time_s`.
  void begin(double time_s);
  // One page of it, in ascending order.
  void add(std::uint64_t address, Bytes written);
  // Writes the list out.
  [[nodiscard]] Result<void> flush();

 private:
  PageWritesFile(FilePtr file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  FilePtr file_;
  std::string path_;
};

}  // namespace kintsugi::meter
