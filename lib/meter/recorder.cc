// SPDX-License-Identifier: GPL-2.0-or-later
#include "meter/recorder.h"

namespace kintsugi::meter {
namespace {

std::string describe(const CacheGeometry& g) {
  return fmt::format(
      R"("cache":{{"size":{},"ways":{},"line":{},"policy":"{}","write_allocate":{},"sample":{}}})",
      g.size.value, g.ways, g.line_bytes, g.replacement == Replacement::kLru ? "lru" : "plru",
      g.write_allocate, g.sample);
}

double unix_time_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

Result<Recorder> Recorder::create(Meter& meter, const std::string& out, const std::string& pages,
                                  std::chrono::milliseconds interval) {
  MeterHeader header;
  header.source = "write-meter";
  header.unix_time_s = unix_time_s();
  header.interval_s = std::chrono::duration<double>(interval).count();
  header.pieces = meter.ranges().pieces();
  header.details = describe(meter.cache().geometry());
  auto file = MeterFile::create(out, header);
  if (!file) return file.error();
  std::optional<PageWritesFile> page_file;
  if (!pages.empty()) {
    auto created = PageWritesFile::create(pages, header.unix_time_s);
    if (!created) return created.error();
    page_file = std::move(*created);
  }
  return Recorder(meter, std::move(*file), std::move(page_file));
}

double Recorder::elapsed_s() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

Result<void> Recorder::record() { return record_at(elapsed_s()); }

Result<void> Recorder::record_at(double time_s) {
  const std::vector<Traffic> now = meter_->traffic();
  for (std::size_t i = 0; i < now.size(); i++) {
    const Traffic since{Bytes{now[i].read.value - last_[i].read.value},
                        Bytes{now[i].written.value - last_[i].written.value}};
    if (auto good = file_.add(time_s, meter_->ranges().names()[i], since); !good) {
      return good.error();
    }
  }
  last_ = now;
  if (!pages_) return {};
  pages_->begin(time_s);
  meter_->take_page_writes(
      [&](std::uint64_t address, Bytes written) { pages_->add(address, written); });
  return pages_->flush();
}

Result<void> Recorder::finish() {
  const double time_s = elapsed_s();
  if (auto good = record_at(time_s); !good) return good.error();
  const Totals totals = meter_->totals();
  std::string details = fmt::format(R"("sampled":{},"io":{},"untranslated":{},"dirty":{{)",
                                    totals.sampled, totals.io, totals.untranslated);
  const std::vector<Bytes> dirty = meter_->dirty();
  for (std::size_t i = 0; i < dirty.size(); i++) {
    details +=
        fmt::format(R"({}"{}":{})", i == 0 ? "" : ",", meter_->ranges().names()[i], dirty[i].value);
  }
  return file_.end(time_s, details + "}");
}

}  // namespace kintsugi::meter
