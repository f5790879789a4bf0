// SPDX-License-Identifier: GPL-2.0-or-later
// The eviction queue's memory: what has left the guest and is not yet acknowledged by a server.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "base/types.h"
#include "pager/pager.h"

namespace kintsugi {

inline constexpr unsigned kMaxUnitPages = 64;

// A frame holds pages of one unit: an aligned run of unit_pages() pages (a chunk, or 64 pages of a
// larger one), each at its own place. There is at most one frame for a unit at any time, and it is
// given back only when every page in it is settled, so "page" alone names its place in the queue,
// and an acknowledgment can never be for an earlier eviction of the same page (the generation that
// the location map does not have).
//
// Threads: frames belong to E. F only calls find(), and only while it holds kUrgentInFlight on a
// page it saw Evicting: the page cannot be settled meanwhile, so the frame stays.
class Staging {
 public:
  struct Frame {
    std::uint64_t unit = 0;  // E's; F has units_
    // Bit i: the content of the unit's page i is here, and the guest's mapping of it is gone.
    std::atomic<std::uint64_t> staged{0};

    // E's own. Bits are places again.
    ServerId server;
    std::uint64_t sending = 0;  // in a Put that is not acknowledged yet
    std::uint64_t sent = 0;     // acknowledged, but a fault has its hand on it
    std::uint64_t zero = 0;     // all zero or never populated, but a fault has its hand on it
    std::uint64_t started_ns = 0;

    [[nodiscard]] bool settled() const { return (sending | sent | zero) == 0; }
  };

  // `method` decides whether the memory of a frame that was given back is kept for the next: all of
  // it, as huge pages where there are any, or none, since UFFDIO_MOVE wants nothing in its way.
  [[nodiscard]] static Result<std::unique_ptr<Staging>> create(unsigned unit_pages, unsigned frames,
                                                               PageOutMethod method);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  [[nodiscard]] unsigned unit_pages() const { return unit_pages_; }
  [[nodiscard]] unsigned frames() const { return frame_count_; }
  [[nodiscard]] bool keeps_memory() const { return keeps_memory_; }
  [[nodiscard]] char* memory() const { return memory_; }
  [[nodiscard]] std::size_t bytes() const { return frame_count_ * frame_bytes(); }
  [[nodiscard]] std::size_t frame_bytes() const { return unit_pages_ * kPageSize; }

  [[nodiscard]] Frame& frame(unsigned i) { return frames_[i]; }
  [[nodiscard]] char* place(unsigned frame, unsigned place) const {
    return memory_ + frame * frame_bytes() + place * kPageSize;
  }

  // F: the staged content of the page; null when it is not there (yet).
  [[nodiscard]] const char* find(PageIndex page) const {
    const std::uint64_t unit = page.value / unit_pages_;
    const auto at = static_cast<unsigned>(page.value % unit_pages_);
    for (unsigned i = 0; i < frame_count_; i++) {
      if (units_[i].load(std::memory_order_acquire) != unit) continue;
      const std::uint64_t staged = frames_[i].staged.load(std::memory_order_acquire);
      return (staged >> at & 1) != 0 ? place(i, at) : nullptr;
    }
    return nullptr;
  }
  // E: whether the unit has a frame.
  [[nodiscard]] bool busy(std::uint64_t unit) const {
    for (unsigned i = 0; i < frame_count_; i++) {
      if (units_[i].load(std::memory_order_relaxed) == unit) return true;
    }
    return false;
  }
  // E: a frame for the unit; null when all are in use.
  [[nodiscard]] Frame* take(std::uint64_t unit, unsigned* index);
  // E: the frame is settled, and its memory has been discarded unless it is kept.
  void give_back(unsigned index);
  [[nodiscard]] unsigned in_use() const { return frame_count_ - free_count_; }

 private:
  static constexpr std::uint64_t kNoUnit = UINT64_MAX;

  Staging(unsigned unit_pages, unsigned frames, bool keeps_memory, char* memory);

  const unsigned unit_pages_;
  const unsigned frame_count_;
  const bool keeps_memory_;
  char* const memory_;
  std::unique_ptr<Frame[]> frames_;
  // Which unit each frame is for, kNoUnit when free: close together, for find() looks at them all.
  std::unique_ptr<std::atomic<std::uint64_t>[]> units_;
  std::unique_ptr<unsigned[]> free_;
  unsigned free_count_;
};

}  // namespace kintsugi
