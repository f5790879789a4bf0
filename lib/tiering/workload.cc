// SPDX-License-Identifier: GPL-2.0-or-later
#include "tiering/workload.h"

#include <utility>

#include "tiering/placement.h"

namespace kintsugi {

Result<Workload> load_workload(const std::string& path, bool accesses_are_writes) {
  auto reader = TraceReader::open(path);
  if (!reader) return reader.error();
  if (reader->version() == 1 && !accesses_are_writes) {
    return make_error(EINVAL,
                      "{} is an access trace of version 1, which does not say what was written: "
                      "record it again in version 2, or take all accesses for writes",
                      path);
  }
  if (reader->pages() > kMaxTieringPages) {
    return make_error(EINVAL, "{} is of {} pages, but tiering is for {} at most", path,
                      reader->pages().value, kMaxTieringPages.value);
  }
  Workload workload{.name = path, .pages = reader->pages(), .metered = reader->has_write_backs()};
  std::vector<TraceRun> runs;
  for (;;) {
    const auto more = reader->next_scan(runs);
    if (!more) return more.error();
    if (!*more) break;
    for (TraceRun& run : runs) {
      if (run.access == TraceAccess::kAccessed) run.access = TraceAccess::kWritten;
    }
    workload.scans.push_back(runs);
  }
  if (workload.scans.empty()) return make_error(EINVAL, "{} has no scans", path);
  return workload;
}

}  // namespace kintsugi
