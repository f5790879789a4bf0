// SPDX-License-Identifier: GPL-2.0-or-later
// Remote paging of a split VM (P1 4-2): guest memory that is not on this host is fetched from
// memory servers when it is touched, and cold memory goes out before room is short.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "access/history.h"
#include "base/memory_limit.h"
#include "base/result.h"
#include "base/types.h"
#include "handover/record.h"
#include "pager/server_link.h"
#include "pager/uffd.h"
#include "placement/split_plan.h"
#include "wire/protocol.h"
#include "wire/uri.h"

namespace kintsugi {

// How a page leaves this host, content and mapping at one instant.
enum class PageOutMethod : std::uint8_t {
  kAuto = 0,          // the first that the kernel has of kPageout, kMove, kWriteProtect
  kMove = 1,          // UFFDIO_MOVE into the eviction queue (Linux 6.8)
  kWriteProtect = 2,  // write-protect, copy, discard, wake
  kPageout = 3,       // UFFDIO_PAGEOUT (our patches): copied and unmapped by the kernel
};

struct PagerServerConfig {
  wire::Uri uri;
  PageCount capacity;  // pages that the session may hold there
  Epoch epoch;         // the source's; claim() raises it
};

struct ServerEvent {
  ServerId server;
  std::string uri;
  // Lost; lost and back without its pages; back.
  LinkState state = LinkState::kConnected;
  std::string error;  // why it is not connected
};

struct PagerConfig {
  wire::SessionId session{};
  handover::Ticket ticket{};
  std::vector<PagerServerConfig> servers;  // of ServerId 1, 2, ...; the first is the arbiter
  PageCount vm_pages;
  PageCount chunk_pages{16};  // a power of two
  // Pages that this host may spend on the VM's memory, the eviction queue included.
  PageCount limit;
  // Kept free for faults to come: the evictor works until limit - reserve pages are resident. 0:
  // paging_reserve(); tests choose others.
  PageCount reserve;
  PageOutMethod method = PageOutMethod::kAuto;
  AccessHistory* history = nullptr;  // what to evict by; may be null; outlives the pager
  // On a thread of the pager. Must not block, nor call stop() or destroy the pager.
  std::function<void(const ServerEvent&)> on_server_event;

  std::chrono::milliseconds connect_timeout{5000};
  // A server that owes an answer for so long is lost.
  std::chrono::milliseconds io_timeout{5000};
  std::chrono::milliseconds ping_interval{1000};
  std::chrono::milliseconds backoff_min{100};
  std::chrono::milliseconds backoff_max{5000};
  // False: fetch only pages that were touched.
  bool prefetch = true;

  // Tests put their own machine and kernel here.
  std::function<MemoryLimit()> memory_limit = [] { return kintsugi::memory_limit(); };
  std::function<Result<std::unique_ptr<Uffd>>()> open_uffd = &kintsugi::open_uffd;
};

struct PagerServerStats {
  std::string uri;
  bool connected = false;
  bool pages_lost = false;  // it is there, and has not what it acknowledged
  std::string error;        // when not connected
  std::uint64_t capacity_pages = 0;
  std::uint64_t pages = 0;  // of the VM that are there and nowhere else
  std::uint64_t page_ins = 0;
  std::uint64_t page_outs = 0;
  std::uint64_t bytes_in = 0;
  std::uint64_t bytes_out = 0;
  std::uint64_t reconnects = 0;
};

// A page that somebody waits for.
struct PagerWait {
  PageIndex page;
  std::uint64_t ns = 0;         // so far
  std::uint32_t thread_id = 0;  // who touched it first
  ServerId server;              // that it comes from; kMainHost: it waits for room
};

// Read one after the other while pages move: a page on its way may be counted in two places or
// none. Once nothing moves, resident, remote and zero pages add up to vm_pages.
struct PagerStats {
  std::uint64_t vm_pages = 0;
  std::uint64_t limit_pages = 0;
  std::uint64_t resident_pages = 0;  // here, or never populated
  std::uint64_t remote_pages = 0;
  std::uint64_t zero_pages = 0;
  std::uint64_t queued_pages = 0;  // in the eviction queue
  std::uint64_t faults = 0;
  std::uint64_t page_ins = 0;       // fetched because they were touched
  std::uint64_t prefetched = 0;     // fetched with their chunk
  std::uint64_t prefetch_hits = 0;  // faults that found their page on the way already
  std::uint64_t zero_fills = 0;
  std::uint64_t queue_hits = 0;     // faults served from the eviction queue
  std::uint64_t write_cancels = 0;  // page-outs cancelled by a fault on the page
  std::uint64_t refaults = 0;    // page-ins of chunks that were evicted not long before (estimate)
  std::uint64_t hard_waits = 0;  // faults that had to wait for an eviction
  std::uint64_t install_retries = 0;    // the kernel could not install a page at once
  std::uint64_t page_outs = 0;          // sent to a server
  std::uint64_t page_outs_zero = 0;     // found to be zero or never populated: not sent
  std::uint64_t page_outs_refused = 0;  // the kernel refused (pinned, shared after fork): stay
  std::uint64_t discards = 0;           // stale copies that servers were told to forget
  // From reading a fault to waking the faulter, of all that had to wait: for a server, for a
  // prefetch under way, or for room.
  std::uint64_t page_in_p50_ns = 0;
  std::uint64_t page_in_p99_ns = 0;
  std::uint64_t page_in_max_ns = 0;
  std::uint64_t page_out_p50_ns = 0;  // from unmapping to the server's answer
  std::uint64_t page_out_p99_ns = 0;
  PageOutMethod method = PageOutMethod::kAuto;
  std::string method_reason;
  std::vector<PagerServerStats> servers;
  unsigned servers_lost = 0;
  std::uint64_t waiting = 0;  // pages that somebody waits for
};

struct PagerCore;
struct Region;

// One VM's pager.
//
// Order of use: create, connect, add_region (all regions), apply_zero, claim, start, commit; then
// guest memory is paged until stop(). Destroying it stops it. These calls belong to one thread;
// stats(), waits(), cancel() and release() are for any. From claim() to commit() the VM may be
// stopped: what takes time that grows with the VM or the number of servers is done before.
//
// Threads: the fault thread (F), the prefetch thread (P), the evictor (E), and a keeper for each
// server. None ever takes a lock that the faulting threads could hold, and none touches guest
// memory, but for the write-protect method's copy on E.
//
// The kernel must not have the VM's memory otherwise engaged: no VFIO or other long-term pins, no
// balloon, no MADV_DONTNEED by others (what is discarded behind the pager's back reads as zero if
// it was local and comes back as it was if it was remote).
class Pager {
 public:
  // Errors: figures that do not add up, no userfaultfd, no memory.
  [[nodiscard]] static Result<std::unique_ptr<Pager>> create(PagerConfig config,
                                                             const SplitPlan& plan);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  // Makes the connections to all servers, all at once, and looks whether the sessions are there.
  // Blocks for the connect time-out and the io time-out at most. Errors name the server.
  [[nodiscard]] Result<void> connect();
  // Pages [first, first + pages) are mapped at `host`: private anonymous memory, aligned to 4 KiB.
  // New transparent huge pages are off for it, but for what the main host keeps whole of 2 MiB, and
  // there until start(). What was in it is discarded where pages are planned away; from here to
  // start() nothing but the migration stream may write to it, or discard_remote() must follow.
  // Errors name what to change.
  [[nodiscard]] Result<void> add_region(void* host, PageIndex first, PageCount pages);
  // The source's notes about pages that are planned away: `zero`, all zero and not on any server;
  // else (they became non-zero later) on the server of the plan again.
  void apply_zero(PageIndex first, PageCount pages, bool zero);
  // Something has written to memory that is planned away (a reset, say): frees it again. A call to
  // the kernel for each run of the plan.
  [[nodiscard]] Result<void> discard_remote();
  // Takes the session over on every server: from here on the source can no longer write there.
  // Fails with the first server that refuses or cannot be reached, or that holds less than the plan
  // says.
  [[nodiscard]] Result<void> claim();
  // From here on guest memory may be touched, and is fetched; nothing is paged out before commit().
  [[nodiscard]] Result<void> start();
  // Asks the arbiter to commit the handover until it answers, however long that takes, or until
  // cancel(). When it succeeds this host owns the VM. Errors: ESTALE, EIDRM: it was refused, the VM
  // must never run here; ECANCELED: not known.
  [[nodiscard]] Result<void> commit();
  // Whether this side may say that it will never run the VM: not while a Commit is unanswered.
  [[nodiscard]] bool give_up();
  // Ends connect(), claim() and commit() with ECANCELED.
  void cancel();

  [[nodiscard]] PagerStats stats() const;
  // What has been waited for longest first, `max` pages at most.
  [[nodiscard]] std::vector<PagerWait> waits(std::size_t max) const;
  [[nodiscard]] PageOutMethod method() const;
  // Whether the VM's memory is where it is meant to be: nothing resident beyond limit - reserve,
  // nothing in the eviction queue. For tests and benchmarks.
  [[nodiscard]] bool settled() const;

  // The VM is being thrown away: every fault that waits for a server, and every one to come, is
  // answered with a zero page, so that threads that are blocked in one can end.
  void release();
  // Ends the threads and gives the memory back to the kernel's own paging: what is remote is lost,
  // so whoever still waits in a fault goes on with zeroes. `drop_sessions` frees everything on the
  // servers, best effort.
  void stop(bool drop_sessions);

 private:
  explicit Pager(std::unique_ptr<PagerCore> core);
  struct Threads;

  void load_into_huge_pages(const Region& region);
  [[nodiscard]] Result<void> discard_remote(const Region& region);
  [[nodiscard]] Result<void> check_claimed(std::size_t server, const wire::SessionReply& figures);

  std::unique_ptr<PagerCore> core_;
  std::unique_ptr<Threads> threads_;
  bool started_ = false;
};

}  // namespace kintsugi
