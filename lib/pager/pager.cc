// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/pager.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "base/thread.h"
#include "pager/core.h"
#include "pager/evictor.h"
#include "pager/fault_thread.h"
#include "pager/prefetch.h"
#include "placement/reserve.h"

namespace kintsugi {
namespace {

// Frames of the eviction queue.
constexpr std::uint64_t kMinFrames = 4;
constexpr std::uint64_t kMaxFrames = 256;
constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;
// Each makes two more mappings of the process's 65530, until start().
constexpr unsigned kMaxHugeRuns = 8192;

Result<void> check_config(const PagerConfig& config, const SplitPlan& plan) {
  if (sysconf(_SC_PAGESIZE) != static_cast<long>(kPageSize)) {
    return make_error(EOPNOTSUPP, "remote memory needs a host kernel with 4 KiB pages");
  }
  if (config.servers.empty() || config.servers.size() > kMaxServers) {
    return make_error(EINVAL, "remote memory on {} memory servers; 1 to {} can be used",
                      config.servers.size(), kMaxServers);
  }
  if (plan.pages() != config.vm_pages || plan.chunk_pages() != config.chunk_pages ||
      plan.servers() != config.servers.size()) {
    return make_error(EINVAL,
                      "the plan is for {} pages in chunks of {} over {} servers, the pager for {} "
                      "in chunks of {} over {}",
                      plan.pages().value, plan.chunk_pages().value, plan.servers(),
                      config.vm_pages.value, config.chunk_pages.value, config.servers.size());
  }
  if (Result<void> chunk = check_chunk_pages(config.chunk_pages); !chunk) return chunk;
  for (unsigned i = 0; i < config.servers.size(); i++) {
    const PageCount planned = plan.pages_on(ServerId{static_cast<std::uint8_t>(i + 1)});
    if (planned > config.servers[i].capacity) {
      return make_error(ENOSPC, "the plan has {} pages on {}, which has room for {}", planned.value,
                        config.servers[i].uri.text(), config.servers[i].capacity.value);
    }
  }
  if (config.history != nullptr && config.history->pages() != config.vm_pages) {
    return make_error(EINVAL, "the access history is of {} pages, the VM has {}",
                      config.history->pages().value, config.vm_pages.value);
  }
  return {};
}

Result<void> choose_limits(PagerCore* core) {
  PagerConfig& config = core->config;
  if (config.reserve.value == 0) {
    if (Result<void> enough = check_main_limit(config.limit, config.chunk_pages); !enough) {
      return enough;
    }
    config.reserve = paging_reserve(config.limit, config.chunk_pages);
  }
  if (config.reserve.value < 8 || config.limit.value < 2 * config.reserve.value) {
    return make_error(EINVAL,
                      "a main host with room for {} pages of which {} are kept free is too small: "
                      "give it more memory",
                      config.limit.value, config.reserve.value);
  }
  const auto limit = static_cast<std::int64_t>(config.limit.value);
  const auto reserve = static_cast<std::int64_t>(config.reserve.value);
  core->limit = limit;
  core->prefetch_limit = limit - reserve / 4;
  core->evict_at = limit - reserve / 2;
  core->evict_to = limit - reserve;
  return {};
}

// Beyond it the guest's memory would end in the OOM killer, and the VM with it.
Result<void> check_memory(const PagerCore& core) {
  const Bytes paging =
      paging_memory(core.config.vm_pages, core.config.servers.size(), Bytes{core.staging->bytes()});
  const Bytes need = to_bytes(core.config.limit) + paging;
  const MemoryLimit limit = core.config.memory_limit();
  if (need.value <= limit.bytes.value) return {};
  const auto mib = [](Bytes bytes) { return bytes.value >> 20; };
  return make_error(
      ENOMEM,
      "the main host may hold {} MiB of the VM and paging takes {} MiB more, but {} "
      "is {} MiB: lower main-memory to {} MiB, or raise the limit to {} MiB and what "
      "QEMU itself needs",
      mib(to_bytes(core.config.limit)), mib(paging) + 1, limit.where, mib(limit.bytes),
      limit.bytes > paging ? mib(Bytes{limit.bytes.value - paging.value}) : 0, mib(need) + 1);
}

// The best way first: its system call, and why this kernel has it not ("" when it has).
struct Way {
  PageOutMethod method;
  const char* call;
  std::string why_not;
};

Result<void> choose_method(PagerCore* core) {
  const PageOutSupport support = probe_page_out(*core->uffd);
  const std::array<Way, 3> ways = {{
      {PageOutMethod::kPageout, "UFFDIO_PAGEOUT", support.pageout_reason},
      {PageOutMethod::kMove, "UFFDIO_MOVE", support.move_reason},
      {PageOutMethod::kWriteProtect, "UFFDIO_WRITEPROTECT", support.write_protect_reason},
  }};
  const PageOutMethod wanted = core->config.method;
  std::string why_not;
  for (const Way& way : ways) {
    if (wanted != PageOutMethod::kAuto && wanted != way.method) continue;
    if (way.why_not.empty()) {
      core->method = way.method;
      core->method_reason = wanted == way.method
                                ? "chosen by the user"
                                : fmt::format("{} works here{}", way.call, why_not);
      core->zero_by_copy = way.method == PageOutMethod::kMove && !support.move_takes_zero_page;
      return {};
    }
    why_not += "; " + way.why_not;
  }
  return make_error(EOPNOTSUPP, "this kernel cannot page out guest memory as asked{}", why_not);
}

void poke_all(PagerCore* core) {
  for (const std::unique_ptr<ServerLink>& link : core->links) link->poke();
}

void make_links(PagerCore* core) {
  const PagerConfig& config = core->config;
  for (unsigned i = 0; i < config.servers.size(); i++) {
    ServerLinkConfig link;
    link.server = ServerId{static_cast<std::uint8_t>(i + 1)};
    link.uri = config.servers[i].uri;
    link.session = config.session;
    link.connect_timeout = config.connect_timeout;
    link.io_timeout = config.io_timeout;
    link.ping_interval = config.ping_interval;
    link.backoff_min = config.backoff_min;
    link.backoff_max = config.backoff_max;
    link.on_change = [core] { core->ring_all(); };
    link.on_event = [core, server = link.server](LinkState state, const std::string& error) {
      if (!core->config.on_server_event) return;
      core->config.on_server_event(ServerEvent{server, core->link(server).name(), state, error});
    };
    link.wanted = [core, i] { return core->ownership.wanted(i); };
    link.answered = [core, i](const handover::Request& request, const handover::Answer& answer) {
      core->ownership.answered(i, request, answer);
      // The arbiter's answer is what the other servers are waiting for.
      if (i == 0 && core->ownership.may_run()) poke_all(core);
    };
    link.pages_there = [core, i] {
      return core->claimed.load(std::memory_order_acquire)
                 ? static_cast<std::uint64_t>(
                       std::max<std::int64_t>(core->per_server[i].pages.load(), 0))
                 : 0;
    };
    core->links.push_back(std::make_unique<ServerLink>(std::move(link)));
  }
}

template <typename T>
Result<void> make_ring(SpscRing<T>* ring, std::size_t capacity, const char* what) {
  Result<SpscRing<T>> made = SpscRing<T>::create(capacity, what);
  if (!made) return made.error();
  *ring = std::move(*made);
  return {};
}

// MOVE refuses memory whose mapping differs from the eviction queue's (mlock, for one). Tried on a
// region's first page, and put back.
Result<void> try_move(PagerCore& core, const Region& region) {
  char* place = core.staging->place(0, 0);
  const UffdResult out = core.uffd->move(place, region.host, kPageSize);
  if (out.error == 0) {
    const UffdResult back = core.uffd->move(region.host, place, kPageSize);
    if (back.error == 0) return {};
    return make_error(back.error, "UFFDIO_MOVE moved a page out and not back: {}",
                      std::strerror(back.error));
  }
  if (out.error == ENOENT || out.error == EBUSY || out.error == EAGAIN) return {};
  return make_error(out.error, "UFFDIO_MOVE refuses the guest's memory ({}): is it locked?",
                    std::strerror(out.error));
}

}  // namespace

struct Pager::Threads {
  std::unique_ptr<FaultThread> fault;
  std::unique_ptr<PrefetchThread> prefetch;
  std::unique_ptr<Evictor> evictor;
  std::thread fault_thread;
  std::thread prefetch_thread;
  std::thread evictor_thread;
};

Pager::Pager(std::unique_ptr<PagerCore> core) : core_(std::move(core)) {}

Pager::~Pager() { stop(false); }

Result<std::unique_ptr<Pager>> Pager::create(PagerConfig config, const SplitPlan& plan) {
  if (Result<void> checked = check_config(config, plan); !checked) return checked.error();
  Result<LocationMap> map = LocationMap::create(config.vm_pages);
  if (!map) return map.error();
  if (Result<void> placed = map->init_from(plan); !placed) return placed.error();
  auto core = std::make_unique<PagerCore>(std::move(config), std::move(*map), plan);
  if (Result<void> limits = choose_limits(core.get()); !limits) return limits.error();
  Result<std::unique_ptr<Uffd>> uffd = core->config.open_uffd();
  if (!uffd) return uffd.error();
  core->uffd = std::move(*uffd);
  if (Result<void> method = choose_method(core.get()); !method) return method.error();

  const auto unit_pages =
      static_cast<unsigned>(std::min<std::uint64_t>(core->config.chunk_pages.value, kMaxUnitPages));
  const auto frames = static_cast<unsigned>(
      std::clamp(core->config.reserve.value / unit_pages, kMinFrames, kMaxFrames));
  Result<std::unique_ptr<Staging>> staging = Staging::create(unit_pages, frames, core->method);
  if (!staging) return staging.error();
  core->staging = std::move(*staging);
  if (Result<void> enough = check_memory(*core); !enough) return enough.error();

  Result<WaitTable> waits = WaitTable::create();
  if (!waits) return waits.error();
  core->waits = std::move(*waits);
  if (Result<void> ring = make_ring(&core->fault_discards, kDiscardRing, "a queue of discards");
      !ring) {
    return ring.error();
  }
  if (Result<void> ring = make_ring(&core->prefetch_discards, kDiscardRing, "a queue of discards");
      !ring) {
    return ring.error();
  }
  if (Result<void> ring = make_ring(&core->prefetch_wishes, kPrefetchRing, "a queue of chunks");
      !ring) {
    return ring.error();
  }
  for (unsigned i = 0; i < core->per_server.size(); i++) {
    core->per_server[i].pages =
        static_cast<std::int64_t>(plan.pages_on(ServerId{static_cast<std::uint8_t>(i + 1)}).value);
  }
  core->used_at_start.resize(core->per_server.size());
  core->remote_at_start.resize(core->per_server.size());
  make_links(core.get());
  return std::unique_ptr<Pager>(new Pager(std::move(core)));
}

Result<void> Pager::add_region(void* host, PageIndex first, PageCount pages) {
  if (first.value + pages.value > core_->config.vm_pages.value) {
    return make_error(EINVAL, "memory region of pages {} to {} is outside of the VM's {} pages",
                      first.value, first.value + pages.value - 1, core_->config.vm_pages.value);
  }
  if (Result<void> pageable = check_pageable(host, pages.value * kPageSize); !pageable) {
    return pageable;
  }
  const Region region{static_cast<char*>(host), first, pages};
  Result<void> added = core_->regions.add(region);
  if (!added) return added;
  // A fault brings one page of 4 KiB; EINVAL only says that the kernel has no huge pages anyway.
  madvise(host, pages.value * kPageSize, MADV_NOHUGEPAGE);
  if (Result<void> discarded = discard_remote(region); !discarded) return discarded;
  load_into_huge_pages(region);
  // A child would share the pages, see zeroes for what is remote, and make MOVE slow.
  madvise(host, pages.value * kPageSize, MADV_DONTFORK);
  return {};
}

// Until start(), what the main host keeps whole is loaded into huge pages. They are faster to fill,
// and stay until a page of them is paged out, which splits them.
void Pager::load_into_huge_pages(const Region& region) {
  unsigned runs = 0;
  core_->plan.for_each_run([&](ServerId owner, PageIndex first, PageCount count) {
    const std::uint64_t from = std::max(first.value, region.first.value);
    const std::uint64_t to =
        std::min(first.value + count.value, region.first.value + region.pages.value);
    if (owner != kMainHost || from >= to || runs == kMaxHugeRuns) return;
    const auto base = reinterpret_cast<std::uintptr_t>(region.host);
    const std::uintptr_t start =
        round_up(base + (from - region.first.value) * kPageSize, kHugePageBytes);
    const std::uintptr_t end =
        (base + (to - region.first.value) * kPageSize) / kHugePageBytes * kHugePageBytes;
    if (start >= end) return;
    madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
    runs++;
  });
}

void Pager::apply_zero(PageIndex first, PageCount pages, bool zero) {
  const std::uint64_t end = std::min(first.value + pages.value, core_->config.vm_pages.value);
  const std::uint64_t chunk_pages = core_->config.chunk_pages.value;
  for (std::uint64_t page = first.value; page < end;) {
    const std::uint64_t next = std::min((page / chunk_pages + 1) * chunk_pages, end);
    const ServerId owner = core_->plan.owner(PageIndex{page});
    if (owner != kMainHost) {
      std::int64_t changed = 0;
      if (zero) {
        changed = static_cast<std::int64_t>(
            core_->map.set_zero(PageIndex{page}, PageCount{next - page}).value);
      } else {
        for (std::uint64_t i = page; i < next; i++) {
          if (core_->map.load(PageIndex{i}).state() != PageState::kZero) continue;
          core_->map.set_remote(PageIndex{i}, PageCount{1}, owner);
          changed--;
        }
      }
      core_->zero.fetch_add(changed, std::memory_order_relaxed);
      core_->counters(owner).pages.fetch_sub(changed, std::memory_order_relaxed);
    }
    page = next;
  }
}

Result<void> Pager::connect() {
  const std::size_t count = core_->links.size();
  std::vector<Result<void>> results(count);
  for_each_at_once(count, [&](std::size_t i) {
    results[i] = core_->links[i]->connect(core_->config.servers[i].epoch);
  });
  for (const Result<void>& result : results) {
    if (!result) return result;
  }
  return {};
}

Result<void> Pager::check_claimed(std::size_t server, const wire::SessionReply& figures) {
  if (Result<void> tags = core_->links[server]->check_tags(figures); !tags) return tags;
  const std::string& name = core_->links[server]->name();
  const auto expected = static_cast<std::uint64_t>(core_->per_server[server].pages.load());
  if (figures.used_pages < expected) {
    return make_error(ENODATA,
                      "memory server {} holds {} pages of this VM where {} were sent: the "
                      "migration must be done again",
                      name, figures.used_pages, expected);
  }
  if (figures.vm_pages != core_->config.vm_pages.value) {
    return make_error(EINVAL, "memory server {} has a session for a VM of {} pages, this has {}",
                      name, figures.vm_pages, core_->config.vm_pages.value);
  }
  PageCount& capacity = core_->config.servers[server].capacity;
  capacity = std::min(capacity, PageCount{figures.capacity_pages});
  core_->used_at_start[server] = figures.used_pages;
  core_->remote_at_start[server] = expected;
  core_->links[server]->note_stored(figures.last_version);
  return {};
}

// All servers at once, in two round trips: this is part of the VM's downtime.
Result<void> Pager::claim() {
  const std::size_t count = core_->links.size();
  std::vector<std::optional<handover::Request>> requests(count);
  for (std::size_t i = 0; i < count; i++) {
    requests[i] = core_->ownership.wanted(i);
    if (!requests[i]) return make_error(EINVAL, "the handover is claimed out of turn");
    core_->links[i]->send_claim(*requests[i]);
  }
  std::optional<Error> failed;
  for (std::size_t i = 0; i < count; i++) {
    ServerLink& link = *core_->links[i];
    const Result<wire::OwnershipInfo> info = link.receive_claim(*requests[i]);
    if (!info) {
      if (!failed) failed = info.error();
      continue;
    }
    core_->ownership.answered(i, *requests[i], {info->status, info->epoch});
    if (info->status != wire::Status::kOk) {
      failed = make_error(wire::status_errno(info->status),
                          "memory server {} refused to hand the VM over: {}", link.name(),
                          wire::status_text(info->status));
      continue;
    }
    if (Result<void> good = check_claimed(i, info->figures); !good && !failed) {
      failed = good.error();
    }
    link.send_attach(info->epoch);
  }
  if (failed) return *failed;
  for (const std::unique_ptr<ServerLink>& link : core_->links) {
    if (Result<void> attached = link->receive_attach(); !attached) return attached;
  }
  core_->claimed.store(true, std::memory_order_release);
  return {};
}

Result<void> Pager::discard_remote() {
  for (const Region& region : core_->regions) {
    if (Result<void> discarded = discard_remote(region); !discarded) return discarded;
  }
  return {};
}

// What is mapped there is not the guest's: it would be read in place of what is remote.
Result<void> Pager::discard_remote(const Region& region) {
  std::optional<Error> failed;
  core_->plan.for_each_run([&](ServerId owner, PageIndex first, PageCount count) {
    const std::uint64_t from = std::max(first.value, region.first.value);
    const std::uint64_t to =
        std::min(first.value + count.value, region.first.value + region.pages.value);
    if (owner == kMainHost || failed || from >= to) return;
    char* host = region.host + (from - region.first.value) * kPageSize;
    if (madvise(host, (to - from) * kPageSize, MADV_DONTNEED) != 0) {
      failed = make_error(errno,
                          "cannot free guest memory that is remote: {}; locked memory cannot be "
                          "remote, so leave out -overcommit mem-lock",
                          std::strerror(errno));
    }
  });
  if (failed) return *failed;
  return {};
}

Result<void> Pager::start() {
  PagerCore& core = *core_;
  if (!core.claimed.load() || started_) {
    return make_error(EINVAL, "the pager is started out of turn");
  }
  if (core.regions.pages() != core.config.vm_pages) {
    return make_error(EINVAL, "the split memory regions have {} pages, the VM has {}",
                      core.regions.pages().value, core.config.vm_pages.value);
  }
  for (const Region& region : core.regions) {
    madvise(region.host, region.bytes(), MADV_NOHUGEPAGE);
  }
  const auto register_regions = [&](bool write_protect) -> Result<void> {
    for (const Region& region : core.regions) {
      Result<void> registered =
          core.uffd->register_range(region.host, region.bytes(), true, write_protect);
      if (!registered) return registered;
    }
    return {};
  };
  started_ = true;  // from here on stop() has something to undo
  if (core.method == PageOutMethod::kPageout) {
    if (Result<void> registered = register_regions(false); !registered) return registered;
  }
  if (core.method == PageOutMethod::kMove) {
    if (Result<void> registered = register_regions(false); !registered) return registered;
    Result<void> fits =
        core.uffd->register_range(core.staging->memory(), core.staging->bytes(), true, false);
    for (const Region& region : core.regions) {
      if (fits) fits = try_move(core, region);
    }
    if (!fits) {
      if (core.config.method == PageOutMethod::kMove) return fits;
      core.uffd->unregister_range(core.staging->memory(), core.staging->bytes());
      for (const Region& region : core.regions) {
        core.uffd->unregister_range(region.host, region.bytes());
      }
      core.method = PageOutMethod::kWriteProtect;
      core.method_reason = fits.error().message;
    }
  }
  if (core.method == PageOutMethod::kWriteProtect) {
    if (Result<void> registered = register_regions(true); !registered) return registered;
  }
  std::int64_t elsewhere = core.zero.load();
  for (const ServerCounters& counters : core.per_server) elsewhere += counters.pages.load();
  core.resident = static_cast<std::int64_t>(core.config.vm_pages.value) - elsewhere;

  auto threads = std::make_unique<Threads>();
  Result<std::unique_ptr<FaultThread>> fault = FaultThread::create(core);
  if (!fault) return fault.error();
  threads->fault = std::move(*fault);
  Result<std::unique_ptr<PrefetchThread>> prefetch = PrefetchThread::create(core);
  if (!prefetch) return prefetch.error();
  threads->prefetch = std::move(*prefetch);
  Result<std::unique_ptr<Evictor>> evictor = Evictor::create(core);
  if (!evictor) return evictor.error();
  threads->evictor = std::move(*evictor);

  threads_ = std::move(threads);
  const auto run = [](std::thread* thread, const char* name, auto body) -> Result<void> {
    Result<std::thread> started = start_thread(name, std::move(body));
    if (!started) return started.error();
    *thread = std::move(*started);
    return {};
  };
  Result<void> runs = run(&threads_->fault_thread, "ks-fault", [this] { threads_->fault->run(); });
  if (runs) {
    runs = run(&threads_->prefetch_thread, "ks-prefetch", [this] { threads_->prefetch->run(); });
  }
  if (runs) {
    runs = run(&threads_->evictor_thread, "ks-evict", [this] { threads_->evictor->run(); });
  }
  if (!runs) return runs;
  for (const std::unique_ptr<ServerLink>& link : core.links) {
    if (Result<void> kept = link->start(); !kept) return kept;
  }
  return {};
}

Result<void> Pager::commit() {
  Result<void> committed = core_->ownership.commit([this] { poke_all(core_.get()); });
  if (committed) {
    core_->committed.store(true, std::memory_order_release);
    core_->ring_all();
  }
  return committed;
}

bool Pager::give_up() { return core_->ownership.give_up(); }

void Pager::cancel() {
  core_->ownership.cancel();
  for (const std::unique_ptr<ServerLink>& link : core_->links) link->cancel();
}

void Pager::release() {
  core_->released.store(true, std::memory_order_release);
  core_->ring_all();
}

void Pager::stop(bool drop_sessions) {
  PagerCore& core = *core_;
  core.stopping.store(true, std::memory_order_release);
  core.ring_all();
  if (threads_) {
    for (std::thread* thread :
         {&threads_->fault_thread, &threads_->prefetch_thread, &threads_->evictor_thread}) {
      if (thread->joinable()) thread->join();
    }
  }
  if (started_) {
    started_ = false;
    for (const Region& region : core.regions) {
      core.uffd->unregister_range(region.host, region.bytes());
    }
    core.uffd->unregister_range(core.staging->memory(), core.staging->bytes());
  }
  for (const std::unique_ptr<ServerLink>& link : core.links) link->stop(drop_sessions);
  threads_.reset();
}

PageOutMethod Pager::method() const { return core_->method; }

bool Pager::settled() const {
  return core_->in_use() <= core_->evict_at && core_->queued.load() == 0 &&
         core_->fault_discards.empty() && core_->prefetch_discards.empty();
}

PagerStats Pager::stats() const {
  const PagerCore& core = *core_;
  const auto positive = [](std::int64_t n) {
    return static_cast<std::uint64_t>(std::max<std::int64_t>(n, 0));
  };
  PagerStats stats;
  stats.vm_pages = core.config.vm_pages.value;
  stats.limit_pages = core.config.limit.value;
  stats.resident_pages = positive(core.resident.load());
  stats.zero_pages = positive(core.zero.load());
  stats.queued_pages = positive(core.queued.load());
  stats.faults = core.faults.faults.get();
  stats.page_ins = core.faults.page_ins.get();
  stats.prefetch_hits = core.faults.prefetch_hits.get();
  stats.zero_fills = core.faults.zero_fills.get();
  stats.queue_hits = core.faults.queue_hits.get();
  stats.write_cancels = core.faults.write_cancels.get();
  stats.refaults = core.faults.refaults.get();
  stats.hard_waits = core.faults.hard_waits.get();
  stats.install_retries = core.faults.install_retries.get();
  stats.page_outs = core.evictions.page_outs.get();
  stats.page_outs_zero = core.evictions.zero.get();
  stats.page_outs_refused = core.evictions.refused.get();
  stats.discards = core.evictions.discards.get();
  stats.page_in_p50_ns = core.waits.latency().quantile_ns(0.5);
  stats.page_in_p99_ns = core.waits.latency().quantile_ns(0.99);
  stats.page_in_max_ns = core.waits.latency().max_ns();
  stats.page_out_p50_ns = core.evictions.page_out.quantile_ns(0.5);
  stats.page_out_p99_ns = core.evictions.page_out.quantile_ns(0.99);
  stats.method = core.method;
  stats.method_reason = core.method_reason;
  for (unsigned i = 0; i < core.links.size(); i++) {
    const ServerLink& link = *core.links[i];
    const ServerCounters& counters = core.per_server[i];
    PagerServerStats server;
    server.uri = link.name();
    server.connected = link.connected();
    server.pages_lost = link.pages_lost();
    server.error = link.error();
    server.capacity_pages = core.config.servers[i].capacity.value;
    server.pages = positive(counters.pages.load());
    server.page_ins = counters.page_ins.get() + counters.prefetched.get();
    server.page_outs = counters.page_outs.get();
    server.bytes_in = counters.bytes_in_urgent.get() + counters.bytes_in_bulk.get();
    server.bytes_out = counters.bytes_out.get();
    server.reconnects = link.reconnects();
    stats.remote_pages += server.pages;
    stats.prefetched += counters.prefetched.get();
    stats.servers_lost += server.connected ? 0 : 1;
    stats.servers.push_back(std::move(server));
  }
  stats.waiting = core.waits.waiting();
  return stats;
}

std::vector<PagerWait> Pager::waits(std::size_t max) const {
  std::vector<PagerWait> waits;
  const std::uint64_t now = now_ns();
  for (const PageWait& wait : core_->waits.list(max)) {
    const PageEntry entry = core_->map.load(wait.page);
    waits.push_back({wait.page, now > wait.since_ns ? now - wait.since_ns : 0, wait.thread_id,
                     entry.in_flight() ? entry.server() : kMainHost});
  }
  return waits;
}

}  // namespace kintsugi
