// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as an access trace. What the reader takes must be in order and within the VM, and what
// the writer makes of it must read back alike.
#include <stdlib.h>

#include <cstdint>
#include <cstdio>
#include <vector>

#include "access/trace.h"

namespace kintsugi {
namespace {

using Scans = std::vector<std::vector<TraceRun>>;

// Reads to the end or the first error; false for the latter.
bool read_all(TraceReader& reader, Scans& scans) {
  std::vector<TraceRun> runs;
  for (;;) {
    const auto more = reader.next_scan(runs);
    if (!more) return false;
    if (!*more) return true;
    std::uint64_t free_from = 0;
    for (const TraceRun& run : runs) {
      if (run.first.value < free_from || run.count.value == 0) abort();
      free_from = run.first.value + run.count.value;
      if (free_from > reader.pages().value || free_from < run.first.value) abort();
      if ((run.access == TraceAccess::kAccessed) != (reader.version() == 1)) abort();
      if (run.write_backs != 0 && !reader.has_write_backs()) abort();
    }
    scans.push_back(runs);
  }
}

void write_and_read_again(const TraceReader& reader, const Scans& scans) {
  char* text = nullptr;
  std::size_t size = 0;
  auto writer = TraceWriter::write_to(FilePtr(open_memstream(&text, &size)), "written",
                                      reader.pages(), reader.has_write_backs());
  if (!writer) abort();
  for (const auto& runs : scans) {
    if (!writer->add_scan(runs)) abort();
  }
  if (!writer->close()) abort();
  {
    auto again = TraceReader::read_from(FilePtr(fmemopen(text, size, "r")), "again");
    Scans read;
    if (!again || !read_all(*again, read) || read != scans) abort();
  }
  free(text);
}

}  // namespace
}  // namespace kintsugi

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kintsugi;  // NOLINT: the border to libFuzzer
  if (size == 0) return 0;
  auto reader = TraceReader::read_from(
      FilePtr(fmemopen(const_cast<std::uint8_t*>(data), size, "r")), "fuzzed");
  if (!reader) return 0;
  Scans scans;
  if (read_all(*reader, scans) && reader->version() == 2) write_and_read_again(*reader, scans);
  return 0;
}
