// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/staging.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace kintsugi {

Result<std::unique_ptr<Staging>> Staging::create(unsigned unit_pages, unsigned frames,
                                                 PageOutMethod method) {
  const bool keeps_memory = method != PageOutMethod::kMove;
  const std::size_t bytes = std::size_t{frames} * unit_pages * kPageSize;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    return make_error(errno, "cannot reserve {} MiB for the eviction queue: {}", bytes >> 20,
                      std::strerror(errno));
  }
  madvise(at, bytes, keeps_memory ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  madvise(at, bytes, MADV_DONTFORK);
  return std::unique_ptr<Staging>(
      new Staging(unit_pages, frames, keeps_memory, static_cast<char*>(at)));
}

Staging::Staging(unsigned unit_pages, unsigned frames, bool keeps_memory, char* memory)
    : unit_pages_(unit_pages),
      frame_count_(frames),
      keeps_memory_(keeps_memory),
      memory_(memory),
      frames_(std::make_unique<Frame[]>(frames)),
      units_(std::make_unique<std::atomic<std::uint64_t>[]>(frames)),
      free_(std::make_unique<unsigned[]>(frames)),
      free_count_(frames) {
  for (unsigned i = 0; i < frames; i++) {
    free_[i] = frames - 1 - i;
    units_[i].store(kNoUnit, std::memory_order_relaxed);
  }
}

Staging::~Staging() { munmap(memory_, bytes()); }

Staging::Frame* Staging::take(std::uint64_t unit, unsigned* index) {
  if (free_count_ == 0) return nullptr;
  *index = free_[--free_count_];
  Frame& frame = frames_[*index];
  frame.staged.store(0, std::memory_order_relaxed);
  frame.sending = frame.sent = frame.zero = 0;
  frame.unit = unit;
  units_[*index].store(unit, std::memory_order_release);
  return &frame;
}

void Staging::give_back(unsigned index) {
  Frame& frame = frames_[index];
  units_[index].store(kNoUnit, std::memory_order_release);
  frame.staged.store(0, std::memory_order_release);
  free_[free_count_++] = index;
}

}  // namespace kintsugi
