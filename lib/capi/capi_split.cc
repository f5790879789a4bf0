// SPDX-License-Identifier: GPL-2.0-or-later
// The C interface of the access history and of the source of a split migration.
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "capi/capi_internal.h"
#include "split/split_source.h"

using namespace kintsugi;        // NOLINT: this file is the border
using namespace kintsugi::capi;  // NOLINT

struct KsSplit {
  std::unique_ptr<SplitSource> source;
};

namespace {

AccessPolicy to_policy(KsPolicy policy) {
  return policy == KS_POLICY_CLOCK ? AccessPolicy::kClock : AccessPolicy::kAging;
}

Result<SplitSourceConfig> to_config(const KsSplitConfig* c) {
  SplitSourceConfig config;
  config.vm_name = c->vm_name != nullptr ? c->vm_name : "";
  config.vm_pages = PageCount{c->vm_pages};
  config.chunk_pages = PageCount{c->chunk_pages};
  config.main_capacity = to_pages(Bytes{c->main_capacity_bytes});
  for (std::uint32_t i = 0; i < c->sub_host_count; i++) {
    const KsSubHost& sub_host = c->sub_hosts[i];
    config.sub_hosts.push_back({sub_host.uri, to_pages(Bytes{sub_host.capacity_bytes})});
  }
  config.policy = to_policy(c->policy);
  config.history = c->history != nullptr ? c->history->history.get() : nullptr;
  config.connect_timeout = std::chrono::milliseconds{c->connect_timeout_ms};
  config.io_timeout = std::chrono::milliseconds{c->io_timeout_ms};
  return config;
}

int hand_out(const std::vector<std::uint8_t>& bytes, void** data, std::size_t* size, KsError* err) {
  *data = std::malloc(std::max<std::size_t>(bytes.size(), 1));
  if (*data == nullptr) return report(make_error(ENOMEM, "out of memory"), err);
  std::memcpy(*data, bytes.data(), bytes.size());
  *size = bytes.size();
  return 0;
}

}  // namespace

extern "C" {

KsHistory* ks_history_new(uint64_t pages, uint32_t chunk_pages, KsPolicy policy,
                          uint32_t shift_ticks, KsError* err) {
  return guarded(err, nullptr, [&]() -> KsHistory* {
    AccessHistoryConfig config;
    config.pages = PageCount{pages};
    config.chunk_pages = PageCount{chunk_pages};
    config.policy = to_policy(policy);
    config.shift_period_ticks = shift_ticks;
    Result<std::unique_ptr<AccessHistory>> history = AccessHistory::create(config);
    if (!history) {
      report(history.error(), err);
      return nullptr;
    }
    return new KsHistory{std::move(*history)};
  });
}

void ks_history_free(KsHistory* history) { delete history; }

void ks_history_feed(KsHistory* history, uint64_t first_page, const uint64_t* accessed,
                     uint64_t pages) {
  history->history->feed(PageIndex{first_page}, accessed, PageCount{pages});
}

void ks_history_tick(KsHistory* history) { history->history->tick(); }

uint16_t ks_history_rank(const KsHistory* history, uint64_t chunk) {
  return history->history->rank(ChunkIndex{chunk});
}

int ks_split_check(const KsSplitConfig* config, KsError* err) {
  return guarded(err, -EIO, [&] {
    const Result<SplitSourceConfig> checked = to_config(config);
    return checked ? report(SplitSource::check(*checked), err) : report(checked.error(), err);
  });
}

KsSplit* ks_split_new(const KsSplitConfig* config, KsError* err) {
  return guarded(err, nullptr, [&]() -> KsSplit* {
    Result<SplitSourceConfig> checked = to_config(config);
    Result<std::unique_ptr<SplitSource>> source =
        checked ? SplitSource::create(std::move(*checked)) : checked.error();
    if (!source) {
      report(source.error(), err);
      return nullptr;
    }
    return new KsSplit{std::move(*source)};
  });
}

int ks_split_open(KsSplit* split, KsError* err) {
  return guarded(err, -EIO, [&] { return report(split->source->open(), err); });
}

unsigned ks_split_owner(const KsSplit* split, uint64_t page) {
  return split->source->owner(PageIndex{page}).value;
}

int ks_split_send(KsSplit* split, uint64_t page, const void* host) {
  return guarded(nullptr, -ENOMEM, [&] { return split->source->send(PageIndex{page}, host); });
}

void ks_split_kick(KsSplit* split) {
  guarded(nullptr, 0, [&] {
    split->source->kick();
    return 0;
  });
}

int ks_split_flush(KsSplit* split, KsError* err) {
  return guarded(err, -EIO, [&] { return report(split->source->flush(), err); });
}

int ks_split_error(KsSplit* split, KsError* err) {
  return guarded(err, -EIO, [&] { return report(split->source->error(), err); });
}

uint64_t ks_split_pending(const KsSplit* split) { return split->source->pending_pages(); }

void ks_split_period(KsSplit* split, int64_t began_ms, uint64_t main_bytes, uint64_t sub_bytes) {
  split->source->pace().period(began_ms, main_bytes, sub_bytes);
}

double ks_split_slowdown(const KsSplit* split, double sub_share) {
  return split->source->pace().slowdown(sub_share);
}

int ks_split_encode_plan(KsSplit* split, void** data, size_t* bytes, KsError* err) {
  return guarded(err, -ENOMEM,
                 [&] { return hand_out(split->source->encode_plan(), data, bytes, err); });
}

int ks_split_encode_changes(KsSplit* split, void** data, size_t* bytes, KsError* err) {
  return guarded(err, -ENOMEM,
                 [&] { return hand_out(split->source->encode_changes(), data, bytes, err); });
}

void ks_free(void* data) { std::free(data); }

void ks_split_target(const KsSplit* split, unsigned target, KsSplitTarget* out) {
  const SplitSource& source = *split->source;
  *out = {};
  const ServerId id{static_cast<std::uint8_t>(target)};
  out->planned_pages = source.planned(id).value;
  if (target == 0 || target > source.config().sub_hosts.size()) {
    out->capacity_bytes = to_bytes(source.config().main_capacity).value;
    return;
  }
  const SubHost& sub_host = source.config().sub_hosts[target - 1];
  copy_text(out->uri, sizeof(out->uri), sub_host.uri);
  out->capacity_bytes = to_bytes(sub_host.capacity).value;
  const PageSenderStats stats = source.stats(id);
  out->sent_pages = stats.sent_pages;
  out->sent_bytes = stats.sent_bytes;
  out->zero_pages = stats.zero_pages;
}

uint64_t ks_split_sent_bytes(const KsSplit* split) {
  std::uint64_t bytes = 0;
  for (std::size_t i = 1; i <= split->source->config().sub_hosts.size(); i++) {
    bytes += split->source->stats(ServerId{static_cast<std::uint8_t>(i)}).sent_bytes;
  }
  return bytes;
}

int ks_split_diagnose(const KsSplit* split, KsError* err) {
  return guarded(err, -EIO, [&] { return report(split->source->diagnose(), err); });
}

void ks_split_cancel(KsSplit* split) { split->source->cancel(); }

int ks_split_end(KsSplit* split, KsError* err) {
  return guarded(err, -EIO, [&] { return report(split->source->end(), err); });
}

int ks_split_settle(KsSplit* split, KsError* err) {
  return guarded(err, -EIO, [&] { return report(split->source->settle(), err); });
}

void ks_split_given_up(KsSplit* split) { split->source->given_up(); }

void ks_split_free(KsSplit* split, bool drop_sessions) {
  guarded(nullptr, 0, [&] {
    split->source->close(drop_sessions);
    return 0;
  });
  delete split;
}

}  // extern "C"
