// SPDX-License-Identifier: GPL-2.0-or-later
// The prefetch thread (P): brings the rest of a chunk whose page was touched (P1 4-2).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pager/core.h"
#include "pager/lane_port.h"

namespace kintsugi {

// Requests that may be under way, over all servers.
inline constexpr unsigned kMaxBulkRequests = 256;
// Pages of one request: small enough that the first of a chunk do not wait for the last.
inline constexpr unsigned kBulkRunPages = 32;

// Never takes the last room, and gives a wish up rather than wait: what is not prefetched is
// fetched when it is touched.
class PrefetchThread {
 public:
  [[nodiscard]] static Result<std::unique_ptr<PrefetchThread>> create(PagerCore& core);
  ~PrefetchThread();
  PrefetchThread(const PrefetchThread&) = delete;
  PrefetchThread& operator=(const PrefetchThread&) = delete;

  // Until core.stopping.
  void run();

 private:
  struct Request {
    PageIndex first;
    std::uint32_t use = 0;
    std::uint32_t pages = 0;  // all claimed; 0: free
    ServerId server;
  };
  struct BulkLane : LanePort {
    std::vector<std::uint16_t> unsent;  // request numbers; capacity kMaxBulkRequests
    unsigned outstanding = 0;
    bool dirty = false;
  };

  explicit PrefetchThread(PagerCore& core) : core_(core) {}
  [[nodiscard]] Result<void> init();

  void take_wishes();
  void fetch_chunk(PageIndex touched);
  // Asks for pages of [first, end) that are remote and free; false when there is no more room.
  bool fetch_range(std::uint64_t first, std::uint64_t end);
  void ask(PageIndex first, unsigned pages, ServerId server);
  void on_answer(BulkLane& lane, const wire::FrameHeader& header,
                 std::span<const std::uint8_t> payload);
  // Installs pages that are contiguous in the answer; those that could not be are given up.
  void install(PageIndex first, unsigned pages, const std::uint8_t* content, ServerId server);
  void complete(PageIndex first, unsigned pages, ServerId server);
  void give_up(PageIndex first, unsigned pages);
  // Of pages that are here, or whose waiters were woken, from `at` on.
  void end_waits(PageIndex first, unsigned pages, std::uint64_t at);
  void flush(BulkLane& lane);
  void check_links();
  void check_timeouts(std::uint64_t now);
  void release_all();
  void watch(int fd, std::uint32_t events, std::uint32_t tag, bool add);

  PagerCore& core_;
  int epoll_ = -1;
  std::vector<BulkLane> lanes_;  // [server - 1]
  std::vector<Request> requests_;
  std::vector<std::uint16_t> free_requests_;
  bool released_ = false;
  std::uint64_t now_ = 0;
  std::uint64_t checked_ns_ = 0;
};

}  // namespace kintsugi
