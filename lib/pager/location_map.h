// SPDX-License-Identifier: GPL-2.0-or-later
// Where each page of a split VM is: P1's "memory location database", in two bytes a page.
#pragma once

#include <atomic>
#include <cassert>
#include <cstdint>
#include <utility>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

class SplitPlan;

enum class PageState : std::uint8_t {
  // Here; or never populated, which reads as zero and whose fault is answered with a zero page.
  kLocal = 0,
  // Planned away, but known to be all zero or never sent: nothing of it is on any server.
  kZero = 1,
  // On server().
  kRemote = 2,
  // Unmapped, its content in the eviction queue, on its way to server().
  kEvicting = 3,
  // Chosen for server(), its content being copied to the queue; still mapped and write-protected,
  // so
  // a write may take it back (kLocal).
  kEvictingWp = 4,
  // Between mapped and unmapped: the evictor is in UFFDIO_MOVE or in the discard. Nobody else may
  // do anything about the page; it takes microseconds.
  kUnmapping = 5,
};

// One page's entry as it was when read.
//
//   bit 15 kUrgentInFlight   the fault thread is fetching the page
//   bit 14 kPrefetchInFlight the prefetch connection is fetching the page
//   bits 6-8 state, bits 0-5 server (1..63; 0 where the state has none), the rest 0
//
// All zero bits are a local page, so a fresh map is all local.
struct PageEntry {
  static constexpr std::uint16_t kUrgentInFlight = 1U << 15;
  static constexpr std::uint16_t kPrefetchInFlight = 1U << 14;
  static constexpr std::uint16_t kFlags = kUrgentInFlight | kPrefetchInFlight;
  static constexpr unsigned kStateShift = 6;
  static constexpr std::uint16_t kServerMask = (1U << kStateShift) - 1;
  static_assert(kMaxServers <= kServerMask);

  std::uint16_t bits = 0;

  static constexpr PageEntry of(PageState state, ServerId server = kMainHost) {
    return PageEntry{
        static_cast<std::uint16_t>(static_cast<unsigned>(state) << kStateShift | server.value)};
  }
  [[nodiscard]] constexpr PageState state() const {
    return static_cast<PageState>((bits & ~kFlags) >> kStateShift);
  }
  [[nodiscard]] constexpr ServerId server() const {
    return ServerId{static_cast<std::uint8_t>(bits & kServerMask)};
  }
  [[nodiscard]] constexpr bool urgent() const { return (bits & kUrgentInFlight) != 0; }
  [[nodiscard]] constexpr bool prefetch() const { return (bits & kPrefetchInFlight) != 0; }
  // Somebody is fetching the page: the evictor must leave it alone.
  [[nodiscard]] constexpr bool in_flight() const { return (bits & kFlags) != 0; }
  // The same place with other flags.
  [[nodiscard]] constexpr PageEntry with(std::uint16_t flags) const {
    return PageEntry{static_cast<std::uint16_t>(bits | flags)};
  }
  [[nodiscard]] constexpr PageEntry without(std::uint16_t flags) const {
    return PageEntry{static_cast<std::uint16_t>(bits & ~flags)};
  }
  constexpr bool operator==(const PageEntry&) const = default;
};

// The outcome of a try_begin_urgent/prefetch.
struct PageClaim {
  // The caller set the flag and has to complete or abandon it.
  bool claimed = false;
  // The entry before: where to get the content from if claimed, why not if not.
  PageEntry seen;

  explicit operator bool() const { return claimed; }
};

// One atomic entry for each page, and all the transitions there are.
//
// F is the fault thread, P the thread of the prefetch connection, E the evictor thread. Each is
// one thread; the evictor also handles the servers' acknowledgments of page-outs.
//
//           complete_urgent (F), complete_prefetch (P), after installing the content
//     +--------------------------+------------------------------------+----------+
//     |                          | (F: from the queue)                |          | (F: zero page)
//     v                          |                                    |          |
//  +-------+                 +---+------+   finish_evict (E)      +---+----+ +---+--+
//  | Local |                 | Evicting +------------------------>| Remote | | Zero |
//  |       |                 |   (s)    |   (server has it)       |  (s)   | |      |
//  +-+-+---+                 +---+----+-+                         +--------+ +------+
//    | | ^ ^                     ^    |     finish_evict_zero (E)                ^
//    | | | |                     |    +------------------------------------------+
//    | | | | cancel_evict (E:    | unmapped (E: the MOVE or the discard is done)
//    | | | |   MOVE refused) +---+-------+
//    | | | +-----------------+ Unmapping |
//    | +-------------------->|    (s)    |
//    |   | try_begin_evict   +-----------+
//    |   | (E: for a MOVE)       ^
//    |   |                       | commit_discard (E: the content is in the queue)
//    |   | cancel_evict_wp   +---+--------+
//    |   +-------------------+ EvictingWp |
//    +---------------------->|    (s)     |
//      try_begin_evict_wp    +------------+
//      (E: to protect)          cancel_evict_wp: F on a write fault, E when it gives up
//
// Beside the state there are two flags, and every fetch is bracketed by one:
//
//   try_begin_urgent   (F)  all but EvictingWp: sets kUrgentInFlight. Allowed while a prefetch is
//   in
//                           flight: a fault does not wait for the bulk connection. Local as well:
//                           see below.
//   complete_urgent    (F)  after the content is installed: Local, flag cleared.
//   abandon_urgent     (F)  nothing was installed: flag cleared, place unchanged.
//   try_begin_prefetch (P, or F when it asks for the rest of a chunk)
//                           Remote with no fetch in flight: sets kPrefetchInFlight.
//   complete_prefetch, abandon_prefetch (P)  likewise.
//
// Install first, complete after: an entry never says Local before the content is there, so the
// evictor never takes a page that is not. The first of two fetches to complete makes the page
// Local; the flag of the other stays set until its answer has come and been dropped. Eviction
// begins only from Local without flags, so no answer asked for before an eviction can be installed
// after it. finish_evict() refuses while the flag is set: once F has begun to take a page back from
// the queue, the server's acknowledgment no longer makes it Remote.
//
// A fault on a Local page is a page never populated, or an event read late. Either is answered with
// UFFDIO_ZEROPAGE (EEXIST: just wake), and F must claim the page for that too: were it only to read
// "Local", E could unmap the page before the zero page goes in, and its content would be lost.
//
// Fault events are read late and more than once, so F must expect any state:
// - EvictingWp: cancel_evict_wp, lift the protection, then as for Local.
// - Unmapping: the page may still be mapped, and installing it (EEXIST) would be undone by the
//   discard. F leaves the event; E wakes the range after unmapped(), and whoever still misses the
//   page faults again. (Or F looks again until E is through.)
//
// What the map does not know: generations. A page taken back and evicted again is Evicting twice,
// so an acknowledgment must name its queue entry, and E calls finish_evict() only for an entry that
// F has not taken back. While finish_evict() says false, the queue keeps the content.
//
// Transitions are atomic with acquire-release order; what a thread wrote before one is seen by
// whoever sees its result. Memory: 2 bytes a page whatever the number of servers, reserved at
// creation and paid for only where an entry differs from Local (1 GiB for 2 TiB all remote).
class LocationMap {
 public:
  // All pages local. Errors: no pages, no address space.
  static Result<LocationMap> create(PageCount pages);

  LocationMap(LocationMap&&) noexcept = default;
  LocationMap& operator=(LocationMap&&) noexcept = default;

  [[nodiscard]] PageCount pages() const { return PageCount{entries_.size()}; }
  // Bytes of the map when every entry has been written.
  [[nodiscard]] Bytes memory_at_rest() const { return Bytes{entries_.bytes()}; }

  // ---- Before the vCPUs run, one thread, no fetch or eviction under way ----

  // The places of a plan: the main host's pages Local, the others Remote. Fails if the plan is for
  // another number of pages.
  [[nodiscard]] Result<void> init_from(const SplitPlan& plan);
  // Pages [first, first + count) are at a server. A range past the end is cut there, here and
  // below.
  void set_remote(PageIndex first, PageCount count, ServerId server);
  // Pages that turned out to be on the main host.
  void set_local(PageIndex first, PageCount count);
  // Pages the source knows to be zero: Remote entries of the range become Zero. Local ones stay: if
  // populated they are already right, if not they read as zero anyway. Returns how many changed.
  PageCount set_zero(PageIndex first, PageCount count);

  // ---- Any thread ----

  [[nodiscard]] PageEntry load(PageIndex page) const {
    return PageEntry{entries_[page.value].load(std::memory_order_acquire)};
  }

  // ---- Fetching ----

  [[nodiscard]] PageClaim try_begin_urgent(PageIndex page);
  // True if this made the page Local; false if it was that already, by a prefetch say. The flag is
  // cleared either way.
  [[nodiscard]] bool complete_urgent(PageIndex page);
  // False if no urgent fetch was in flight.
  bool abandon_urgent(PageIndex page);
  [[nodiscard]] PageClaim try_begin_prefetch(PageIndex page);
  // As complete_urgent().
  [[nodiscard]] bool complete_prefetch(PageIndex page);
  bool abandon_prefetch(PageIndex page);

  // ---- Evicting: false means the entry was not in the state to leave, and is unchanged ----

  // Local, nothing in flight -> Unmapping(server). Before the UFFDIO_MOVE or UFFDIO_PAGEOUT.
  [[nodiscard]] bool try_begin_evict(PageIndex page, ServerId server);
  // Unmapping -> Local. The kernel did not take the page (EBUSY, partial, nothing there).
  [[nodiscard]] bool cancel_evict(PageIndex page);
  // Local, nothing in flight -> EvictingWp(server). Before the write protection.
  [[nodiscard]] bool try_begin_evict_wp(PageIndex page, ServerId server);
  // EvictingWp -> Local. Whoever gets true also lifts the protection and wakes.
  [[nodiscard]] bool cancel_evict_wp(PageIndex page);
  // EvictingWp -> Unmapping: the content is in the queue, the page is to be discarded now. False: a
  // write took it back, and what was copied is stale.
  [[nodiscard]] bool commit_discard(PageIndex page);
  // Unmapping -> Evicting: the page is unmapped and its content in the queue, where F looks for it
  // from now on. Then wake.
  [[nodiscard]] bool unmapped(PageIndex page);
  // Evicting -> Remote: the server has the page. False: F is taking it back, or has.
  [[nodiscard]] bool finish_evict(PageIndex page);
  // Evicting -> Zero: the content proved to be all zero, no server has it. False as above.
  [[nodiscard]] bool finish_evict_zero(PageIndex page);

 private:
  using Entry = std::atomic<std::uint16_t>;
  static_assert(sizeof(Entry) == 2 && Entry::is_always_lock_free);

  explicit LocationMap(LazyArray<Entry> entries) : entries_(std::move(entries)) {}

  template <typename Next>
  bool transition(PageIndex page, const Next& next);
  PageClaim begin_fetch(PageIndex page, bool urgent);
  bool end_fetch(PageIndex page, std::uint16_t flag);
  bool drop_fetch(PageIndex page, std::uint16_t flag);
  bool begin_evict(PageIndex page, PageState state, ServerId server);
  void fill(PageIndex first, PageCount count, PageEntry entry);
  [[nodiscard]] std::uint64_t end_of(PageIndex first, PageCount count) const;

  LazyArray<Entry> entries_;
};

}  // namespace kintsugi
