// SPDX-License-Identifier: GPL-2.0-or-later
// Writes down what a meter counts, interval by interval.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "meter/meter.h"
#include "meter/meter_file.h"

namespace kintsugi::meter {

// One thread, which need not be one of those that count.
class Recorder {
 public:
  // Creates the files; `pages` may be empty. The meter is to outlive this, and time begins now.
  static Result<Recorder> create(Meter& meter, const std::string& out, const std::string& pages,
                                 std::chrono::milliseconds interval);

  // Writes what came since the last call.
  [[nodiscard]] Result<void> record();
  // The same, and the totals as the file's last line.
  [[nodiscard]] Result<void> finish();

 private:
  using Clock = std::chrono::steady_clock;

  Recorder(Meter& meter, MeterFile file, std::optional<PageWritesFile> pages)
      : meter_(&meter),
        file_(std::move(file)),
        pages_(std::move(pages)),
        last_(meter.ranges().names().size()) {}
  [[nodiscard]] double elapsed_s() const;
  Result<void> record_at(double time_s);

  Meter* meter_;
  MeterFile file_;
  std::optional<PageWritesFile> pages_;
  Clock::time_point start_ = Clock::now();
  std::vector<Traffic> last_;  // by name, at the last record
};

}  // namespace kintsugi::meter
