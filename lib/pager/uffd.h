// SPDX-License-Identifier: GPL-2.0-or-later
// A thin seam over userfaultfd(2): the ioctls that the pager uses, as a class that tests replace to
// inject what a kernel may answer (EBUSY, EAGAIN, a part done only).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"

namespace kintsugi {

// One fault that a thread waits in.
struct UffdFault {
  std::uint64_t address = 0;  // of the access, not aligned
  bool write = false;
  bool write_protect = false;   // the page is there but protected; else it is missing
  std::uint32_t thread_id = 0;  // who waits, as gettid() says
};

// What an ioctl over a range did: 0 or a positive errno, and the bytes that were done before it.
// EAGAIN with progress means "go on from there".
struct UffdResult {
  int error = 0;
  std::uint64_t done_bytes = 0;
};

// What became of a page that page_out() was asked to take; the kernel's numbers.
enum class PageOutStatus : std::uint8_t {
  kNotReached = 0,
  kDone = 1,      // gone, content in the buffer
  kZero = 2,      // the same, and it is known to be zeros
  kHole = 3,      // there was no page
  kSwapped = 4,   // in swap, where it stays
  kPinned = 5,    // for DMA most likely; stays
  kBusy = 6,      // stays; may work later
  kPoisoned = 7,  // lost to a memory error, perhaps gone
};

// Pages to take and where their content goes.
struct PageOutRange {
  char* from = nullptr;
  char* to = nullptr;
  std::uint64_t bytes = 0;
};

// Addresses and lengths are multiples of 4 KiB. read_faults() belongs to one thread; the others may
// be called from any.
class Uffd {
 public:
  virtual ~Uffd() = default;

  // Readable when read_faults() has something.
  [[nodiscard]] virtual int fd() const = 0;
  // Faults on missing pages of the range are reported from now on; with `write_protect` also writes
  // to pages protected by protect().
  [[nodiscard]] virtual Result<void> register_range(void* at, std::size_t bytes, bool missing,
                                                    bool write_protect) = 0;
  // Threads that wait in the range go on and find zero pages where nothing was installed.
  virtual void unregister_range(void* at, std::size_t bytes) = 0;
  // What has come in, without waiting; 0 when there is none.
  [[nodiscard]] virtual std::size_t read_faults(std::span<UffdFault> out) = 0;

  // Fills missing pages and wakes who waits for them. EEXIST: a page is there.
  [[nodiscard]] virtual UffdResult copy(void* to, const void* from, std::size_t bytes) = 0;
  [[nodiscard]] virtual UffdResult zero(void* to, std::size_t bytes) = 0;
  // Moves private anonymous pages without copying; nothing is mapped at `from` afterwards. EBUSY: a
  // page is pinned, or was shared by a fork. ENOENT: nothing is mapped at `from`.
  [[nodiscard]] virtual UffdResult move(void* to, void* from, std::size_t bytes) = 0;
  // Copies pages out and unmaps them, each at one instant; `status` has room for every page of the
  // ranges, in their order. Pages that stay keep no others from going. An error is for the first
  // page not reached. Needs a kernel with our UFFDIO_PAGEOUT.
  [[nodiscard]] virtual UffdResult page_out(std::span<const PageOutRange> ranges,
                                            std::span<PageOutStatus> status) = 0;
  // UFFDIO_POISON: who touches a missing page gets SIGBUS from now on. EEXIST: something is there.
  [[nodiscard]] virtual UffdResult poison(void* at, std::size_t bytes) = 0;
  // Protects pages that are there against writes, or lifts that and wakes who waits.
  [[nodiscard]] virtual UffdResult protect(void* at, std::size_t bytes, bool on) = 0;
  [[nodiscard]] virtual UffdResult wake(void* at, std::size_t bytes) = 0;
  // MADV_POPULATE_WRITE: makes a page that was shared by a fork this process's own again, content
  // unchanged. (Otherwise only a write does, even when the child is long gone.) Brings in what is
  // in swap. The pages must be mapped.
  [[nodiscard]] virtual UffdResult unshare(void* at, std::size_t bytes) = 0;
  // MADV_DONTNEED. Does not wake anyone.
  [[nodiscard]] virtual UffdResult discard(void* at, std::size_t bytes) = 0;
};

// The kernel's. The error says what the machine's owner can change.
[[nodiscard]] Result<std::unique_ptr<Uffd>> open_uffd();

// Which ways of paging out this kernel has, tried on memory of our own.
struct PageOutSupport {
  // Why not; empty when it works.
  std::string pageout_reason;
  std::string move_reason;
  std::string write_protect_reason;
  // False: MOVE refuses the shared zero page, so a zero page is better installed by a copy.
  bool move_takes_zero_page = false;
};
[[nodiscard]] PageOutSupport probe_page_out(Uffd& uffd);

}  // namespace kintsugi
