// SPDX-License-Identifier: GPL-2.0-or-later
// What the pager's threads share. Lives as long as the Pager; everything here is either constant
// after start(), atomic, or says which thread it belongs to.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pager/doorbell.h"
#include "pager/latency.h"
#include "pager/location_map.h"
#include "pager/ownership.h"
#include "pager/pager.h"
#include "pager/recent_chunks.h"
#include "pager/regions.h"
#include "pager/server_link.h"
#include "pager/spsc_ring.h"
#include "pager/staging.h"
#include "pager/uffd.h"
#include "pager/wait_table.h"
#include "placement/split_plan.h"

namespace kintsugi {

// Pages that a server may forget, because they have been fetched: F and P tell E.
//
// Ordering (the data's safety hangs on it): F and P push a page here *before* they complete its
// fetch in the location map; E empties the rings *after* it has begun the page's next eviction and
// before it queues the Put. So the Discard always stands before the Put in the server's queue.
struct DiscardRun {
  std::uint64_t packed = 0;

  static constexpr unsigned kMaxPages = 1U << 10;
  static DiscardRun of(PageIndex first, unsigned pages, ServerId server) {
    return {first.value << 16 | std::uint64_t{pages - 1} << 6 | server.value};
  }
  [[nodiscard]] PageIndex first() const { return PageIndex{packed >> 16}; }
  [[nodiscard]] unsigned pages() const {
    return static_cast<unsigned>(packed >> 6 & (kMaxPages - 1)) + 1;
  }
  [[nodiscard]] ServerId server() const { return ServerId{static_cast<std::uint8_t>(packed & 63)}; }
};

inline constexpr std::size_t kDiscardRing = 1U << 16;
inline constexpr std::size_t kPrefetchRing = 1U << 10;

// Figures of one server. Each field has one writing thread, but for `pages`.
struct ServerCounters {
  std::atomic<std::int64_t> pages{0};  // Remote there
  Counter page_ins;                    // F
  Counter bytes_in_urgent;             // F
  Counter prefetched;                  // P
  Counter bytes_in_bulk;               // P
  Counter page_outs;                   // E
  Counter bytes_out;                   // E
  // Pages asked for on the bulk lane and not yet here (P).
  std::atomic<std::uint32_t> bulk_pages{0};
};

struct FaultCounters {
  Counter faults, page_ins, prefetch_hits, zero_fills, queue_hits, write_cancels, refaults,
      hard_waits, install_retries;
};

struct EvictCounters {
  Counter page_outs, zero, refused, discards;
  LatencyHistogram page_out;
};

[[nodiscard]] inline std::vector<Epoch> epochs_of(const PagerConfig& config) {
  std::vector<Epoch> epochs;
  for (const PagerServerConfig& server : config.servers) epochs.push_back(server.epoch);
  return epochs;
}

struct PagerCore {
  PagerCore(PagerConfig config_in, LocationMap map_in, SplitPlan plan_in)
      : config(std::move(config_in)),
        map(std::move(map_in)),
        plan(std::move(plan_in)),
        ownership(config.ticket, epochs_of(config)),
        per_server(config.servers.size()) {}

  PagerConfig config;
  LocationMap map;
  SplitPlan plan;
  Regions regions;
  std::unique_ptr<Uffd> uffd;
  std::unique_ptr<Staging> staging;
  PageOutMethod method = PageOutMethod::kMove;
  std::string method_reason;
  // See PageOutSupport::move_takes_zero_page.
  bool zero_by_copy = false;

  Ownership ownership;
  std::vector<std::unique_ptr<ServerLink>> links;  // [server - 1]
  std::vector<ServerCounters> per_server;          // [server - 1]
  // Pages stored on the server, stale ones included, when claimed; afterwards E's own count.
  std::vector<std::uint64_t> used_at_start;
  std::vector<std::uint64_t> remote_at_start;  // without the stale ones
  // Every server has been claimed, so `pages` of per_server is what it must have.
  std::atomic<bool> claimed{false};

  // Limits on resident + queued, in pages.
  std::int64_t limit = 0;
  std::int64_t prefetch_limit = 0;  // prefetching stops here
  std::int64_t evict_at = 0;        // eviction starts here
  std::atomic<bool> committed{false};
  std::int64_t evict_to = 0;  // and goes on until resident is here

  std::atomic<std::int64_t> resident{0};  // Local, or room taken for a fetch
  std::atomic<std::int64_t> queued{0};    // staged for eviction, or about to be
  std::atomic<std::int64_t> zero{0};      // Zero

  std::atomic<bool> stopping{false};
  std::atomic<bool> released{false};
  // F has faults that wait for room.
  std::atomic<bool> room_wanted{false};

  Doorbell fault_bell;
  Doorbell prefetch_bell;
  Doorbell evict_bell;    // room is getting short
  Doorbell discard_bell;  // there is something to discard: no hurry

  SpscRing<DiscardRun> fault_discards;      // F to E
  SpscRing<DiscardRun> prefetch_discards;   // P to E
  SpscRing<std::uint64_t> prefetch_wishes;  // F to P: pages whose chunk is wanted
  RecentChunks recently_in;                 // F writes, E reads
  RecentChunks recently_out;                // E writes, F reads

  WaitTable waits;  // F begins them; F and P end them
  FaultCounters faults;
  EvictCounters evictions;

  [[nodiscard]] ServerLink& link(ServerId server) const { return *links[server.value - 1U]; }
  [[nodiscard]] ServerCounters& counters(ServerId server) { return per_server[server.value - 1U]; }
  [[nodiscard]] std::uint64_t chunk_of(PageIndex page) const {
    return page.value / config.chunk_pages.value;
  }

  // Takes room for pages to come, if that leaves no more than `bound` in use.
  [[nodiscard]] bool take_room(std::int64_t pages, std::int64_t bound) {
    std::int64_t here = resident.load(std::memory_order_acquire);
    do {
      if (here + pages + queued.load(std::memory_order_acquire) > bound) return false;
    } while (!resident.compare_exchange_weak(here, here + pages, std::memory_order_acq_rel));
    return true;
  }
  // What faults may fill: before the handover is committed nothing can be paged out, and devices
  // that are being loaded must not wait for it.
  [[nodiscard]] std::int64_t fault_limit() const {
    return committed.load(std::memory_order_acquire) ? limit : INT64_MAX;
  }
  void give_room(std::int64_t pages) { resident.fetch_sub(pages, std::memory_order_acq_rel); }
  // On E: pages on their way out count as queued before they stop to count as resident, so that
  // take_room() never finds less in use than there is.
  void begin_taking(std::int64_t pages) {
    queued.fetch_add(pages, std::memory_order_acq_rel);
    give_room(pages);
  }
  // Of these, the ones that have no content in the queue after all.
  void not_taken(std::int64_t pages) { queued.fetch_sub(pages, std::memory_order_acq_rel); }
  [[nodiscard]] std::int64_t in_use() const {
    return resident.load(std::memory_order_acquire) + queued.load(std::memory_order_acquire);
  }
  void ring_all() {
    fault_bell.ring_always();
    prefetch_bell.ring_always();
    evict_bell.ring_always();
  }
  // After room was taken: lets E start before it is short.
  void evict_if_short() {
    if (in_use() > evict_at) evict_bell.ring();
  }
};

}  // namespace kintsugi
