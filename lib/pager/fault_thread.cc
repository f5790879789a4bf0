// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/fault_thread.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace kintsugi {
namespace {

constexpr std::uint32_t kTagUffd = 0;
constexpr std::uint32_t kTagBell = UINT32_MAX;
// Faults taken in one read: more would let the first wait for the last.
constexpr std::size_t kFaultBatch = 16;
// How often the kernel may answer EAGAIN before a page waits with the deferred ones.
constexpr int kInstallTries = 16;
constexpr int kDeferredRetry_ms = 10;
// A fault on a page that comes with a prefetch waits for that unless so many pages come before it.
constexpr std::uint32_t kShallowBulkPages = 64;
// Answers of one page; room for many at once.
constexpr std::size_t kReadBuffer_bytes = 256 * 1024;

}  // namespace

Result<std::unique_ptr<FaultThread>> FaultThread::create(PagerCore& core) {
  std::unique_ptr<FaultThread> thread(new FaultThread(core));
  if (Result<void> ready = thread->init(); !ready) return ready.error();
  return thread;
}

Result<void> FaultThread::init() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return make_error(errno, "cannot create an epoll instance for the pager");
  lanes_.resize(core_.links.size());
  for (std::size_t i = 0; i < lanes_.size(); i++) {
    UrgentLane& lane = lanes_[i];
    // Edge-triggered: a descriptor that was read empty is not polled again on every round.
    Result<void> ready =
        lane.init(core_.links[i].get(), Lane::kUrgent, epoll_, EPOLLET, kReadBuffer_bytes);
    if (!ready) return ready;
    auto unsent = LazyArray<std::uint16_t>::create(kMaxUrgent, "the queue of page requests");
    if (!unsent) return unsent.error();
    lane.unsent = std::move(*unsent);
  }
  slots_ = std::make_unique<Slot[]>(kMaxUrgent);
  free_slots_ = std::make_unique<std::uint16_t[]>(kMaxUrgent);
  for (unsigned i = 0; i < kMaxUrgent; i++) {
    free_slots_[i] = static_cast<std::uint16_t>(kMaxUrgent - 1 - i);
  }
  free_count_ = kMaxUrgent;
  deferred_ = std::make_unique<PageIndex[]>(kMaxDeferred);
  zero_page_ = std::make_unique<char[]>(kPageSize);
  watch(core_.uffd->fd(), EPOLLIN, kTagUffd, true);
  watch(core_.fault_bell.fd(), EPOLLIN, kTagBell, true);
  return {};
}

FaultThread::~FaultThread() {
  if (epoll_ >= 0) close(epoll_);
}

void FaultThread::watch(int fd, std::uint32_t events, std::uint32_t tag, bool add) {
  epoll_event event{};
  event.events = events | EPOLLET;
  event.data.u32 = tag;
  epoll_ctl(epoll_, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
}

void FaultThread::run() {
  constexpr int kEvents = 64;
  std::array<epoll_event, kEvents> events;
  check_links();
  while (!core_.stopping.load(std::memory_order_acquire)) {
    const int n = wait(events);
    now_ = now_ns();
    bool faults = false;
    for (int i = 0; i < n; i++) {
      const std::uint32_t tag = events[static_cast<unsigned>(i)].data.u32;
      const std::uint32_t what = events[static_cast<unsigned>(i)].events;
      if (tag == kTagUffd) {
        faults = true;
      } else if (tag == kTagBell) {
        core_.fault_bell.silence();
        check_links();
        if (core_.released.load(std::memory_order_acquire) && !released_) release_all();
      } else {
        UrgentLane& lane = lanes_[tag - 1];
        if ((what & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) receive(lane);
        if ((what & EPOLLOUT) != 0) lane.dirty = any_dirty_ = true;
      }
    }
    if ((faults || more_faults_) && uffd_watched_) read_faults();
    if (deferred_count_ > 0) retry_deferred();
    if (any_dirty_) flush_all();
    if (wished_) {
      wished_ = false;
      core_.prefetch_bell.ring();
    }
    const bool room = free_count_ >= kFaultBatch && deferred_count_ + kFaultBatch <= kMaxDeferred;
    if (room != uffd_watched_) {
      uffd_watched_ = room;
      watch(core_.uffd->fd(), room ? std::uint32_t{EPOLLIN} : 0U, kTagUffd, false);
    }
    if (now_ - checked_ns_ > std::uint64_t{kOverdueCheck_ms} * 1'000'000 || n == 0) {
      check_timeouts(now_);
    }
  }
}

int FaultThread::wait(std::span<epoll_event> events) {
  int timeout_ms = -1;
  if (free_count_ < kMaxUrgent) {
    timeout_ms = overdue_check_ms(core_.config.io_timeout);
  }
  if (deferred_count_ > 0) timeout_ms = kDeferredRetry_ms;
  if (more_faults_ && uffd_watched_) timeout_ms = 0;
  return epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), timeout_ms);
}

void FaultThread::read_faults() {
  std::array<UffdFault, kFaultBatch> faults;
  const std::size_t n = core_.uffd->read_faults(faults);
  for (std::size_t i = 0; i < n; i++) handle(faults[i]);
  // A short read has emptied the queue; else there may be more, and no event will say so again.
  more_faults_ = n == kFaultBatch;
}

void FaultThread::handle(const UffdFault& fault) {
  const Region* region = core_.regions.of_address(fault.address);
  if (region == nullptr) return;
  const std::uint64_t offset =
      (fault.address - reinterpret_cast<std::uint64_t>(region->host)) >> kPageShift;
  const PageIndex page{region->first.value + offset};
  char* host = region->host + (offset << kPageShift);
  core_.faults.faults.add();
  if (fault.write_protect) {
    on_write_protected(page, host);
  } else {
    waiter_ = fault.thread_id;
    on_missing(page, host);
  }
}

void FaultThread::wake(char* host) {
  [[maybe_unused]] const UffdResult woken = core_.uffd->wake(host, kPageSize);
}

bool FaultThread::install(char* host, const void* content) {
  for (int i = 0; i < kInstallTries; i++) {
    const UffdResult result = core_.uffd->copy(host, content, kPageSize);
    switch (result.error) {
      case 0:
      case ENOENT:  // the mapping is gone, and who waited with it
      case ESRCH:
        return true;
      case EEXIST:
        wake(host);
        return true;
      case EAGAIN:
        core_.faults.install_retries.add();
        sched_yield();
        break;
      default:
        core_.faults.install_retries.add();
        return false;
    }
  }
  return false;
}

bool FaultThread::install_zero(char* host) {
  if (core_.zero_by_copy) return install(host, zero_page_.get());
  for (int i = 0; i < kInstallTries; i++) {
    const UffdResult result = core_.uffd->zero(host, kPageSize);
    switch (result.error) {
      case 0:
      case ENOENT:
      case ESRCH:
        return true;
      case EEXIST:
        wake(host);
        return true;
      case EAGAIN:
        core_.faults.install_retries.add();
        sched_yield();
        break;
      default:
        core_.faults.install_retries.add();
        return false;
    }
  }
  return false;
}

void FaultThread::on_missing(PageIndex page, char* host) {
  bool lift = false;
  bool noted = false;
  for (;;) {
    const PageEntry entry = core_.map.load(page);
    if (entry.state() == PageState::kEvictingWp) {
      // A page that is being written out was never there, or the event is late.
      if (core_.map.cancel_evict_wp(page)) {
        core_.faults.write_cancels.add();
        core_.resident.fetch_add(1, std::memory_order_acq_rel);
        lift = true;
      }
      continue;
    }
    if (!released_ && entry.state() == PageState::kRemote && entry.prefetch() && !entry.urgent() &&
        core_.counters(entry.server()).bulk_pages.load(std::memory_order_relaxed) <=
            kShallowBulkPages) {
      // It comes with the rest of its chunk. Whoever gives that up wakes the page.
      if (!noted) {
        // If it has come meanwhile, P may not have seen that somebody waits.
        core_.waits.begin(page, now_, waiter_);
        noted = true;
        continue;
      }
      core_.faults.prefetch_hits.add();
      return;
    }
    const PageClaim claim = core_.map.try_begin_urgent(page);
    if (!claim) {
      // Asked for already, or between mapped and unmapped: whoever is at it wakes this one too.
      if (claim.seen.urgent()) {
        core_.waits.begin(page, now_, waiter_);
        return;
      }
      if (claim.seen.state() == PageState::kUnmapping) {
        core_.waits.end(page);
        return;
      }
      continue;  // became EvictingWp
    }
    switch (claim.seen.state()) {
      case PageState::kLocal:
        if (lift) (void)core_.uffd->protect(host, kPageSize, false).error;
        fill_zero(page, host);
        return;
      case PageState::kZero:
        if (released_ || core_.take_room(1, core_.fault_limit())) {
          fill_zero(page, host);
          core_.evict_if_short();
          return;
        }
        break;
      case PageState::kRemote:
        if (released_) {
          fill_zero(page, host);
          return;
        }
        if (core_.take_room(1, core_.fault_limit())) {
          ask(page, claim.seen.server());
          core_.evict_if_short();
          return;
        }
        break;
      case PageState::kEvicting:
      case PageState::kEvictingWp:  // never claimed in these two
      case PageState::kUnmapping:
        serve_from_queue(page, host);
        return;
    }
    core_.map.abandon_urgent(page);
    if (!retrying_) core_.faults.hard_waits.add();
    defer(page);
    return;
  }
}

// The page is claimed: it reads as zero.
void FaultThread::fill_zero(PageIndex page, char* host) {
  const PageState before = core_.map.load(page).state();
  if (!install_zero(host)) {
    core_.map.abandon_urgent(page);
    if (before != PageState::kLocal) core_.give_room(1);
    defer(page);
    return;
  }
  core_.waits.end(page);
  core_.faults.zero_fills.add();
  if (core_.map.complete_urgent(page) && before == PageState::kZero) {
    core_.zero.fetch_sub(1, std::memory_order_relaxed);
  }
}

// The page is claimed and was Evicting.
void FaultThread::serve_from_queue(PageIndex page, char* host) {
  const char* content = core_.staging->find(page);
  if (content == nullptr) {  // it was a hole, and E is about to call it Zero
    core_.resident.fetch_add(1, std::memory_order_acq_rel);
    fill_zero(page, host);
    return;
  }
  // Beyond the limit by the pages that are staged and here as well: no more than there are threads
  // that wait, and not for long.
  const UffdResult result = core_.uffd->copy(host, content, kPageSize);
  if (result.error != 0) {
    core_.map.abandon_urgent(page);
    if (result.error != EEXIST) {
      core_.faults.install_retries.add();
      if (result.error != ENOENT && result.error != ESRCH) {
        defer(page);
        return;
      }
    }
    wake(host);
    core_.waits.end(page);
    return;
  }
  core_.waits.end(page);
  core_.resident.fetch_add(1, std::memory_order_acq_rel);
  core_.faults.queue_hits.add();
  [[maybe_unused]] const bool here = core_.map.complete_urgent(page);
  if (core_.config.history != nullptr) core_.config.history->mark(page);
}

void FaultThread::on_write_protected(PageIndex page, char* host) {
  for (;;) {
    if (core_.map.cancel_evict_wp(page)) {
      core_.faults.write_cancels.add();
      core_.resident.fetch_add(1, std::memory_order_acq_rel);
    }
    // Claimed while the protection is lifted, so that E cannot set it anew in between.
    const PageClaim claim = core_.map.try_begin_urgent(page);
    if (!claim) {
      // Being fetched or discarded: the installation or E wakes.
      if (claim.seen.urgent() || claim.seen.state() == PageState::kUnmapping) return;
      continue;  // EvictingWp again
    }
    if (claim.seen.state() == PageState::kLocal) {
      const UffdResult lifted = core_.uffd->protect(host, kPageSize, false);
      [[maybe_unused]] const bool changed = core_.map.complete_urgent(page);
      if (lifted.error != 0) wake(host);
      return;
    }
    core_.map.abandon_urgent(page);
    // Unmapped meanwhile: the faulter comes again as missing.
    wake(host);
    return;
  }
}

// The page is claimed, and there is room for it.
void FaultThread::ask(PageIndex page, ServerId server) {
  core_.waits.begin(page, now_, waiter_);
  const std::uint16_t index = free_slots_[--free_count_];
  Slot& slot = slots_[index];
  slot.page = page;
  slot.use++;
  slot.server = server;
  UrgentLane& lane = lanes_[server.value - 1U];
  if (lane.outstanding++ == 0) lane.made_progress(now_);
  lane.unsent[lane.unsent_tail++ % kMaxUrgent] = index;
  lane.dirty = any_dirty_ = true;
  if (core_.config.prefetch && core_.config.chunk_pages.value > 1) wish_for_chunk(page);
}

void FaultThread::wish_for_chunk(PageIndex page) {
  const std::uint64_t chunk_pages = core_.config.chunk_pages.value;
  const std::uint64_t first = page.value / chunk_pages * chunk_pages;
  const std::uint64_t end = std::min(first + chunk_pages, core_.config.vm_pages.value);
  for (std::uint64_t i = first; i < end; i++) {
    const PageEntry entry = core_.map.load(PageIndex{i});
    if (entry.state() != PageState::kRemote || entry.in_flight()) continue;
    if (core_.prefetch_wishes.push(page.value)) wished_ = true;
    return;
  }
}

void FaultThread::defer(PageIndex page) {
  core_.waits.begin(page, now_, waiter_);
  // on_missing() is only called while there is a place: see `room` in run().
  deferred_[deferred_count_++] = page;
  core_.room_wanted.store(true, std::memory_order_seq_cst);
  core_.evict_bell.ring();
}

void FaultThread::retry_deferred() {
  const unsigned count = deferred_count_;
  deferred_count_ = 0;
  retrying_ = true;
  for (unsigned i = 0; i < count; i++) {
    const PageIndex page = deferred_[i];
    // What does not fit is put back at the front: never ahead of the place that is read.
    if (free_count_ == 0) {
      deferred_[deferred_count_++] = page;
      continue;
    }
    on_missing(page, core_.regions.host(page));
  }
  retrying_ = false;
}

void FaultThread::receive(UrgentLane& lane) {
  do {
    const std::size_t bytes = lane.receive(
        now_, [&](const wire::FrameHeader& header, std::span<const std::uint8_t> payload) {
          on_answer(lane, header, payload);
        });
    if (bytes == 0) return;
    core_.counters(lane.server()).bytes_in_urgent.add(bytes);
  } while (!lane.drained());
}

void FaultThread::on_answer(UrgentLane& lane, const wire::FrameHeader& header,
                            std::span<const std::uint8_t> payload) {
  const ServerId server = lane.server();
  const auto index = static_cast<std::uint16_t>(header.seq & 0xffff);
  if (index >= kMaxUrgent || slots_[index].server != server ||
      slots_[index].use != header.seq >> 16 ||
      header.op != static_cast<std::uint16_t>(wire::Op::kGet)) {
    lane.fail(
        make_error(EPROTO, "memory server {} answered a request that was not made", lane.name()));
    return;
  }
  Slot& slot = slots_[index];
  if (header.status != 0) {
    lane.fail(lane.connection().refusal(static_cast<wire::Status>(header.status), "return a page"));
    return;
  }
  GetAnswer answer;
  if (header.count != 1 || header.page != slot.page.value || !parse_get(header, payload, &answer)) {
    lane.fail(make_error(EPROTO, "memory server {} answered with another page than was asked for",
                         lane.name()));
    return;
  }
  const PageIndex page = slot.page;
  char* host = core_.regions.host(page);
  if (!answer.has(0)) {
    // A prefetch that was under way too was faster, and has had the server forget the page.
    const PageEntry entry = core_.map.load(page);
    if (entry.state() != PageState::kLocal && !entry.prefetch()) {
      lane.fail(make_error(ENODATA,
                           "memory server {} no longer has page {}: was it restarted with an older "
                           "arena file?",
                           lane.name(), page.value));
      return;
    }
    free_slot(lane, index);
    core_.map.abandon_urgent(page);
    core_.give_room(1);
    wake(host);
    core_.waits.end(page);
    return;
  }
  const bool installed = install(host, answer.content);
  free_slot(lane, index);
  if (!installed) {
    core_.map.abandon_urgent(page);
    core_.give_room(1);
    defer(page);
    return;
  }
  push_discard(page, server);
  if (core_.map.complete_urgent(page)) {
    core_.counters(server).pages.fetch_sub(1, std::memory_order_relaxed);
  } else {
    core_.give_room(1);  // a prefetch was faster
  }
  core_.faults.page_ins.add();
  core_.counters(server).page_ins.add();
  core_.waits.end(page);
  const std::uint64_t chunk = core_.chunk_of(page);
  if (core_.recently_out.contains(chunk)) core_.faults.refaults.add();
  core_.recently_in.add(chunk);
  if (core_.config.history != nullptr) core_.config.history->mark(page);
}

void FaultThread::free_slot(UrgentLane& lane, std::uint16_t index) {
  slots_[index].server = kMainHost;
  free_slots_[free_count_++] = index;
  lane.outstanding--;
}

void FaultThread::push_discard(PageIndex page, ServerId server) {
  // The ring is only full if E has not run for 64 Ki page-ins.
  while (!core_.fault_discards.push(DiscardRun::of(page, 1, server))) {
    core_.discard_bell.ring();
    if (core_.stopping.load(std::memory_order_acquire)) return;
    sched_yield();
  }
  core_.discard_bell.ring();
}

void FaultThread::flush_all() {
  any_dirty_ = false;
  for (UrgentLane& lane : lanes_) {
    if (lane.dirty) flush(lane);
  }
}

void FaultThread::flush(UrgentLane& lane) {
  lane.dirty = false;
  if (!lane.connected()) return;
  lane.send([&](wire::FrameHeader* header) {
    while (lane.unsent_head != lane.unsent_tail) {
      const std::uint16_t index = lane.unsent[lane.unsent_head++ % kMaxUrgent];
      const Slot& slot = slots_[index];
      if (slot.server != lane.server()) continue;
      *header = lane.connection().request(wire::Op::kGet, std::uint64_t{slot.use} << 16 | index);
      header->page = slot.page.value;
      header->count = 1;
      return true;
    }
    return false;
  });
}

void FaultThread::check_links() {
  for (UrgentLane& lane : lanes_) {
    if (!lane.renew(now_ns(), released_)) continue;
    // Everything that this server owes is asked for again.
    lane.unsent_head = lane.unsent_tail = 0;
    for (unsigned slot = 0; slot < kMaxUrgent; slot++) {
      if (slots_[slot].server != lane.server()) continue;
      lane.unsent[lane.unsent_tail++ % kMaxUrgent] = static_cast<std::uint16_t>(slot);
    }
    lane.dirty = any_dirty_ = true;
  }
  if (any_dirty_) flush_all();
}

void FaultThread::check_timeouts(std::uint64_t now) {
  checked_ns_ = now;
  for (UrgentLane& lane : lanes_) {
    if (lane.outstanding == 0 || !lane.overdue(now, core_.config.io_timeout)) continue;
    lane.fail(make_error(ETIMEDOUT, "memory server {} owes {} pages and sent none for {} ms",
                         lane.name(), lane.outstanding, core_.config.io_timeout.count()));
  }
}

void FaultThread::release_all() {
  released_ = true;
  for (UrgentLane& lane : lanes_) {
    lane.disconnect();
    lane.outstanding = 0;
  }
  for (unsigned i = 0; i < kMaxUrgent; i++) {
    Slot& slot = slots_[i];
    if (slot.server == kMainHost) continue;
    [[maybe_unused]] const bool filled = install_zero(core_.regions.host(slot.page));
    [[maybe_unused]] const bool here = core_.map.complete_urgent(slot.page);
    core_.waits.end(slot.page);
    slot.server = kMainHost;
    free_slots_[free_count_++] = static_cast<std::uint16_t>(i);
  }
  retry_deferred();
}

}  // namespace kintsugi
