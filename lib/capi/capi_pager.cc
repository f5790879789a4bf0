// SPDX-License-Identifier: GPL-2.0-or-later
// The C interface of the destination's pager.
#include <memory>
#include <new>

#include "capi/capi_internal.h"
#include "pager/pager.h"
#include "split/handover.h"

using namespace kintsugi;        // NOLINT: this file is the border
using namespace kintsugi::capi;  // NOLINT

struct KsPager {
  Handover handover;
  std::chrono::milliseconds io_timeout{5000};
  KsHistory history;  // outlives the pager below
  std::unique_ptr<Pager> pager;
};

namespace {

PageOutMethod to_method(KsPageOut method) {
  switch (method) {
    case KS_PAGE_OUT_MOVE:
      return PageOutMethod::kMove;
    case KS_PAGE_OUT_WRITE_PROTECT:
      return PageOutMethod::kWriteProtect;
    case KS_PAGE_OUT_PAGEOUT:
      return PageOutMethod::kPageout;
    default:
      return PageOutMethod::kAuto;
  }
}

KsServerState to_state(LinkState state) {
  switch (state) {
    case LinkState::kLost:
      return KS_SERVER_LOST;
    case LinkState::kPagesLost:
      return KS_SERVER_PAGES_LOST;
    default:
      return KS_SERVER_CONNECTED;
  }
}

std::function<void(const ServerEvent&)> to_callback(const KsPagerConfig& config) {
  return [callback = config.on_server_event, opaque = config.opaque](const ServerEvent& event) {
    if (callback == nullptr) return;
    const KsServerEvent c_event{event.uri.c_str(), to_state(event.state), event.error.c_str()};
    callback(opaque, &c_event);
  };
}

Result<std::unique_ptr<AccessHistory>> make_history(const Handover& handover) {
  AccessHistoryConfig config;
  config.pages = handover.vm_pages;
  config.chunk_pages = handover.chunk_pages;
  config.policy = handover.policy;
  Result<std::unique_ptr<AccessHistory>> history = AccessHistory::create(config);
  if (history && !handover.ranks.empty()) {
    if (Result<void> known = (*history)->import_ranks(ChunkIndex{0}, handover.ranks); !known) {
      return known.error();
    }
  }
  return history;
}

Result<std::unique_ptr<KsPager>> make_pager(std::span<const std::uint8_t> plan,
                                            const KsPagerConfig& c) {
  Result<Handover> handover = Handover::decode(plan, PageCount{c.vm_pages});
  if (!handover) return handover.error();
  if (handover->vm_pages != PageCount{c.vm_pages}) {
    return make_error(EINVAL, "the plan is for a VM of {} pages, this one has {}",
                      handover->vm_pages.value, c.vm_pages);
  }
  Result<std::unique_ptr<AccessHistory>> history = make_history(*handover);
  if (!history) return history.error();
  auto pager = std::make_unique<KsPager>();
  pager->handover = std::move(*handover);
  pager->history.history = std::move(*history);

  PagerConfig config;
  config.session = pager->handover.session;
  config.ticket = pager->handover.ticket;
  for (const HandoverServer& server : pager->handover.servers) {
    Result<wire::Uri> uri = wire::parse_uri(server.uri);
    if (!uri) return uri.error();
    config.servers.push_back({std::move(*uri), server.capacity, server.epoch});
  }
  config.vm_pages = pager->handover.vm_pages;
  config.chunk_pages = pager->handover.chunk_pages;
  config.limit = pager->handover.main_limit;
  config.method = to_method(c.page_out);
  config.history = pager->history.history.get();
  config.on_server_event = to_callback(c);
  if (c.io_timeout_ms != 0) pager->io_timeout = std::chrono::milliseconds{c.io_timeout_ms};
  config.io_timeout = pager->io_timeout;
  Result<std::unique_ptr<Pager>> made = Pager::create(std::move(config), *pager->handover.plan);
  if (!made) return made.error();
  pager->pager = std::move(*made);
  pager->handover.ranks = {};
  return pager;
}

}  // namespace

extern "C" {

KsPager* ks_pager_new(const void* plan, size_t bytes, const KsPagerConfig* config, KsError* err) {
  return guarded(err, nullptr, [&]() -> KsPager* {
    Result<std::unique_ptr<KsPager>> pager =
        make_pager({static_cast<const std::uint8_t*>(plan), bytes}, *config);
    if (!pager) {
      report(pager.error(), err);
      return nullptr;
    }
    return pager->release();
  });
}

int ks_pager_connect(KsPager* pager, KsError* err) {
  return guarded(err, -EIO, [&] { return report(pager->pager->connect(), err); });
}

uint32_t ks_pager_chunk_pages(const KsPager* pager) {
  return static_cast<std::uint32_t>(pager->handover.chunk_pages.value);
}

KsPolicy ks_pager_policy(const KsPager* pager) {
  return pager->handover.policy == AccessPolicy::kClock ? KS_POLICY_CLOCK : KS_POLICY_AGING;
}

int ks_pager_add_region(KsPager* pager, void* host, uint64_t first_page, uint64_t pages,
                        KsError* err) {
  return guarded(err, -EIO, [&] {
    return report(pager->pager->add_region(host, PageIndex{first_page}, PageCount{pages}), err);
  });
}

int ks_pager_apply_changes(KsPager* pager, const void* data, size_t bytes, KsError* err) {
  return guarded(err, -EIO, [&] {
    const Result<std::vector<ZeroRun>> runs =
        decode_zero_runs({static_cast<const std::uint8_t*>(data), bytes}, pager->handover.vm_pages);
    if (!runs) return report(runs.error(), err);
    for (const ZeroRun& run : *runs) {
      pager->pager->apply_zero(run.first, PageCount{run.count}, run.zero);
    }
    return 0;
  });
}

int ks_pager_start(KsPager* pager, KsError* err) {
  return guarded(err, -EIO, [&] {
    const Result<void> claimed = pager->pager->claim();
    return report(claimed ? pager->pager->start() : claimed, err);
  });
}

int ks_pager_commit(KsPager* pager, KsError* err) {
  return guarded(err, -EIO, [&] { return report(pager->pager->commit(), err); });
}

int ks_pager_discard_remote(KsPager* pager, KsError* err) {
  return guarded(err, -EIO, [&] { return report(pager->pager->discard_remote(), err); });
}

bool ks_pager_give_up(KsPager* pager) { return pager->pager->give_up(); }

void ks_pager_cancel(KsPager* pager) { pager->pager->cancel(); }

KsHistory* ks_pager_history(KsPager* pager) { return &pager->history; }

void ks_pager_stats(const KsPager* pager, KsPagerStats* out) {
  *out = {};
  guarded(nullptr, 0, [&] {
    const PagerStats stats = pager->pager->stats();
    out->vm_pages = stats.vm_pages;
    out->limit_pages = stats.limit_pages;
    out->resident_pages = stats.resident_pages;
    out->remote_pages = stats.remote_pages;
    out->zero_pages = stats.zero_pages;
    out->queued_pages = stats.queued_pages;
    out->faults = stats.faults;
    out->page_ins = stats.page_ins;
    out->prefetched_pages = stats.prefetched;
    out->zero_fills = stats.zero_fills;
    out->queue_hits = stats.queue_hits;
    out->page_outs = stats.page_outs;
    out->page_outs_zero = stats.page_outs_zero;
    out->page_outs_refused = stats.page_outs_refused;
    out->page_in_p50_ns = stats.page_in_p50_ns;
    out->page_in_p99_ns = stats.page_in_p99_ns;
    out->page_in_max_ns = stats.page_in_max_ns;
    out->page_out_p50_ns = stats.page_out_p50_ns;
    out->page_out_p99_ns = stats.page_out_p99_ns;
    out->hard_waits = stats.hard_waits;
    out->page_out = static_cast<KsPageOut>(stats.method);
    copy_text(out->page_out_reason, sizeof(out->page_out_reason), stats.method_reason);
    out->servers = static_cast<std::uint32_t>(stats.servers.size());
    out->servers_lost = stats.servers_lost;
    out->waiting = stats.waiting;
    return 0;
  });
}

unsigned ks_pager_waits(const KsPager* pager, KsPagerWait* waits, unsigned max) {
  unsigned count = 0;
  guarded(nullptr, 0, [&] {
    for (const PagerWait& wait : pager->pager->waits(max)) {
      waits[count++] = {wait.page.value, wait.ns, wait.thread_id, wait.server.value};
    }
    return 0;
  });
  return count;
}

void ks_pager_server(const KsPager* pager, unsigned server, KsPagerServer* out) {
  *out = {};
  guarded(nullptr, 0, [&] {
    const PagerStats stats = pager->pager->stats();
    if (server >= stats.servers.size()) return 0;
    const PagerServerStats& figures = stats.servers[server];
    copy_text(out->uri, sizeof(out->uri), figures.uri);
    out->connected = figures.connected;
    out->pages_lost = figures.pages_lost;
    copy_text(out->error, sizeof(out->error), figures.error);
    out->capacity_pages = figures.capacity_pages;
    out->pages = figures.pages;
    out->page_ins = figures.page_ins;
    out->page_outs = figures.page_outs;
    out->bytes_in = figures.bytes_in;
    out->bytes_out = figures.bytes_out;
    out->reconnects = figures.reconnects;
    return 0;
  });
}

void ks_pager_free(KsPager* pager, bool drop_sessions) {
  guarded(nullptr, 0, [&] {
    pager->pager->stop(drop_sessions);
    return 0;
  });
  delete pager;
}

}  // extern "C"
