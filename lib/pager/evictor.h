// SPDX-License-Identifier: GPL-2.0-or-later
// The evictor (E): makes room before it is short, and tells servers what to keep and what to
// forget.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "pager/core.h"
#include "pager/lane_port.h"
#include "pager/out_queue.h"
#include "pager/page_out.h"
#include "pager/victims.h"

namespace kintsugi {

// Never blocks on a server: pages wait in the queue, bounded by the staging area, and what a lost
// server has not acknowledged is sent again when it is back.
class Evictor {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Evictor>> create(PagerCore& core);
  ~Evictor();
  Evictor(const Evictor&) = delete;
  Evictor& operator=(const Evictor&) = delete;

  // Until core.stopping.
  void run();

 private:
  struct OutLane : LanePort {
    OutQueue queue;
    std::uint64_t used = 0;  // pages stored there, or on their way
    unsigned frames = 0;     // of the staging area, on their way there
  };
  enum class Evicted { kSome, kNothingLeft, kBlocked };

  explicit Evictor(PagerCore& core) : core_(core), victims_(core) {}
  [[nodiscard]] Result<void> init();

  void wait(bool more_now);
  void linger();
  [[nodiscard]] bool short_of_room();
  // One unit.
  Evicted evict();
  [[nodiscard]] std::optional<std::uint64_t> next_unit();
  [[nodiscard]] std::uint64_t local_pages(std::uint64_t unit) const;
  [[nodiscard]] std::optional<ServerId> choose_server(std::uint64_t unit, unsigned pages) const;
  [[nodiscard]] bool has_room(ServerId server, unsigned pages) const;

  // Moves what F and P have fetched into the servers' queues; false when some had to stay.
  bool drain_discards();
  [[nodiscard]] bool drain(SpscRing<DiscardRun>& ring, std::optional<DiscardRun>* held);
  void queue_puts();
  void settle(unsigned frame_index, std::uint64_t places);
  void settle_zero(unsigned frame_index);
  void give_back_if_settled(unsigned frame_index);
  void settle_held();
  void forget_stale_zeroes();

  void send(OutLane& lane);
  void receive(OutLane& lane);
  void on_answer(OutLane& lane, const wire::FrameHeader& header);
  void check_links();
  void check_timeouts(std::uint64_t now);
  void watch(int fd, std::uint32_t events, std::uint32_t tag, bool add);
  [[nodiscard]] OutLane& lane_of(ServerId server) { return lanes_[server.value - 1U]; }
  [[nodiscard]] const OutLane& lane_of(ServerId server) const { return lanes_[server.value - 1U]; }

  PagerCore& core_;
  VictimPicker victims_;
  std::unique_ptr<PageOut> method_;
  int epoll_ = -1;
  std::vector<OutLane> lanes_;  // [server - 1]
  // Frames whose pages are taken and not yet in a server's queue, and those with pages that F has
  // its hand on.
  std::vector<unsigned> to_put_;
  std::vector<unsigned> held_;
  std::optional<DiscardRun> held_fault_;  // popped, but its server's queue was full
  std::optional<DiscardRun> held_prefetch_;
  std::optional<ChunkIndex> chunk_;  // being evicted
  unsigned next_unit_ = 0;           // in chunk_
  std::uint64_t put_version_ = 0;
  bool evicting_ = false;
  std::uint64_t linger_until_ns_ = 0;  // discards are being gathered until then
  std::uint64_t now_ = 0;
  std::uint64_t checked_ns_ = 0;
};

}  // namespace kintsugi
