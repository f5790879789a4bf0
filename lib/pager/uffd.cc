// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/uffd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <system_error>

#include "base/types.h"

// Headers older than Linux 6.8 lack these.
#ifndef UFFDIO_MOVE
#define UFFDIO_MOVE_MODE_DONTWAKE ((__u64)1 << 0)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES ((__u64)1 << 1)
struct uffdio_move {
  __u64 dst;
  __u64 src;
  __u64 len;
  __u64 mode;
  __s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif
// Linux 6.6.
#ifndef UFFDIO_POISON
struct uffdio_poison {
  struct uffdio_range range;
  __u64 mode;
  __s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif
// Of linux-patches/. Its ranges are laid out as PageOutRange.
static_assert(sizeof(kintsugi::PageOutRange) == 24);
#ifndef UFFDIO_PAGEOUT
struct uffdio_pageout {
  __u64 vec;
  __u64 status;
  __u64 start;
  __u64 mode;
  __u32 nr;
  __u32 reserved;
  __u64 taken;
  __s64 done;
};
#define UFFDIO_PAGEOUT _IOWR(UFFDIO, 0x3E, struct uffdio_pageout)
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace kintsugi {
namespace {

std::string errno_text(int code) { return std::generic_category().message(code); }

std::uint64_t number(const void* at) { return reinterpret_cast<std::uint64_t>(at); }

// The kernel reports progress as bytes, or the error again.
UffdResult outcome(int rc, std::int64_t progress) {
  UffdResult result;
  result.error = rc == 0 ? 0 : errno;
  result.done_bytes = progress > 0 ? static_cast<std::uint64_t>(progress) : 0;
  return result;
}

class KernelUffd final : public Uffd {
 public:
  explicit KernelUffd(int fd) : fd_(fd) {}
  ~KernelUffd() override { close(fd_); }
  KernelUffd(const KernelUffd&) = delete;
  KernelUffd& operator=(const KernelUffd&) = delete;

  [[nodiscard]] int fd() const override { return fd_; }

  [[nodiscard]] Result<void> register_range(void* at, std::size_t bytes, bool missing,
                                            bool write_protect) override {
    uffdio_register request{};
    request.range = {number(at), bytes};
    if (missing) request.mode |= UFFDIO_REGISTER_MODE_MISSING;
    if (write_protect) request.mode |= UFFDIO_REGISTER_MODE_WP;
    if (ioctl(fd_, UFFDIO_REGISTER, &request) == 0) return {};
    const int code = errno;
    return make_error(code, "cannot register {} MiB of memory at {} with userfaultfd{}: {}",
                      bytes >> 20, at, write_protect ? " for write protection" : "",
                      errno_text(code));
  }

  void unregister_range(void* at, std::size_t bytes) override {
    uffdio_range range{number(at), bytes};
    ioctl(fd_, UFFDIO_UNREGISTER, &range);
  }

  [[nodiscard]] std::size_t read_faults(std::span<UffdFault> out) override {
    std::array<uffd_msg, 16> messages;
    const std::size_t room = std::min(out.size(), messages.size());
    const ssize_t got = read(fd_, messages.data(), room * sizeof(uffd_msg));
    if (got <= 0) return 0;
    std::size_t faults = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(got) / sizeof(uffd_msg); i++) {
      if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
      const auto& fault = messages[i].arg.pagefault;
      out[faults++] = UffdFault{fault.address, (fault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                                (fault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0, fault.feat.ptid};
    }
    return faults;
  }

  [[nodiscard]] UffdResult copy(void* to, const void* from, std::size_t bytes) override {
    uffdio_copy request{};
    request.dst = number(to);
    request.src = number(from);
    request.len = bytes;
    const int rc = ioctl(fd_, UFFDIO_COPY, &request);
    return outcome(rc, request.copy);
  }

  [[nodiscard]] UffdResult zero(void* to, std::size_t bytes) override {
    uffdio_zeropage request{};
    request.range = {number(to), bytes};
    const int rc = ioctl(fd_, UFFDIO_ZEROPAGE, &request);
    return outcome(rc, request.zeropage);
  }

  [[nodiscard]] UffdResult move(void* to, void* from, std::size_t bytes) override {
    uffdio_move request{};
    request.dst = number(to);
    request.src = number(from);
    request.len = bytes;
    request.mode = UFFDIO_MOVE_MODE_DONTWAKE;
    const int rc = ioctl(fd_, UFFDIO_MOVE, &request);
    return outcome(rc, request.move);
  }

  [[nodiscard]] UffdResult page_out(std::span<const PageOutRange> ranges,
                                    std::span<PageOutStatus> status) override {
    std::ranges::fill(status, PageOutStatus::kNotReached);
    uffdio_pageout request{};
    request.vec = number(ranges.data());
    request.nr = static_cast<__u32>(ranges.size());
    request.status = number(status.data());
    for (;;) {
      const int rc = ioctl(fd_, UFFDIO_PAGEOUT, &request);
      const UffdResult result = outcome(rc, request.done);
      request.start += result.done_bytes;  // a count of pages, here and above
      if (result.error != EAGAIN || result.done_bytes == 0) {
        return {result.error, request.start * kPageSize};
      }
    }
  }

  [[nodiscard]] UffdResult poison(void* at, std::size_t bytes) override {
    uffdio_poison request{};
    request.range = {number(at), bytes};
    const int rc = ioctl(fd_, UFFDIO_POISON, &request);
    return outcome(rc, request.updated);
  }

  [[nodiscard]] UffdResult protect(void* at, std::size_t bytes, bool on) override {
    uffdio_writeprotect request{};
    request.range = {number(at), bytes};
    request.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
    const int rc = ioctl(fd_, UFFDIO_WRITEPROTECT, &request);
    return outcome(rc, rc == 0 ? static_cast<std::int64_t>(bytes) : 0);
  }

  [[nodiscard]] UffdResult wake(void* at, std::size_t bytes) override {
    uffdio_range range{number(at), bytes};
    const int rc = ioctl(fd_, UFFDIO_WAKE, &range);
    return outcome(rc, rc == 0 ? static_cast<std::int64_t>(bytes) : 0);
  }

  [[nodiscard]] UffdResult unshare(void* at, std::size_t bytes) override {
    const int rc = madvise(at, bytes, MADV_POPULATE_WRITE);
    return outcome(rc, rc == 0 ? static_cast<std::int64_t>(bytes) : 0);
  }

  [[nodiscard]] UffdResult discard(void* at, std::size_t bytes) override {
    const int rc = madvise(at, bytes, MADV_DONTNEED);
    return outcome(rc, rc == 0 ? static_cast<std::int64_t>(bytes) : 0);
  }

 private:
  const int fd_;
};

// Two pages of private anonymous memory that a probe may play with.
class ProbeMemory {
 public:
  explicit ProbeMemory(Uffd& uffd) : uffd_(uffd) {
    void* at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return;
    at_ = static_cast<char*>(at);
    madvise(at_, kBytes, MADV_NOHUGEPAGE);
  }
  ~ProbeMemory() {
    if (at_ == nullptr) return;
    uffd_.unregister_range(at_, kBytes);
    munmap(at_, kBytes);
  }
  ProbeMemory(const ProbeMemory&) = delete;
  ProbeMemory& operator=(const ProbeMemory&) = delete;
  [[nodiscard]] char* page(unsigned i) const { return at_ + i * kPageSize; }
  [[nodiscard]] bool ok() const { return at_ != nullptr; }
  static constexpr std::size_t kBytes = 2 * kPageSize;

 private:
  Uffd& uffd_;
  char* at_ = nullptr;
};

}  // namespace

Result<std::unique_ptr<Uffd>> open_uffd() {
  int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) {
    const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
      fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
      close(device);
    }
  }
  if (fd < 0) {
    const int code = errno;
    return make_error(code,
                      "userfaultfd is not available: {}; remote memory needs a kernel with "
                      "CONFIG_USERFAULTFD and one of: read and write permission on "
                      "/dev/userfaultfd, CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1",
                      errno_text(code));
  }
  auto uffd = std::make_unique<KernelUffd>(fd);
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_THREAD_ID;
  if (ioctl(fd, UFFDIO_API, &api) < 0) {
    return make_error(errno, "userfaultfd of this kernel speaks another version: {}",
                      errno_text(errno));
  }
  return std::unique_ptr<Uffd>(std::move(uffd));
}

PageOutSupport probe_page_out(Uffd& uffd) {
  PageOutSupport support;
  const auto with_memory = [&](bool write_protect, auto&& probe) -> std::string {
    ProbeMemory memory(uffd);
    if (!memory.ok()) return "no memory for a probe";
    const Result<void> registered =
        uffd.register_range(memory.page(0), ProbeMemory::kBytes, true, write_protect);
    if (!registered) return registered.error().message;
    const UffdResult filled = uffd.zero(memory.page(0), kPageSize);
    if (filled.error != 0) return "UFFDIO_ZEROPAGE fails: " + errno_text(filled.error);
    return probe(memory);
  };
  support.pageout_reason = with_memory(false, [&](ProbeMemory& memory) -> std::string {
    alignas(kPageSize) std::array<char, kPageSize> buffer;
    const PageOutRange range{memory.page(0), buffer.data(), kPageSize};
    PageOutStatus status{};
    const UffdResult taken = uffd.page_out({&range, 1}, {&status, 1});
    if (taken.error == 0 && status == PageOutStatus::kZero) return "";
    return fmt::format("UFFDIO_PAGEOUT fails: {}; it needs a kernel with Kintsugi's patches",
                       errno_text(taken.error));
  });
  support.move_reason = with_memory(false, [&](ProbeMemory& memory) -> std::string {
    UffdResult moved = uffd.move(memory.page(1), memory.page(0), kPageSize);
    support.move_takes_zero_page = moved.error == 0;
    if (!support.move_takes_zero_page) {
      memory.page(0)[0] = 1;  // a page of its own in place of the shared zero page
      moved = uffd.move(memory.page(1), memory.page(0), kPageSize);
    }
    if (moved.error == 0) return "";
    return fmt::format(
        "UFFDIO_MOVE of private anonymous memory fails: {}; it needs Linux 6.8 or newer",
        errno_text(moved.error));
  });
  support.write_protect_reason = with_memory(true, [&](ProbeMemory& memory) -> std::string {
    const UffdResult protected_ = uffd.protect(memory.page(0), kPageSize, true);
    if (protected_.error == 0) return "";
    return fmt::format("UFFDIO_WRITEPROTECT of private anonymous memory fails: {}",
                       errno_text(protected_.error));
  });
  return support;
}

}  // namespace kintsugi
