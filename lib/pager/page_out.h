// SPDX-License-Identifier: GPL-2.0-or-later
// Takes pages from the guest into the eviction queue: content and mapping at one instant.
#pragma once

#include <cstdint>
#include <memory>

#include "pager/core.h"
#include "pager/staging.h"

namespace kintsugi {

// Bits are places in the unit. Pages asked for that are in none of these were in use (in flight, no
// longer local) or taken back by the guest meanwhile.
struct TakenPages {
  std::uint64_t staged = 0;  // content in the frame, state Evicting
  std::uint64_t holes = 0;   // never populated: state Evicting, no content
  unsigned refused = 0;      // pages that the kernel would not give: Local as before
};

// On E. Pages taken are subtracted from core.resident; those that end up staged stay in
// core.queued.
class PageOut {
 public:
  virtual ~PageOut() = default;
  // Takes those of the unit's pages whose bit is set in `want` and that are local. `frame` is of
  // that unit and empty; its `staged` is set as soon as each page's content may be used.
  virtual TakenPages take(Staging::Frame& frame, unsigned index, PageIndex first,
                          std::uint64_t want, ServerId server) = 0;
};

// By core.method:
// - kPageout: one UFFDIO_PAGEOUT for all of the unit. A pinned page stays.
// - kMove: UFFDIO_MOVE of runs. A pinned page (EBUSY) stays; EAGAIN after a part continues behind
//   it.
// - kWriteProtect: write-protect, copy, discard, wake. A write between the first two takes a page
//   back. Blind to pins: a device or O_DIRECT that writes into a page meanwhile is lost.
[[nodiscard]] Result<std::unique_ptr<PageOut>> make_page_out(PagerCore& core);

}  // namespace kintsugi
