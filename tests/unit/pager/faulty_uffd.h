// SPDX-License-Identifier: GPL-2.0-or-later
// The kernel's userfaultfd with hooks before each call: answers that a kernel seldom gives, and
// places where a test can stop one thread of the pager and let another go on.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "base/types.h"
#include "pager/uffd.h"

namespace kintsugi::test {

// Set before the pager starts; called on the pager's threads. A hook that returns a result is taken
// at its word and the kernel is not asked; a hook may also shorten `bytes`: then the call is made
// for so much, and EAGAIN is answered after it, as a kernel does.
struct UffdHooks {
  using Range = std::function<std::optional<UffdResult>(void* at, std::size_t* bytes)>;
  Range copy, zero, move, protect, discard;  // `at`: what is filled; for move, the source
  std::function<void(void*at, std::size_t bytes)> after_move, after_protect, after_copy;
  // For each page of a page_out(); what it returns is the page's status.
  std::function<std::optional<PageOutStatus>(char* at)> page_out;
  std::function<void(std::span<const PageOutRange> ranges)> after_page_out;
};

// Has page_out() on every kernel that has UFFDIO_MOVE: a page is moved away and copied from there.
class FaultyUffd final : public Uffd {
 public:
  FaultyUffd(std::unique_ptr<Uffd> kernel, std::shared_ptr<UffdHooks> hooks)
      : kernel_(std::move(kernel)), hooks_(std::move(hooks)) {}
  ~FaultyUffd() override {
    if (limbo_ != nullptr) munmap(limbo_, kPageSize);
  }
  FaultyUffd(const FaultyUffd&) = delete;
  FaultyUffd& operator=(const FaultyUffd&) = delete;

  // For PagerConfig::open_uffd.
  static std::function<Result<std::unique_ptr<Uffd>>()> opener(
      const std::shared_ptr<UffdHooks>& hooks) {
    return [hooks]() -> Result<std::unique_ptr<Uffd>> {
      Result<std::unique_ptr<Uffd>> kernel = open_uffd();
      if (!kernel) return kernel;
      return std::unique_ptr<Uffd>(std::make_unique<FaultyUffd>(std::move(*kernel), hooks));
    };
  }

  int fd() const override { return kernel_->fd(); }
  Result<void> register_range(void* at, std::size_t bytes, bool missing, bool wp) override {
    return kernel_->register_range(at, bytes, missing, wp);
  }
  void unregister_range(void* at, std::size_t bytes) override {
    kernel_->unregister_range(at, bytes);
  }
  std::size_t read_faults(std::span<UffdFault> out) override { return kernel_->read_faults(out); }

  UffdResult copy(void* to, const void* from, std::size_t bytes) override {
    const UffdResult result =
        hooked(hooks_->copy, to, bytes, [&](std::size_t n) { return kernel_->copy(to, from, n); });
    if (hooks_->after_copy) hooks_->after_copy(to, bytes);
    return result;
  }
  UffdResult zero(void* to, std::size_t bytes) override {
    return hooked(hooks_->zero, to, bytes, [&](std::size_t n) { return kernel_->zero(to, n); });
  }
  UffdResult move(void* to, void* from, std::size_t bytes) override {
    const UffdResult result = hooked(hooks_->move, from, bytes,
                                     [&](std::size_t n) { return kernel_->move(to, from, n); });
    if (hooks_->after_move) hooks_->after_move(from, bytes);
    return result;
  }
  UffdResult page_out(std::span<const PageOutRange> ranges,
                      std::span<PageOutStatus> status) override {
    std::size_t done = 0;
    for (const PageOutRange& range : ranges) {
      for (std::uint64_t at = 0; at < range.bytes; at += kPageSize) {
        std::optional<PageOutStatus> instead;
        if (hooks_->page_out) instead = hooks_->page_out(range.from + at);
        status[done++] = instead ? *instead : page_out_one(range.from + at, range.to + at);
      }
    }
    if (hooks_->after_page_out) hooks_->after_page_out(ranges);
    return {0, done * kPageSize};
  }
  UffdResult poison(void* at, std::size_t bytes) override { return kernel_->poison(at, bytes); }
  UffdResult protect(void* at, std::size_t bytes, bool on) override {
    if (!on) return kernel_->protect(at, bytes, on);
    const UffdResult result = hooked(hooks_->protect, at, bytes,
                                     [&](std::size_t n) { return kernel_->protect(at, n, on); });
    if (hooks_->after_protect) hooks_->after_protect(at, bytes);
    return result;
  }
  UffdResult wake(void* at, std::size_t bytes) override { return kernel_->wake(at, bytes); }
  UffdResult unshare(void* at, std::size_t bytes) override { return kernel_->unshare(at, bytes); }
  UffdResult discard(void* at, std::size_t bytes) override {
    return hooked(hooks_->discard, at, bytes,
                  [&](std::size_t n) { return kernel_->discard(at, n); });
  }

 private:
  PageOutStatus page_out_one(char* from, char* to) {
    const PageOutRange range{from, to, kPageSize};
    PageOutStatus status{};
    const UffdResult result = kernel_->page_out({&range, 1}, {&status, 1});
    if (result.error != EINVAL) return status;
    if (limbo_ == nullptr) {
      void* at =
          mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (at == MAP_FAILED || !kernel_->register_range(at, kPageSize, true, false)) std::abort();
      limbo_ = static_cast<char*>(at);
    }
    UffdResult moved = kernel_->move(limbo_, from, kPageSize);
    if (moved.error == EBUSY && kernel_->unshare(from, kPageSize).error == 0) {
      moved = kernel_->move(limbo_, from, kPageSize);  // it was the shared zero page, perhaps
    }
    switch (moved.error) {
      case 0:
        break;
      case ENOENT:
        return PageOutStatus::kHole;
      case EBUSY:
        return PageOutStatus::kPinned;
      default:
        return PageOutStatus::kBusy;
    }
    std::memcpy(to, limbo_, kPageSize);
    madvise(limbo_, kPageSize, MADV_DONTNEED);
    const bool zero = std::all_of(to, to + kPageSize, [](char c) { return c == 0; });
    return zero ? PageOutStatus::kZero : PageOutStatus::kDone;
  }

  template <typename Call>
  UffdResult hooked(const UffdHooks::Range& hook, void* at, std::size_t bytes, const Call& call) {
    std::size_t some = bytes;
    if (hook) {
      if (std::optional<UffdResult> instead = hook(at, &some)) return *instead;
    }
    const UffdResult result = call(some);
    if (result.error == 0 && some < bytes) return {EAGAIN, some};
    return result;
  }

  std::unique_ptr<Uffd> kernel_;
  char* limbo_ = nullptr;  // evictor's only
  std::shared_ptr<UffdHooks> hooks_;
};

}  // namespace kintsugi::test
