// SPDX-License-Identifier: GPL-2.0-or-later
// What a migration stream says about a split VM: the handover plan, its inner plan, zero runs.
// Input: one byte that picks the decoder, then its bytes.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "split/handover.h"
#include "tests/unit/placement/split_plan_fuzz.h"

using namespace kintsugi;  // NOLINT: a program

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void fuzz_handover(std::span<const std::uint8_t> bytes) {
  const Result<Handover> handover = Handover::decode(bytes, PageCount{1 << 20});
  if (!handover) {
    check(!handover.error().message.empty());
    return;
  }
  check(handover->plan->pages() == handover->vm_pages);
  const Result<Handover> again = Handover::decode(handover->encode());
  check(again.ok() && *again->plan == *handover->plan && again->ranks == handover->ranks);
}

void fuzz_zero_runs(std::span<const std::uint8_t> bytes) {
  constexpr PageCount kVmPages{1 << 20};
  const Result<std::vector<ZeroRun>> runs = decode_zero_runs(bytes, kVmPages);
  if (!runs) return;
  for (const ZeroRun& run : *runs) check(run.first.value + run.count <= kVmPages.value);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::span<const std::uint8_t> bytes(data + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      fuzz_handover(bytes);
      break;
    case 1:
      fuzz_zero_runs(bytes);
      break;
    default:
      check(split_plan_bytes_are_handled(bytes));
  }
  return 0;
}
