// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/prefetch.h"

#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace kintsugi {
namespace {

constexpr std::uint32_t kTagBell = UINT32_MAX;
constexpr int kInstallTries = 16;
// Twice the longest answer and more.
constexpr std::size_t kReadBuffer_bytes = 1024 * 1024;
// Wishes taken in one round, so that answers are not kept waiting.
constexpr int kWishBatch = 8;

}  // namespace

Result<std::unique_ptr<PrefetchThread>> PrefetchThread::create(PagerCore& core) {
  std::unique_ptr<PrefetchThread> thread(new PrefetchThread(core));
  if (Result<void> ready = thread->init(); !ready) return ready.error();
  return thread;
}

Result<void> PrefetchThread::init() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return make_error(errno, "cannot create an epoll instance for the pager");
  lanes_.resize(core_.links.size());
  for (std::size_t i = 0; i < lanes_.size(); i++) {
    Result<void> ready =
        lanes_[i].init(core_.links[i].get(), Lane::kBulk, epoll_, 0, kReadBuffer_bytes);
    if (!ready) return ready;
    lanes_[i].unsent.reserve(kMaxBulkRequests);
  }
  requests_.resize(kMaxBulkRequests);
  for (unsigned i = 0; i < kMaxBulkRequests; i++) {
    free_requests_.push_back(static_cast<std::uint16_t>(kMaxBulkRequests - 1 - i));
  }
  watch(core_.prefetch_bell.fd(), EPOLLIN, kTagBell, true);
  return {};
}

PrefetchThread::~PrefetchThread() {
  if (epoll_ >= 0) close(epoll_);
}

void PrefetchThread::watch(int fd, std::uint32_t events, std::uint32_t tag, bool add) {
  epoll_event event{};
  event.events = events;
  event.data.u32 = tag;
  epoll_ctl(epoll_, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
}

void PrefetchThread::run() {
  constexpr int kEvents = 64;
  std::array<epoll_event, kEvents> events;
  check_links();
  while (!core_.stopping.load(std::memory_order_acquire)) {
    core_.prefetch_bell.about_to_sleep();
    const bool busy = free_requests_.size() < kMaxBulkRequests;
    int timeout_ms = -1;
    if (busy) timeout_ms = overdue_check_ms(core_.config.io_timeout);
    if (!core_.prefetch_wishes.empty()) timeout_ms = 0;
    const int n = epoll_wait(epoll_, events.data(), kEvents, timeout_ms);
    core_.prefetch_bell.awake();
    now_ = now_ns();
    for (int i = 0; i < n; i++) {
      const std::uint32_t tag = events[static_cast<unsigned>(i)].data.u32;
      const std::uint32_t what = events[static_cast<unsigned>(i)].events;
      if (tag == kTagBell) {
        core_.prefetch_bell.silence();
        check_links();
        if (core_.released.load(std::memory_order_acquire) && !released_) release_all();
        continue;
      }
      BulkLane& lane = lanes_[tag - 1];
      if ((what & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
        const std::size_t bytes = lane.receive(
            now_, [&](const wire::FrameHeader& header, std::span<const std::uint8_t> payload) {
              on_answer(lane, header, payload);
            });
        core_.counters(lane.server()).bytes_in_bulk.add(bytes);
      }
      if ((what & EPOLLOUT) != 0) lane.dirty = true;
    }
    take_wishes();
    for (BulkLane& lane : lanes_) {
      if (lane.dirty) flush(lane);
    }
    if (now_ - checked_ns_ > std::uint64_t{kOverdueCheck_ms} * 1'000'000 || n == 0) {
      check_timeouts(now_);
    }
  }
}

void PrefetchThread::take_wishes() {
  std::uint64_t page = 0;
  for (int i = 0; i < kWishBatch && core_.prefetch_wishes.pop(&page); i++) {
    if (!released_) fetch_chunk(PageIndex{page});
  }
}

void PrefetchThread::fetch_chunk(PageIndex touched) {
  const std::uint64_t chunk_pages = core_.config.chunk_pages.value;
  const std::uint64_t first = touched.value / chunk_pages * chunk_pages;
  const std::uint64_t end = std::min(first + chunk_pages, core_.config.vm_pages.value);
  // Forwards from the touched page first: most accesses go that way.
  if (fetch_range(touched.value + 1, end)) fetch_range(first, touched.value);
}

bool PrefetchThread::fetch_range(std::uint64_t first, std::uint64_t end) {
  std::uint64_t page = first;
  while (page < end) {
    const PageEntry entry = core_.map.load(PageIndex{page});
    if (entry.state() != PageState::kRemote || entry.in_flight() ||
        !core_.link(entry.server()).connected()) {
      page++;
      continue;
    }
    if (free_requests_.empty()) return false;
    const ServerId server = entry.server();
    const PageCount here = core_.regions.contiguous(
        PageIndex{page}, PageCount{std::min<std::uint64_t>(end - page, kBulkRunPages)});
    unsigned taken = 0;
    while (taken < here.value) {
      const PageIndex next{page + taken};
      const PageEntry seen = core_.map.load(next);
      if (seen.state() != PageState::kRemote || seen.server() != server) break;
      if (!core_.take_room(1, core_.prefetch_limit)) {
        if (taken > 0) ask(PageIndex{page}, taken, server);
        return false;
      }
      if (!core_.map.try_begin_prefetch(next)) {
        core_.give_room(1);
        break;
      }
      taken++;
    }
    if (taken > 0) ask(PageIndex{page}, taken, server);
    page += std::max(1U, taken);
  }
  core_.evict_if_short();
  return true;
}

void PrefetchThread::ask(PageIndex first, unsigned pages, ServerId server) {
  const std::uint16_t index = free_requests_.back();
  free_requests_.pop_back();
  Request& request = requests_[index];
  request.first = first;
  request.pages = pages;
  request.server = server;
  request.use++;
  core_.counters(server).bulk_pages.fetch_add(pages, std::memory_order_relaxed);
  BulkLane& lane = lanes_[server.value - 1U];
  if (lane.outstanding++ == 0) lane.made_progress(now_);
  lane.unsent.push_back(index);
  lane.dirty = true;
}

void PrefetchThread::on_answer(BulkLane& lane, const wire::FrameHeader& header,
                               std::span<const std::uint8_t> payload) {
  const ServerId server = lane.server();
  const auto index = static_cast<std::uint16_t>(header.seq & 0xffff);
  if (index >= kMaxBulkRequests || requests_[index].pages == 0 ||
      requests_[index].server != server || requests_[index].use != header.seq >> 16 ||
      header.op != static_cast<std::uint16_t>(wire::Op::kGet)) {
    lane.fail(
        make_error(EPROTO, "memory server {} answered a request that was not made", lane.name()));
    return;
  }
  Request& request = requests_[index];
  if (header.status != 0) {
    lane.fail(lane.connection().refusal(static_cast<wire::Status>(header.status), "return pages"));
    return;
  }
  GetAnswer answer;
  if (header.count != request.pages || header.page != request.first.value ||
      !parse_get(header, payload, &answer)) {
    lane.fail(make_error(EPROTO, "memory server {} answered with other pages than were asked for",
                         lane.name()));
    return;
  }
  for (unsigned i = 0; i < request.pages; i++) {
    if (answer.has(i)) continue;
    // The fault thread fetched it as well, was faster, and has had the server forget it.
    const PageEntry entry = core_.map.load(request.first + PageCount{i});
    if (entry.state() == PageState::kLocal || entry.urgent()) continue;
    lane.fail(
        make_error(ENODATA,
                   "memory server {} no longer has page {}: was it restarted with an older arena "
                   "file?",
                   lane.name(), request.first.value + i));
    return;
  }
  const std::uint8_t* content = answer.content;
  for (unsigned i = 0; i < request.pages;) {
    unsigned run = i;
    while (run < request.pages && answer.has(run) == answer.has(i)) run++;
    if (answer.has(i)) {
      install(request.first + PageCount{i}, run - i, content, server);
      content += (run - i) * kPageSize;
    } else {
      give_up(request.first + PageCount{i}, run - i);
    }
    i = run;
  }
  core_.counters(server).bulk_pages.fetch_sub(request.pages, std::memory_order_relaxed);
  request.pages = 0;
  free_requests_.push_back(index);
  lane.outstanding--;
}

void PrefetchThread::install(PageIndex first, unsigned pages, const std::uint8_t* content,
                             ServerId server) {
  unsigned done = 0;
  int tries = 0;
  char* host = core_.regions.host(first);
  while (done < pages) {
    const UffdResult result = core_.uffd->copy(host + done * kPageSize, content + done * kPageSize,
                                               (pages - done) * kPageSize);
    const auto progress = static_cast<unsigned>(
        (result.error == 0 ? (pages - done) * kPageSize : result.done_bytes) >> kPageShift);
    if (progress > 0) {
      complete(first + PageCount{done}, progress, server);
      done += progress;
      tries = 0;
      continue;
    }
    if (result.error == EEXIST) {  // the fault thread was faster with this one
      (void)core_.uffd->wake(host + done * kPageSize, kPageSize).error;
      complete(first + PageCount{done}, 1, server);
      done++;
      continue;
    }
    if (result.error == EAGAIN && ++tries < kInstallTries) {
      sched_yield();
      continue;
    }
    give_up(first + PageCount{done}, pages - done);
    return;
  }
}

void PrefetchThread::complete(PageIndex first, unsigned pages, ServerId server) {
  // Before the map says Local: see DiscardRun.
  while (!core_.prefetch_discards.push(DiscardRun::of(first, pages, server))) {
    core_.discard_bell.ring();
    if (core_.stopping.load(std::memory_order_acquire)) return;
    sched_yield();
  }
  const std::uint64_t now = now_ns();
  unsigned fetched = 0;
  for (unsigned i = 0; i < pages; i++) {
    if (core_.map.complete_prefetch(first + PageCount{i})) fetched++;
  }
  end_waits(first, pages, now);
  if (fetched < pages) core_.give_room(pages - fetched);
  core_.counters(server).pages.fetch_sub(fetched, std::memory_order_relaxed);
  core_.counters(server).prefetched.add(fetched);
  core_.discard_bell.ring();
}

void PrefetchThread::give_up(PageIndex first, unsigned pages) {
  const std::uint64_t now = now_ns();
  for (unsigned i = 0; i < pages; i++) {
    const PageIndex page = first + PageCount{i};
    core_.map.abandon_prefetch(page);
    // Whoever faulted meanwhile and was told to wait for this faults again.
    (void)core_.uffd->wake(core_.regions.host(page), kPageSize).error;
  }
  end_waits(first, pages, now);
  core_.give_room(pages);
}

void PrefetchThread::end_waits(PageIndex first, unsigned pages, std::uint64_t at) {
  core_.waits.fence();
  for (unsigned i = 0; i < pages; i++) core_.waits.end(first + PageCount{i}, at);
}

void PrefetchThread::flush(BulkLane& lane) {
  lane.dirty = false;
  if (!lane.connected()) return;
  std::size_t taken = 0;
  lane.send([&](wire::FrameHeader* header) {
    if (taken == lane.unsent.size()) return false;
    const std::uint16_t index = lane.unsent[taken++];
    const Request& request = requests_[index];
    *header = lane.connection().request(wire::Op::kGet, std::uint64_t{request.use} << 16 | index);
    header->page = request.first.value;
    header->count = request.pages;
    return true;
  });
  lane.unsent.erase(lane.unsent.begin(), lane.unsent.begin() + static_cast<std::ptrdiff_t>(taken));
}

void PrefetchThread::check_links() {
  for (BulkLane& lane : lanes_) {
    if (!lane.renew(now_ns(), released_)) continue;
    lane.unsent.clear();
    for (unsigned request = 0; request < kMaxBulkRequests; request++) {
      if (requests_[request].pages == 0 || requests_[request].server != lane.server()) continue;
      lane.unsent.push_back(static_cast<std::uint16_t>(request));
    }
    lane.dirty = true;
  }
}

void PrefetchThread::check_timeouts(std::uint64_t now) {
  checked_ns_ = now;
  for (BulkLane& lane : lanes_) {
    if (lane.outstanding == 0 || !lane.overdue(now, core_.config.io_timeout)) continue;
    lane.fail(make_error(ETIMEDOUT,
                         "memory server {} owes prefetched pages and sent none for {} ms",
                         lane.name(), core_.config.io_timeout.count()));
  }
}

void PrefetchThread::release_all() {
  released_ = true;
  for (BulkLane& lane : lanes_) {
    lane.disconnect();
    lane.outstanding = 0;
    lane.unsent.clear();
  }
  for (unsigned i = 0; i < kMaxBulkRequests; i++) {
    Request& request = requests_[i];
    if (request.pages == 0) continue;
    give_up(request.first, request.pages);  // F answers who faults again with zeroes
    request.pages = 0;
    free_requests_.push_back(static_cast<std::uint16_t>(i));
  }
}

}  // namespace kintsugi
