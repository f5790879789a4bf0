// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/page_out.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <span>

namespace kintsugi {
namespace {

// How often the kernel may answer EAGAIN without progress before a page is left alone.
constexpr int kMoveTries = 64;

constexpr std::uint64_t bits(unsigned from, unsigned count) {
  return count == 0 ? 0 : (~std::uint64_t{0} >> (64 - count)) << from;
}

// The guest may be writing to the page: its write is in the copy, or it faults and cancels it. So
// this is a race on purpose, and volatile keeps the compiler from reading a word twice.
__attribute__((no_sanitize("thread"))) void copy_guest_page(char* to, const char* from) {
  const auto* words = reinterpret_cast<const volatile std::uint64_t*>(from);
  auto* copy = reinterpret_cast<std::uint64_t*>(to);
  for (std::size_t i = 0; i < kPageSize / sizeof(std::uint64_t); i++) copy[i] = words[i];
}

// Calls fn(place, count) for each run of set bits whose pages also lie together in memory.
template <typename Fn>
void for_each_run(const PagerCore& core, PageIndex first, std::uint64_t mask, Fn&& fn) {
  while (mask != 0) {
    const auto from = static_cast<unsigned>(std::countr_zero(mask));
    const auto ones = static_cast<unsigned>(std::countr_one(mask >> from));
    const auto count = static_cast<unsigned>(
        core.regions.contiguous(first + PageCount{from}, PageCount{ones}).value);
    if (count == 0) {  // in no region: not ours to take
      mask &= ~bits(from, 1);
      continue;
    }
    fn(from, count);
    mask &= ~bits(from, count);
  }
}

// Which of up to 64 pages are mapped to nothing at all, neither memory nor swap. All "mapped" when
// /proc/self/pagemap cannot be read.
class Pagemap {
 public:
  Pagemap() : fd_(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) {}
  ~Pagemap() {
    if (fd_ >= 0) close(fd_);
  }
  Pagemap(const Pagemap&) = delete;
  Pagemap& operator=(const Pagemap&) = delete;
  [[nodiscard]] bool ok() const { return fd_ >= 0; }

  [[nodiscard]] std::uint64_t holes(const char* host, unsigned count) const {
    std::array<std::uint64_t, kMaxUnitPages> entries;
    const auto wanted = static_cast<ssize_t>(count * sizeof(std::uint64_t));
    const auto at = static_cast<off_t>(reinterpret_cast<std::uint64_t>(host) / kPageSize *
                                       sizeof(std::uint64_t));
    if (pread(fd_, entries.data(), static_cast<std::size_t>(wanted), at) != wanted) return 0;
    std::uint64_t mask = 0;
    for (unsigned i = 0; i < count; i++) {
      if ((entries[i] & kPresentOrSwapped) == 0) mask |= std::uint64_t{1} << i;
    }
    return mask;
  }

 private:
  static constexpr std::uint64_t kPresentOrSwapped = std::uint64_t{3} << 62;
  const int fd_;
};

// Marks those of the pages that are local and not in flight as leaving, Unmapping; which.
std::uint64_t begin_evict(PagerCore& core, PageIndex first, std::uint64_t want, ServerId server) {
  std::uint64_t begun = 0;
  for (std::uint64_t left = want; left != 0; left &= left - 1) {
    const auto place = static_cast<unsigned>(std::countr_zero(left));
    if (core.map.try_begin_evict(first + PageCount{place}, server)) begun |= bits(place, 1);
  }
  core.begin_taking(std::popcount(begun));
  return begun;
}

// An Unmapping page that the kernel did not give is local again.
void refuse(PagerCore& core, PageIndex page, TakenPages* taken) {
  [[maybe_unused]] const bool local = core.map.cancel_evict(page);
  core.resident.fetch_add(1, std::memory_order_acq_rel);
  taken->refused++;
}

class MovePageOut final : public PageOut {
 public:
  explicit MovePageOut(PagerCore& core) : core_(core) {}

  TakenPages take(Staging::Frame& frame, unsigned index, PageIndex first, std::uint64_t want,
                  ServerId server) override {
    const std::uint64_t begun = begin_evict(core_, first, want, server);
    TakenPages taken;
    for_each_run(core_, first, begun, [&](unsigned from, unsigned count) {
      move_run(frame, index, first, from, count, &taken);
    });
    core_.not_taken(std::popcount(begun & ~taken.staged));
    return taken;
  }

 private:
  void move_run(Staging::Frame& frame, unsigned index, PageIndex first, unsigned from,
                unsigned count, TakenPages* taken) {
    char* host = core_.regions.host(first + PageCount{from});
    const unsigned end = from + count;
    int tries = 0;
    for (unsigned at = from; at < end;) {
      char* source = host + (at - from) * kPageSize;
      const UffdResult result =
          core_.uffd->move(core_.staging->place(index, at), source, (end - at) * kPageSize);
      const unsigned moved =
          result.error == 0 ? end - at : static_cast<unsigned>(result.done_bytes >> kPageShift);
      if (moved > 0) {
        taken->staged |= bits(at, moved);
        frame.staged.store(taken->staged, std::memory_order_release);
        unmapped(first, at, moved);
        at += moved;
        tries = 0;
        continue;
      }
      switch (result.error) {
        case EAGAIN:
          if (++tries < kMoveTries) {
            sched_yield();
            continue;
          }
          break;
        case ENOENT: {
          // Nothing there; ask how far, so that a hole costs one call and not one a page.
          unsigned holes = 1;
          if (pagemap_.ok()) {
            const auto more =
                static_cast<unsigned>(std::countr_one(pagemap_.holes(source, end - at)));
            if (more > holes) holes = more;
          }
          taken->holes |= bits(at, holes);
          unmapped(first, at, holes);
          at += holes;
          continue;
        }
        case EEXIST:
          if (++tries < 2) {
            (void)core_.uffd->discard(core_.staging->place(index, at), kPageSize).error;
            continue;
          }
          break;
        case EBUSY:  // was shared by a fork, which can be mended; or pinned
          if (++tries < 2 && core_.uffd->unshare(source, kPageSize).error == 0) continue;
          break;
        default:
          break;
      }
      refuse(core_, first + PageCount{at}, taken);
      at++;
      tries = 0;
    }
    // Faults that found the pages Unmapping were left to this.
    (void)core_.uffd->wake(host, count * kPageSize).error;
  }

  void unmapped(PageIndex first, unsigned from, unsigned count) {
    for (unsigned i = from; i < from + count; i++) {
      [[maybe_unused]] const bool was_unmapping = core_.map.unmapped(first + PageCount{i});
    }
  }

  PagerCore& core_;
  Pagemap pagemap_;
};

class WriteProtectPageOut final : public PageOut {
 public:
  explicit WriteProtectPageOut(PagerCore& core) : core_(core) {}
  [[nodiscard]] bool ok() const { return pagemap_.ok(); }

  TakenPages take(Staging::Frame& frame, unsigned index, PageIndex first, std::uint64_t want,
                  ServerId server) override {
    std::uint64_t begun = 0;
    for (std::uint64_t left = want; left != 0; left &= left - 1) {
      const auto place = static_cast<unsigned>(std::countr_zero(left));
      if (core_.map.try_begin_evict_wp(first + PageCount{place}, server)) begun |= bits(place, 1);
    }
    core_.begin_taking(std::popcount(begun));
    TakenPages taken;
    for_each_run(core_, first, begun, [&](unsigned from, unsigned count) {
      take_run(frame, index, first, from, count, &taken);
    });
    core_.not_taken(std::popcount(begun & ~taken.staged));
    return taken;
  }

 private:
  void take_run(Staging::Frame& frame, unsigned index, PageIndex first, unsigned from,
                unsigned count, TakenPages* taken) {
    char* host = core_.regions.host(first + PageCount{from});
    // Looked at after the pages were begun: whatever fills a hole from now on is a fault, and takes
    // the page back.
    const std::uint64_t holes = pagemap_.holes(host, count);
    const UffdResult protected_ = core_.uffd->protect(host, count * kPageSize, true);
    if (protected_.error != 0) {
      for (unsigned i = 0; i < count; i++) take_back(first + PageCount{from + i}, host, i, taken);
      return;
    }
    for (unsigned i = 0; i < count; i++) {
      if ((holes >> i & 1) != 0) continue;
      const PageIndex page = first + PageCount{from + i};
      if (core_.map.load(page).state() != PageState::kEvictingWp) continue;  // taken back
      copy_guest_page(core_.staging->place(index, from + i), host + i * kPageSize);
    }
    std::uint64_t committed = 0;
    for (unsigned i = 0; i < count; i++) {
      if (!core_.map.commit_discard(first + PageCount{from + i})) continue;
      if ((holes >> i & 1) != 0) {
        taken->holes |= bits(from + i, 1);
        [[maybe_unused]] const bool gone = core_.map.unmapped(first + PageCount{from + i});
      } else {
        committed |= bits(i, 1);
      }
    }
    if (taken->holes != 0) (void)core_.uffd->wake(host, count * kPageSize).error;
    for (std::uint64_t left = committed; left != 0;) {
      const auto at = static_cast<unsigned>(std::countr_zero(left));
      const auto run = static_cast<unsigned>(std::countr_one(left >> at));
      discard_run(frame, first, from, at, run, host, taken);
      left &= ~bits(at, run);
    }
  }

  void discard_run(Staging::Frame& frame, PageIndex first, unsigned from, unsigned at, unsigned run,
                   char* host, TakenPages* taken) {
    char* start = host + at * kPageSize;
    const UffdResult discarded = core_.uffd->discard(start, run * kPageSize);
    if (discarded.error != 0) {
      for (unsigned i = 0; i < run; i++) refuse(core_, first + PageCount{from + at + i}, taken);
      (void)core_.uffd->protect(start, run * kPageSize, false).error;
      (void)core_.uffd->wake(start, run * kPageSize).error;
      return;
    }
    // Only now: until madvise() returns, another CPU may still read the old page, and must not run
    // beside one that writes to a new one.
    taken->staged |= bits(from + at, run);
    frame.staged.store(taken->staged, std::memory_order_release);
    for (unsigned i = 0; i < run; i++) {
      [[maybe_unused]] const bool gone = core_.map.unmapped(first + PageCount{from + at + i});
    }
    (void)core_.uffd->wake(start, run * kPageSize).error;
  }

  void take_back(PageIndex page, char* host, unsigned i, TakenPages* taken) {
    if (!core_.map.cancel_evict_wp(page)) return;  // F has, and lifts the protection
    core_.resident.fetch_add(1, std::memory_order_acq_rel);
    (void)core_.uffd->protect(host + i * kPageSize, kPageSize, false).error;
    taken->refused++;
  }

  PagerCore& core_;
  Pagemap pagemap_;
};

// UFFDIO_PAGEOUT.
class KernelPageOut final : public PageOut {
 public:
  explicit KernelPageOut(PagerCore& core) : core_(core) {}

  TakenPages take(Staging::Frame& frame, unsigned index, PageIndex first, std::uint64_t want,
                  ServerId server) override {
    const std::uint64_t begun = begin_evict(core_, first, want, server);
    std::array<PageOutRange, kMaxUnitPages> ranges;
    std::size_t count = 0;
    for_each_run(core_, first, begun, [&](unsigned from, unsigned pages) {
      ranges[count++] = {core_.regions.host(first + PageCount{from}),
                         core_.staging->place(index, from), pages * kPageSize};
    });
    const std::span<const PageOutRange> all(ranges.data(), count);
    std::array<PageOutStatus, kMaxUnitPages> status;
    // An error is of the first page not reached, which stays like any that is refused.
    (void)core_.uffd->page_out(all, {status.data(), static_cast<std::size_t>(std::popcount(begun))})
        .error;
    const TakenPages taken = sort(frame, first, begun, status.data());
    core_.not_taken(std::popcount(begun & ~taken.staged));
    // Faults that found the pages Unmapping were left to this.
    for (const PageOutRange& range : all) (void)core_.uffd->wake(range.from, range.bytes).error;
    return taken;
  }

 private:
  TakenPages sort(Staging::Frame& frame, PageIndex first, std::uint64_t begun,
                  const PageOutStatus* status) {
    TakenPages taken;
    std::uint64_t stay = 0;
    for (std::uint64_t left = begun; left != 0; left &= left - 1) {
      const auto place = static_cast<unsigned>(std::countr_zero(left));
      char* host = core_.regions.host(first + PageCount{place});
      switch (*status++) {
        case PageOutStatus::kDone:
          taken.staged |= bits(place, 1);
          continue;
        case PageOutStatus::kZero:
        case PageOutStatus::kHole:
          taken.holes |= bits(place, 1);
          continue;
        case PageOutStatus::kSwapped:
          (void)core_.uffd->unshare(host, kPageSize).error;  // to be taken another time
          break;
        case PageOutStatus::kPoisoned:
          // What is lost must not come back as zeros.
          (void)core_.uffd->poison(host, kPageSize).error;
          break;
        case PageOutStatus::kPinned:
        case PageOutStatus::kBusy:
        case PageOutStatus::kNotReached:
          break;
      }
      stay |= bits(place, 1);
    }
    frame.staged.store(taken.staged, std::memory_order_release);
    for (std::uint64_t left = taken.staged | taken.holes; left != 0; left &= left - 1) {
      [[maybe_unused]] const bool was_unmapping =
          core_.map.unmapped(first + PageCount{static_cast<unsigned>(std::countr_zero(left))});
    }
    for (std::uint64_t left = stay; left != 0; left &= left - 1) {
      refuse(core_, first + PageCount{static_cast<unsigned>(std::countr_zero(left))}, &taken);
    }
    return taken;
  }

  PagerCore& core_;
};

}  // namespace

Result<std::unique_ptr<PageOut>> make_page_out(PagerCore& core) {
  using Made = std::unique_ptr<PageOut>;
  if (core.method == PageOutMethod::kPageout) return Made(std::make_unique<KernelPageOut>(core));
  if (core.method == PageOutMethod::kMove) return Made(std::make_unique<MovePageOut>(core));
  auto method = std::make_unique<WriteProtectPageOut>(core);
  if (!method->ok()) {
    return make_error(errno,
                      "cannot open /proc/self/pagemap, which paging out by write protection "
                      "needs");
  }
  return Made(std::move(method));
}

}  // namespace kintsugi
