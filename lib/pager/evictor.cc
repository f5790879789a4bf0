// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/evictor.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>

namespace kintsugi {
namespace {

constexpr std::uint32_t kTagBell = UINT32_MAX;
constexpr std::uint32_t kTagDiscards = UINT32_MAX - 1;
// Discards are not urgent: gathered for so long before they are sent.
constexpr int kLinger_ms = 20;
// Between attempts when nothing could be taken.
constexpr int kBlocked_ms = 5;
// While a fault has its hand on a page that a server has acknowledged.
constexpr int kHeld_ms = 1;
// Units taken between two looks at the sockets.
constexpr int kUnitsPerRound = 8;
constexpr std::size_t kReadBuffer_bytes = 64 * 1024;
// Versions of an epoch: above all that an earlier holder of the session used.
constexpr unsigned kEpochShift = 40;

}  // namespace

Result<std::unique_ptr<Evictor>> Evictor::create(PagerCore& core) {
  std::unique_ptr<Evictor> evictor(new Evictor(core));
  if (Result<void> ready = evictor->init(); !ready) return ready.error();
  return evictor;
}

Result<void> Evictor::init() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) return make_error(errno, "cannot create an epoll instance for the pager");
  Result<std::unique_ptr<PageOut>> method = make_page_out(core_);
  if (!method) return method.error();
  method_ = std::move(*method);
  lanes_.resize(core_.links.size());
  for (std::size_t i = 0; i < lanes_.size(); i++) {
    Result<void> ready =
        lanes_[i].init(core_.links[i].get(), Lane::kOut, epoll_, 0, kReadBuffer_bytes);
    if (!ready) return ready;
    Result<OutQueue> queue = OutQueue::create();
    if (!queue) return queue.error();
    lanes_[i].queue = std::move(*queue);
    lanes_[i].used = core_.used_at_start[i];
    put_version_ = std::max(put_version_, core_.links[i]->epoch().value << kEpochShift);
  }
  to_put_.reserve(core_.staging->frames());
  held_.reserve(core_.staging->frames());
  watch(core_.evict_bell.fd(), EPOLLIN, kTagBell, true);
  watch(core_.discard_bell.fd(), EPOLLIN, kTagDiscards, true);
  return {};
}

Evictor::~Evictor() {
  if (epoll_ >= 0) close(epoll_);
}

void Evictor::watch(int fd, std::uint32_t events, std::uint32_t tag, bool add) {
  epoll_event event{};
  event.events = events;
  event.data.u32 = tag;
  epoll_ctl(epoll_, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
}

void Evictor::run() {
  now_ = now_ns();
  check_links();
  forget_stale_zeroes();
  bool blocked = false;
  while (!core_.stopping.load(std::memory_order_acquire)) {
    if (short_of_room() && !core_.released.load(std::memory_order_acquire)) {
      blocked = false;
      victims_.forgive(now_);
      for (int i = 0; i < kUnitsPerRound && short_of_room() && !blocked; i++) {
        blocked = evict() != Evicted::kSome;
      }
      linger_until_ns_ = 0;
    }
    if (now_ >= linger_until_ns_) {
      linger_until_ns_ = 0;
      if (drain_discards()) queue_puts();
    }
    settle_held();
    for (OutLane& lane : lanes_) {
      if (lane.queue.unsent() && !lane.writable_watched()) send(lane);
    }
    wait(short_of_room() && !blocked && !core_.released.load(std::memory_order_acquire));
  }
}

void Evictor::linger() {
  if (linger_until_ns_ == 0) linger_until_ns_ = now_ + std::uint64_t{kLinger_ms} * 1'000'000;
}

bool Evictor::short_of_room() {
  if (core_.resident.load(std::memory_order_acquire) <= core_.evict_to) {
    evicting_ = false;
  } else if (core_.in_use() > core_.evict_at || core_.room_wanted.load(std::memory_order_acquire)) {
    evicting_ = true;
  }
  return evicting_;
}

void Evictor::wait(bool more_now) {
  constexpr int kEvents = 64;
  std::array<epoll_event, kEvents> events;
  int timeout_ms = -1;
  const auto at_most = [&](int ms) { timeout_ms = timeout_ms < 0 ? ms : std::min(timeout_ms, ms); };
  for (const OutLane& lane : lanes_) {
    if (!lane.queue.unanswered()) continue;
    at_most(overdue_check_ms(core_.config.io_timeout));
  }
  if (evicting_) at_most(more_now ? 0 : kBlocked_ms);
  if (!held_.empty()) at_most(kHeld_ms);
  if (!to_put_.empty() || linger_until_ns_ != 0) at_most(kLinger_ms);
  core_.evict_bell.about_to_sleep();
  if (!evicting_ && core_.in_use() > core_.evict_at) at_most(0);
  if (linger_until_ns_ == 0) {
    core_.discard_bell.about_to_sleep();
    if (!core_.fault_discards.empty() || !core_.prefetch_discards.empty()) linger();
    if (linger_until_ns_ != 0) at_most(kLinger_ms);
  }
  const int n = epoll_wait(epoll_, events.data(), kEvents, timeout_ms);
  core_.evict_bell.awake();
  core_.discard_bell.awake();
  now_ = now_ns();
  for (int i = 0; i < n; i++) {
    const std::uint32_t tag = events[static_cast<unsigned>(i)].data.u32;
    const std::uint32_t what = events[static_cast<unsigned>(i)].events;
    if (tag == kTagBell) {
      core_.evict_bell.silence();
      check_links();
    } else if (tag == kTagDiscards) {
      core_.discard_bell.silence();
      linger();
    } else {
      OutLane& lane = lanes_[tag - 1];
      if ((what & EPOLLOUT) != 0) send(lane);
      if ((what & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) receive(lane);
    }
  }
  if (now_ - checked_ns_ > std::uint64_t{kOverdueCheck_ms} * 1'000'000 || n == 0) {
    check_timeouts(now_);
  }
}

// ---- Taking pages out of the guest --------------------------------------------------------------

std::uint64_t Evictor::local_pages(std::uint64_t unit) const {
  const unsigned unit_pages = core_.staging->unit_pages();
  const std::uint64_t first = unit * unit_pages;
  std::uint64_t mask = 0;
  for (unsigned i = 0; i < unit_pages && first + i < core_.config.vm_pages.value; i++) {
    if (core_.map.load(PageIndex{first + i}) == PageEntry::of(PageState::kLocal)) {
      mask |= std::uint64_t{1} << i;
    }
  }
  return mask;
}

std::optional<std::uint64_t> Evictor::next_unit() {
  const std::uint64_t units_per_chunk =
      std::max<std::uint64_t>(1, core_.config.chunk_pages.value / core_.staging->unit_pages());
  if (!chunk_ || next_unit_ == units_per_chunk) {
    chunk_ = victims_.next();
    next_unit_ = 0;
    if (!chunk_) return std::nullopt;
    core_.recently_out.add(chunk_->value);
  }
  return chunk_->value * units_per_chunk + next_unit_++;
}

bool Evictor::has_room(ServerId server, unsigned pages) const {
  const OutLane& lane = lane_of(server);
  // One slow or lost server must not hold the whole queue.
  const unsigned share = lanes_.size() > 1 ? core_.staging->frames() / 2 : core_.staging->frames();
  return lane.connected() && lane.frames < share && lane.queue.room() > kMaxUnitPages &&
         lane.used + pages <= core_.config.servers[server.value - 1U].capacity.value;
}

std::optional<ServerId> Evictor::choose_server(std::uint64_t unit, unsigned pages) const {
  const std::uint64_t chunk_pages = core_.config.chunk_pages.value;
  const std::uint64_t first = unit * core_.staging->unit_pages() / chunk_pages * chunk_pages;
  const std::uint64_t end = std::min(first + chunk_pages, core_.config.vm_pages.value);
  for (std::uint64_t page = first; page < end; page++) {
    const PageEntry entry = core_.map.load(PageIndex{page});
    if (entry.state() != PageState::kRemote) continue;
    if (has_room(entry.server(), pages)) return entry.server();
    break;
  }
  std::optional<ServerId> best;
  std::uint64_t best_room = 0;
  for (unsigned i = 0; i < lanes_.size(); i++) {
    const ServerId server{static_cast<std::uint8_t>(i + 1)};
    if (!has_room(server, pages)) continue;
    const std::uint64_t room = core_.config.servers[i].capacity.value - lanes_[i].used;
    if (best && room <= best_room) continue;
    best = server;
    best_room = room;
  }
  return best;
}

Evictor::Evicted Evictor::evict() {
  if (core_.staging->in_use() == core_.staging->frames()) return Evicted::kBlocked;
  const std::optional<std::uint64_t> unit = next_unit();
  if (!unit) return Evicted::kNothingLeft;
  if (core_.staging->busy(*unit)) return Evicted::kSome;
  const std::uint64_t want = local_pages(*unit);
  if (want == 0) return Evicted::kSome;
  const std::optional<ServerId> server =
      choose_server(*unit, static_cast<unsigned>(std::popcount(want)));
  if (!server) {
    next_unit_--;
    return Evicted::kBlocked;
  }
  unsigned index = 0;
  Staging::Frame* frame = core_.staging->take(*unit, &index);
  frame->server = *server;
  frame->started_ns = now_ns();
  const PageIndex first{*unit * core_.staging->unit_pages()};
  const TakenPages taken = method_->take(*frame, index, first, want, *server);
  core_.evictions.refused.add(taken.refused);
  frame->zero = taken.holes;
  for (std::uint64_t left = taken.staged; left != 0; left &= left - 1) {
    const auto place = static_cast<unsigned>(std::countr_zero(left));
    const auto* words = reinterpret_cast<const std::uint64_t*>(core_.staging->place(index, place));
    std::size_t i = 0;
    while (i < kPageSize / 8 && words[i] == 0) i++;
    if (i == kPageSize / 8) {
      frame->zero |= std::uint64_t{1} << place;
    } else {
      frame->sending |= std::uint64_t{1} << place;
    }
  }
  lane_of(*server).frames++;
  const std::uint64_t zero = frame->zero;
  settle_zero(index);
  if (frame->zero != 0) held_.push_back(index);
  if (frame->sending != 0) {
    to_put_.push_back(index);
  } else {
    give_back_if_settled(index);
  }
  if (zero == 0 && taken.staged == 0 && taken.refused > 0) victims_.refused(*chunk_, now_);
  return Evicted::kSome;
}

// ---- What servers are told ----------------------------------------------------------------------

bool Evictor::drain(SpscRing<DiscardRun>& ring, std::optional<DiscardRun>* held) {
  for (;;) {
    if (!*held) {
      DiscardRun run;
      if (!ring.pop(&run)) return true;
      *held = run;
    }
    OutLane& lane = lane_of((*held)->server());
    if (lane.queue.room() == 0) return false;
    lane.queue.discard((*held)->first(), (*held)->pages(), put_version_);
    lane.used -= std::min<std::uint64_t>(lane.used, (*held)->pages());
    core_.evictions.discards.add((*held)->pages());
    held->reset();
  }
}

bool Evictor::drain_discards() {
  const bool faults = drain(core_.fault_discards, &held_fault_);
  const bool prefetches = drain(core_.prefetch_discards, &held_prefetch_);
  return faults && prefetches;
}

// Only when the rings have been emptied after the pages were taken: see DiscardRun.
void Evictor::queue_puts() {
  for (const unsigned index : to_put_) {
    Staging::Frame& frame = core_.staging->frame(index);
    OutLane& lane = lane_of(frame.server);
    const PageIndex first{frame.unit * core_.staging->unit_pages()};
    for (std::uint64_t left = frame.sending; left != 0;) {
      const auto place = static_cast<unsigned>(std::countr_zero(left));
      const auto run = static_cast<unsigned>(std::countr_one(left >> place));
      lane.queue.put(first + PageCount{place}, run, ++put_version_, index, place);
      lane.used += run;
      left &= run == 64 ? 0 : ~(((std::uint64_t{1} << run) - 1) << place);
    }
  }
  to_put_.clear();
}

// The server has these places of the frame.
void Evictor::settle(unsigned frame_index, std::uint64_t places) {
  Staging::Frame& frame = core_.staging->frame(frame_index);
  OutLane& lane = lane_of(frame.server);
  const PageIndex first{frame.unit * core_.staging->unit_pages()};
  for (std::uint64_t left = places; left != 0; left &= left - 1) {
    const std::uint64_t bit = left & -left;
    const PageIndex page = first + PageCount{static_cast<unsigned>(std::countr_zero(left))};
    if (core_.map.finish_evict(page)) {
      core_.counters(frame.server).pages.fetch_add(1, std::memory_order_relaxed);
      core_.evictions.page_outs.add();
      core_.counters(frame.server).page_outs.add();
      frame.sent &= ~bit;
    } else if (core_.map.load(page).state() == PageState::kEvicting || lane.queue.room() == 0) {
      frame.sent |= bit;  // F is about to take it back; or it did, and that cannot be told yet
    } else {
      lane.queue.discard(page, 1, put_version_);
      lane.used -= std::min<std::uint64_t>(lane.used, 1);
      core_.evictions.discards.add();
      frame.sent &= ~bit;
    }
  }
}

void Evictor::settle_zero(unsigned frame_index) {
  Staging::Frame& frame = core_.staging->frame(frame_index);
  const PageIndex first{frame.unit * core_.staging->unit_pages()};
  for (std::uint64_t left = frame.zero; left != 0; left &= left - 1) {
    const std::uint64_t bit = left & -left;
    const PageIndex page = first + PageCount{static_cast<unsigned>(std::countr_zero(left))};
    if (core_.map.finish_evict_zero(page)) {
      core_.zero.fetch_add(1, std::memory_order_relaxed);
      core_.evictions.zero.add();
      frame.zero &= ~bit;
    } else if (core_.map.load(page).state() != PageState::kEvicting) {
      frame.zero &= ~bit;
    }
  }
}

void Evictor::settle_held() {
  for (std::size_t i = 0; i < held_.size();) {
    const unsigned index = held_[i];
    Staging::Frame& frame = core_.staging->frame(index);
    settle_zero(index);
    settle(index, frame.sent);
    if (frame.zero != 0 || frame.sent != 0) {
      i++;
      continue;
    }
    held_[i] = held_.back();
    held_.pop_back();
    give_back_if_settled(index);
  }
}

void Evictor::give_back_if_settled(unsigned frame_index) {
  Staging::Frame& frame = core_.staging->frame(frame_index);
  if (!frame.settled()) return;
  const std::uint64_t staged = frame.staged.load(std::memory_order_relaxed);
  if (staged != 0 && !core_.staging->keeps_memory()) {
    const auto low = static_cast<unsigned>(std::countr_zero(staged));
    const auto high = 64U - static_cast<unsigned>(std::countl_zero(staged));
    (void)core_.uffd->discard(core_.staging->place(frame_index, low), (high - low) * kPageSize)
        .error;
  }
  lane_of(frame.server).frames--;
  core_.staging->give_back(frame_index);
  core_.queued.fetch_sub(std::popcount(staged), std::memory_order_acq_rel);
  if (core_.room_wanted.exchange(false, std::memory_order_acq_rel)) core_.fault_bell.ring_always();
}

// Pages that the source sent and later found to be zero are still on the server: make room.
void Evictor::forget_stale_zeroes() {
  for (unsigned i = 0; i < lanes_.size(); i++) {
    OutLane& lane = lanes_[i];
    if (core_.used_at_start[i] <= core_.remote_at_start[i]) continue;
    const ServerId server{static_cast<std::uint8_t>(i + 1)};
    bool all = true;
    core_.plan.for_each_run([&](ServerId owner, PageIndex first, PageCount count) {
      if (owner != server) return;
      for (std::uint64_t page = first.value; page < first.value + count.value; page++) {
        // Zero, or touched since. (Or fetched already: then this Discard is one too many.)
        if (core_.map.load(PageIndex{page}).state() == PageState::kRemote) continue;
        all = all && lane.queue.room() > kMaxOutItems / 2;
        if (!all) return;
        lane.queue.discard(PageIndex{page}, 1, put_version_);
      }
    });
    if (all) lane.used = core_.remote_at_start[i];
  }
}

// ---- Connections --------------------------------------------------------------------------------

void Evictor::send(OutLane& lane) {
  if (!lane.connected()) return;
  const bool was_waiting = lane.queue.unanswered();
  const Result<std::size_t> sent = lane.queue.send(lane.connection(), *core_.staging);
  if (!sent) {
    lane.fail(sent.error());
    return;
  }
  if (!was_waiting || *sent > 0) lane.made_progress(now_);
  core_.counters(lane.server()).bytes_out.add(*sent);
  lane.watch_writable(lane.queue.unsent());
}

void Evictor::receive(OutLane& lane) {
  lane.receive(now_, [&](const wire::FrameHeader& header, std::span<const std::uint8_t> /*none*/) {
    on_answer(lane, header);
  });
  if (lane.connected()) lane.queue.trim();
}

void Evictor::on_answer(OutLane& lane, const wire::FrameHeader& header) {
  OutQueue::Item* item = lane.queue.answered(header.seq);
  const auto op =
      item != nullptr && item->kind == OutQueue::Kind::kPut ? wire::Op::kPut : wire::Op::kDiscard;
  if (item == nullptr || header.op != static_cast<std::uint16_t>(op)) {
    if (item == nullptr && lane.queue.was_answered(header.seq)) return;
    lane.fail(
        make_error(EPROTO, "memory server {} answered a request that was not made", lane.name()));
    return;
  }
  if (header.status != 0) {
    lane.fail(lane.connection().refusal(static_cast<wire::Status>(header.status),
                                        op == wire::Op::kPut ? "store pages" : "discard pages"));
    return;
  }
  item->done = true;
  if (item->kind == OutQueue::Kind::kDiscard) return;
  lane.link().note_stored(item->version);
  lane.queue.settle_discards_before(header.seq);
  Staging::Frame& frame = core_.staging->frame(item->frame);
  const std::uint64_t places =
      (item->pages == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << item->pages) - 1)
      << item->place;
  frame.sending &= ~places;
  const bool was_held = (frame.sent | frame.zero) != 0;
  settle(item->frame, places);
  core_.evictions.page_out.record(now_ - std::min(now_, frame.started_ns));
  if (!was_held && frame.sent != 0) held_.push_back(item->frame);
  if (!was_held) give_back_if_settled(item->frame);
}

void Evictor::check_links() {
  for (OutLane& lane : lanes_) {
    if (!lane.renew(now_ns())) continue;
    lane.queue.trim();
    lane.queue.rewind();
  }
}

void Evictor::check_timeouts(std::uint64_t now) {
  checked_ns_ = now;
  for (OutLane& lane : lanes_) {
    if (!lane.queue.unanswered() && !lane.writable_watched()) continue;
    if (lane.queue.empty() || !lane.overdue(now, core_.config.io_timeout)) continue;
    lane.fail(make_error(ETIMEDOUT, "memory server {} has not acknowledged pages for {} ms",
                         lane.name(), core_.config.io_timeout.count()));
  }
}

}  // namespace kintsugi
