// SPDX-License-Identifier: GPL-2.0-or-later
// What a server tells about itself: the control socket and the metrics show the same.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "memserver/stats.h"

namespace kintsugi::memserver {

struct SessionFigures {
  std::string id, name;
  std::uint64_t epoch = 0, vm_pages = 0, capacity_pages = 0, used_pages = 0;
  std::uint32_t connections = 0;
  bool committed = false;
};

struct ServerFigures {
  std::string server_id;
  std::vector<std::string> listen;
  std::string loop;
  std::uint64_t capacity_pages = 0, reserved_pages = 0, used_pages = 0, populated_bytes = 0;
  std::uint64_t connections = 0, connections_accepted = 0;
  std::uint64_t requests = 0, pages_put = 0, pages_got = 0, pages_missing = 0, pages_discarded = 0;
  std::uint64_t bytes_received = 0, bytes_sent = 0, fenced = 0, protocol_errors = 0;
  std::uint64_t bounced_puts = 0;
  std::array<std::uint64_t, Stats::kStatuses> refused_opens{};
  std::vector<SessionFigures> sessions;
};

// Any thread.
using CollectFigures = std::function<ServerFigures()>;

}  // namespace kintsugi::memserver
