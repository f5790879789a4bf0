// SPDX-License-Identifier: GPL-2.0-or-later
// What must hold for any bytes given to SplitPlan::decode(): for the unit test and for a fuzzer,
// whose LLVMFuzzerTestOneInput only has to call this.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "placement/split_plan.h"

namespace kintsugi {

// Decodes; what is accepted must encode to the same bytes again, and own every page once. False if
// that fails. Plans are bounded to 4 GiB of memory, so that a run of a few bytes stays quick.
inline bool split_plan_bytes_are_handled(std::span<const std::uint8_t> bytes) {
  const auto plan = SplitPlan::decode(bytes, PageCount{1 << 20});
  if (!plan) return !plan.error().message.empty();
  std::uint64_t pages = 0;
  for (unsigned owner = 0; owner <= plan->servers(); ++owner) {
    pages += plan->pages_on(ServerId{static_cast<std::uint8_t>(owner)}).value;
  }
  std::uint64_t next = 0;
  bool in_order = true;
  plan->for_each_run([&](ServerId owner, PageIndex first, PageCount count) {
    in_order = in_order && first.value == next && count.value > 0 &&
               owner.value <= plan->servers() && plan->owner(first) == owner;
    next = first.value + count.value;
  });
  std::vector<std::uint8_t> again;
  plan->encode(again);
  return in_order && next == plan->pages().value && pages == plan->pages().value &&
         std::equal(again.begin(), again.end(), bytes.begin(), bytes.end());
}

}  // namespace kintsugi
