// SPDX-License-Identifier: GPL-2.0-or-later
// What the source of a split migration tells the destination, as bytes in the migration stream:
// the handover plan once, then changes. Decoding trusts nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "access/history.h"
#include "base/result.h"
#include "base/types.h"
#include "placement/split_plan.h"
#include "wire/protocol.h"

namespace kintsugi {

struct HandoverServer {
  std::string uri;
  PageCount capacity;
  Epoch epoch;  // the source's
};

struct Handover {
  wire::SessionId session{};
  wire::Ticket ticket{};  // with which the destination may claim
  PageCount vm_pages;
  PageCount chunk_pages;
  PageCount main_limit;  // pages that may be resident on the main host
  AccessPolicy policy = AccessPolicy::kAging;
  std::vector<HandoverServer> servers;  // the first is the arbiter
  std::optional<SplitPlan> plan;        // always there once made or decoded
  std::vector<std::uint16_t> ranks;     // of all chunks; empty when the source had no history

  [[nodiscard]] std::vector<std::uint8_t> encode() const;
  // A plan for more than `max_pages` is refused before memory is taken for it.
  [[nodiscard]] static Result<Handover> decode(std::span<const std::uint8_t> bytes,
                                               PageCount max_pages = kMaxPlanPages);
};

// Whether this host reaches every server of the handover and finds the VM's session there: asked
// when the plan arrives, because the next time is when the VM is stopped. All servers at once;
// blocks for `timeout` at most to connect and again to be answered.
[[nodiscard]] Result<void> check_servers(const Handover& handover,
                                         std::chrono::milliseconds timeout);

// A run of pages planned away from the main host that turned out all zero, or no longer so.
struct ZeroRun {
  PageIndex first;
  std::uint32_t count = 0;
  bool zero = false;

  bool operator==(const ZeroRun&) const = default;
};

[[nodiscard]] std::vector<std::uint8_t> encode_zero_runs(std::span<const ZeroRun> runs);
// Every run lies within `vm_pages`.
[[nodiscard]] Result<std::vector<ZeroRun>> decode_zero_runs(std::span<const std::uint8_t> bytes,
                                                            PageCount vm_pages);

}  // namespace kintsugi
