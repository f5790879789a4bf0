// SPDX-License-Identifier: GPL-2.0-or-later
// The fault thread (F): answers every fault, and fetches what somebody waits for.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/lazy_array.h"
#include "pager/core.h"
#include "pager/lane_port.h"

namespace kintsugi {

// Pages that may be asked for and not yet be here: more faults than that stay in the kernel's queue
// until one is answered. Each takes a thread that waits, or one of KVM's 64 asynchronous faults a
// vCPU.
inline constexpr unsigned kMaxUrgent = 4096;
// Faults that may wait here for room, or for the kernel to be able to install a page.
inline constexpr unsigned kMaxDeferred = 4096;

// Pipelined and never blocking on one server: a fault costs two waits in epoll, one read of the
// userfaultfd, one send, one receive and one UFFDIO_COPY, whatever else is outstanding; bursts
// share them. It waits for nothing that another thread of the pager does, except for room
// when memory is full (deferred faults).
class FaultThread {
 public:
  [[nodiscard]] static Result<std::unique_ptr<FaultThread>> create(PagerCore& core);
  ~FaultThread();
  FaultThread(const FaultThread&) = delete;
  FaultThread& operator=(const FaultThread&) = delete;

  // Until core.stopping.
  void run();

 private:
  struct Slot {
    PageIndex page;
    std::uint32_t use = 0;  // counts how often the slot was taken: the upper half of seq
    ServerId server;        // kMainHost: free
  };
  // One server's urgent lane.
  struct UrgentLane : LanePort {
    LazyArray<std::uint16_t> unsent;  // ring of slots, kMaxUrgent
    std::uint32_t unsent_head = 0;
    std::uint32_t unsent_tail = 0;
    unsigned outstanding = 0;
    bool dirty = false;  // has something to flush
  };

  explicit FaultThread(PagerCore& core) : core_(core) {}
  [[nodiscard]] Result<void> init();

  // Returns what epoll_wait() does.
  int wait(std::span<epoll_event> events);
  void read_faults();
  void handle(const UffdFault& fault);
  void on_missing(PageIndex page, char* host);
  void on_write_protected(PageIndex page, char* host);
  void serve_from_queue(PageIndex page, char* host);
  void fill_zero(PageIndex page, char* host);
  void ask(PageIndex page, ServerId server);
  void wish_for_chunk(PageIndex page);
  void defer(PageIndex page);
  void retry_deferred();
  // True when the page is in place (whoever put it there); false: try again later.
  [[nodiscard]] bool install(char* host, const void* content);
  [[nodiscard]] bool install_zero(char* host);
  void wake(char* host);

  void receive(UrgentLane& lane);
  void on_answer(UrgentLane& lane, const wire::FrameHeader& header,
                 std::span<const std::uint8_t> payload);
  void flush_all();
  void flush(UrgentLane& lane);
  void check_links();
  void check_timeouts(std::uint64_t now);
  void free_slot(UrgentLane& lane, std::uint16_t index);
  void push_discard(PageIndex page, ServerId server);
  void release_all();
  void watch(int fd, std::uint32_t events, std::uint32_t tag, bool add);

  PagerCore& core_;
  int epoll_ = -1;
  std::vector<UrgentLane> lanes_;  // [server - 1]
  std::unique_ptr<Slot[]> slots_;
  std::unique_ptr<std::uint16_t[]> free_slots_;
  unsigned free_count_ = 0;
  std::unique_ptr<PageIndex[]> deferred_;
  unsigned deferred_count_ = 0;
  bool uffd_watched_ = true;
  bool more_faults_ = false;  // the last read did not empty the userfaultfd
  bool any_dirty_ = false;
  bool wished_ = false;
  bool released_ = false;
  bool retrying_ = false;     // in retry_deferred()
  std::uint32_t waiter_ = 0;  // thread whose fault is being handled
  std::uint64_t now_ = 0;     // of the current round
  std::uint64_t checked_ns_ = 0;
  std::unique_ptr<char[]> zero_page_;
};

}  // namespace kintsugi
