// SPDX-License-Identifier: GPL-2.0-or-later
// Which pages did a guest write to? KVM_GET_ACCESS_BITS against what a stock kernel has.
//
// A guest of a few bytes writes to 1 %, 10 % and 100 % of its pages, chosen at random, in the order
// of their addresses, which suits the rivals; then each method fills a bitmap and begins a new
// period. Pages of the host are small ones and present. A bitmap that is not exactly what the guest
// wrote is an error. Two figures each: what the scan takes; and with what the tracking adds to the
// guest's run, as faults, over that of a guest which is not tracked.

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <memory>
#include <random>

#include "bench.h"
#include "uapi.h"

namespace kintsugi::bench {
namespace {

constexpr std::uint64_t kPages = 32768;
constexpr int kTurns = 5;
constexpr std::array<unsigned, 3> kPercents{1, 10, 100};

using Bitmap = std::vector<std::uint64_t>;
using PageList = std::vector<std::uint32_t>;

void set(Bitmap* bitmap, std::uint64_t page) {
  (*bitmap)[page / 64] |= std::uint64_t{1} << (page % 64);
}

Bitmap bitmap_of(const PageList& pages) {
  Bitmap bitmap(kPages / 64);
  for (const std::uint32_t page : pages) set(&bitmap, page);
  return bitmap;
}

// `percent` of all pages at random, in order.
PageList choose(unsigned percent, unsigned seed) {
  PageList all(kPages);
  for (std::uint32_t i = 0; i < kPages; i++) all[i] = i;
  PageList chosen;
  std::sample(all.begin(), all.end(), std::back_inserter(chosen), kPages * percent / 100,
              std::mt19937_64(seed));
  return chosen;
}

void* map(std::uint64_t bytes, int fd = -1, off_t offset = 0) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, offset);
  if (at == MAP_FAILED) die_errno("mmap");
  return at;
}

// ---- The guest ----------------------------------------------------------------------------------

// One processor in 32-bit protected mode without paging. Slot 0 holds its code and the addresses it
// shall write to, slot 1 is the memory that is tracked.
class Vm {
 public:
  struct Options {
    bool log_dirty = false;
    bool manual_protect = false;
    std::uint32_t ring_entries = 0;
  };

  explicit Vm(const Options& options) : ring_entries_(options.ring_entries) {
    kvm_ = static_cast<int>(need(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm"));
    vm_ = static_cast<int>(need(::ioctl(kvm_, KVM_CREATE_VM, 0), "KVM_CREATE_VM"));
    if (options.manual_protect) enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1);
    if (ring_entries_ > 0) enable(KVM_CAP_DIRTY_LOG_RING, ring_entries_ * sizeof(kvm_dirty_gfn));
    control_ = static_cast<std::uint32_t*>(map(kControlBytes));
    memory_ = static_cast<char*>(map(kPages * kPageBytes));
    need(madvise(memory_, kPages * kPageBytes, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE");
    add_slot({0, 0, kCodeAddress, kControlBytes, reinterpret_cast<std::uint64_t>(control_)});
    const std::uint32_t flags = options.log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0;
    add_slot(
        {1, flags, kMemoryAddress, kPages * kPageBytes, reinterpret_cast<std::uint64_t>(memory_)});
    vcpu_ = static_cast<int>(need(::ioctl(vm_, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU"));
    run_bytes_ = static_cast<std::uint64_t>(
        need(::ioctl(kvm_, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"));
    run_ = static_cast<kvm_run*>(map(run_bytes_, vcpu_));
    std::memcpy(control_, kCode.data(), kCode.size());
    enter_protected_mode();
  }
  ~Vm() {
    munmap(run_, run_bytes_);
    close(vcpu_);
    close(vm_);
    close(kvm_);
    munmap(memory_, kPages * kPageBytes);
    munmap(control_, kControlBytes);
  }
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // Has the guest write to pages; the instructions of host and guest together.
  std::uint64_t write(const PageList& pages) {
    for (std::size_t i = 0; i < pages.size(); i++) {
      control_[kListOffset / 4 + i] =
          static_cast<std::uint32_t>(kMemoryAddress + pages[i] * kPageBytes);
    }
    kvm_regs regs{};
    regs.rip = kCodeAddress;
    regs.rflags = 2;
    regs.rbx = kCodeAddress + kListOffset;
    regs.rcx = pages.size();
    need(::ioctl(vcpu_, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    const std::uint64_t before = instructions();
    const int result = ::ioctl(vcpu_, KVM_RUN, 0);
    const std::uint64_t count = instructions() - before;
    need(result, "KVM_RUN");
    if (run_->exit_reason != KVM_EXIT_HLT) {
      die("the guest ended with exit reason " + std::to_string(run_->exit_reason));
    }
    return count;
  }

  template <typename Argument>
  int ioctl(unsigned long request, Argument argument) {
    return static_cast<int>(need(::ioctl(vm_, request, argument), "an ioctl of the VM"));
  }
  void enable(std::uint32_t capability, std::uint64_t argument) {
    kvm_enable_cap cap{};
    cap.cap = capability;
    cap.args[0] = argument;
    need(::ioctl(vm_, KVM_ENABLE_CAP, &cap), "KVM_ENABLE_CAP");
  }
  kvm_dirty_gfn* map_ring() {
    return static_cast<kvm_dirty_gfn*>(
        map(ring_entries_ * sizeof(kvm_dirty_gfn), vcpu_, KVM_DIRTY_LOG_PAGE_OFFSET * kPageBytes));
  }

  [[nodiscard]] std::uint64_t first_gfn() const { return kMemoryAddress / kPageBytes; }
  [[nodiscard]] const char* memory() const { return memory_; }

 private:
  static constexpr std::uint64_t kCodeAddress = 0x10000;
  static constexpr std::uint64_t kListOffset = kPageBytes;
  static constexpr std::uint64_t kControlBytes = kListOffset + kPages * 4;
  static constexpr std::uint64_t kMemoryAddress = 1 << 30;
  static constexpr std::array<std::uint8_t, 11> kCode{0x8b, 0x03,        // next: mov eax, [ebx]
                                                      0x89, 0x08,        //       mov [eax], ecx
                                                      0x83, 0xc3, 0x04,  //       add ebx, 4
                                                      0x49,              //       dec ecx
                                                      0x75, 0xf6,        //       jnz next
                                                      0xf4};             //       hlt

  void add_slot(const kvm_userspace_memory_region& slot) {
    need(::ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
  }
  void enter_protected_mode() {
    kvm_sregs sregs{};
    need(::ioctl(vcpu_, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    kvm_segment flat{};
    flat.limit = ~0U;
    flat.present = flat.db = flat.s = flat.g = 1;
    flat.selector = 8;
    flat.type = 0xb;
    sregs.cs = flat;
    flat.selector = 16;
    flat.type = 3;
    sregs.ds = sregs.es = sregs.ss = flat;
    sregs.cr0 |= 1;
    need(::ioctl(vcpu_, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
  }

  const std::uint32_t ring_entries_;
  int kvm_ = -1;
  int vm_ = -1;
  int vcpu_ = -1;
  std::uint32_t* control_ = nullptr;
  char* memory_ = nullptr;
  kvm_run* run_ = nullptr;
  std::uint64_t run_bytes_ = 0;
};

// ---- Methods ------------------------------------------------------------------------------------

class Method {
 public:
  explicit Method(const Vm::Options& options) : vm(options) {}
  virtual ~Method() = default;
  Method(const Method&) = delete;
  Method& operator=(const Method&) = delete;
  // Sets the bits of what was written since the last scan, and forgets it. `written` is zero
  // before.
  virtual void scan(Bitmap* written) = 0;
  Vm vm;
};

// Both bits of each page, both cleared, with a flush of the TLBs: all that it can do.
class AccessBits final : public Method {
 public:
  AccessBits() : Method({}) {
    if (vm.ioctl(KVM_CHECK_EXTENSION, kCapAccessBits) == 0) die("no KVM_GET_ACCESS_BITS");
  }
  void scan(Bitmap* written) override {
    KvmAccessBits bits{};
    bits.first_gfn = vm.first_gfn();
    bits.num_pages = kPages;
    bits.flags = kClearAccessed | kClearDirty | kFlush;
    bits.accessed_bitmap = reinterpret_cast<std::uint64_t>(accessed_.data());
    bits.dirty_bitmap = reinterpret_cast<std::uint64_t>(written->data());
    vm.ioctl(kGetAccessBits, &bits);
    if (bits.pages_done != kPages) die("KVM_GET_ACCESS_BITS did a part only");
    if (accessed_ != *written) die("KVM_GET_ACCESS_BITS: accessed and dirty differ");
  }

 private:
  Bitmap accessed_ = Bitmap(kPages / 64);
};

// As QEMU's access tracker calls it: Accessed bits only, without a flush.
class AccessedBits final : public Method {
 public:
  AccessedBits() : Method({}) {}
  void scan(Bitmap* written) override {
    KvmAccessBits bits{};
    bits.first_gfn = vm.first_gfn();
    bits.num_pages = kPages;
    bits.flags = kClearAccessed;
    bits.accessed_bitmap = reinterpret_cast<std::uint64_t>(written->data());
    vm.ioctl(kGetAccessBits, &bits);
  }
};

class DirtyLog final : public Method {
 public:
  DirtyLog() : Method({.log_dirty = true, .manual_protect = true}) {}
  void scan(Bitmap* written) override {
    kvm_dirty_log log{};
    log.slot = 1;
    log.dirty_bitmap = written->data();
    vm.ioctl(KVM_GET_DIRTY_LOG, &log);
    kvm_clear_dirty_log clear{};
    clear.slot = 1;
    clear.num_pages = kPages;
    clear.dirty_bitmap = written->data();
    vm.ioctl(KVM_CLEAR_DIRTY_LOG, &clear);
  }
};

// KVM_GET_DIRTY_LOG as it was first: it clears by itself.
class DirtyLogAtOnce final : public Method {
 public:
  DirtyLogAtOnce() : Method({.log_dirty = true}) {}
  void scan(Bitmap* written) override {
    kvm_dirty_log log{};
    log.slot = 1;
    log.dirty_bitmap = written->data();
    vm.ioctl(KVM_GET_DIRTY_LOG, &log);
  }
};

class DirtyRing final : public Method {
 public:
  DirtyRing() : Method({.log_dirty = true, .ring_entries = kEntries}), ring_(vm.map_ring()) {}
  ~DirtyRing() override { munmap(ring_, kEntries * sizeof(kvm_dirty_gfn)); }
  void scan(Bitmap* written) override {
    for (;; next_++) {
      kvm_dirty_gfn& entry = ring_[next_ % kEntries];
      std::atomic_ref<std::uint32_t> flags(entry.flags);
      if ((flags.load(std::memory_order_acquire) & KVM_DIRTY_GFN_F_DIRTY) == 0) break;
      set(written, entry.offset);
      flags.store(KVM_DIRTY_GFN_F_RESET, std::memory_order_release);
    }
    vm.ioctl(KVM_RESET_DIRTY_RINGS, 0);
  }

 private:
  static constexpr std::uint32_t kEntries = 65536;  // the most, so that it is never full
  kvm_dirty_gfn* const ring_;
  std::uint64_t next_ = 0;
};

// One read of /proc/self/pagemap, as pages may have moved; then runs of words of the idle bitmap,
// in which only those pages are marked idle again that were not.
class PageIdle final : public Method {
 public:
  PageIdle() : Method({}), entries_(kPages) {
    pagemap_ = static_cast<int>(need(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "pagemap"));
    idle_ = static_cast<int>(
        need(open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC), "page_idle"));
    // Twice: frames are numbered past the hole below 4 GiB.
    words_of_host_ = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) / 64 * 2;
    ours_.resize(words_of_host_);
    touched_.resize(words_of_host_);
  }
  ~PageIdle() override {
    close(pagemap_);
    close(idle_);
  }
  void scan(Bitmap* written) override {
    const auto bytes = static_cast<ssize_t>(kPages * 8);
    const std::uint64_t first = reinterpret_cast<std::uint64_t>(vm.memory()) / kPageBytes;
    if (pread(pagemap_, entries_.data(), kPages * 8, static_cast<off_t>(first * 8)) != bytes) {
      die_errno("pagemap");
    }
    words_.clear();
    for (std::uint64_t& entry : entries_) {
      entry &= kPfn;
      const std::uint64_t word = entry / 64;
      if (word >= words_of_host_) die("a page has no page frame");
      if (ours_[word] == 0) words_.push_back(word);
      ours_[word] |= std::uint64_t{1} << (entry % 64);
    }
    std::sort(words_.begin(), words_.end());
    for (std::size_t i = 0, end = 0; i < words_.size(); i = end) {
      for (end = i + 1; end < words_.size() && words_[end] == words_[end - 1] + 1;) end++;
      const std::uint64_t word = words_[i];
      const std::uint64_t run_bytes = (end - i) * 8;
      transfer(pread(idle_, &touched_[word], run_bytes, static_cast<off_t>(word * 8)), run_bytes);
      for (std::uint64_t w = word; w < word + (end - i); w++) touched_[w] = ours_[w] & ~touched_[w];
      transfer(pwrite(idle_, &touched_[word], run_bytes, static_cast<off_t>(word * 8)), run_bytes);
    }
    for (std::uint64_t page = 0; page < kPages; page++) {
      const std::uint64_t pfn = entries_[page];
      if ((touched_[pfn / 64] >> (pfn % 64) & 1) != 0) set(written, page);
    }
    for (const std::uint64_t word : words_) ours_[word] = 0;
  }

 private:
  static constexpr std::uint64_t kPfn = (std::uint64_t{1} << 55) - 1;
  static void transfer(ssize_t done, std::uint64_t bytes) {
    if (done != static_cast<ssize_t>(bytes)) die_errno("page_idle");
  }

  int pagemap_ = -1;
  int idle_ = -1;
  std::uint64_t words_of_host_ = 0;
  std::vector<std::uint64_t> entries_, ours_, touched_, words_;
};

// ---- Measuring ----------------------------------------------------------------------------------

struct Measured {
  std::array<Counts, kPercents.size()> scans, runs;
};

// Pages wait in batches for their way to reclaim's lists, and page_idle sees none that is on no
// list. MADV_COLD, of whatever memory, begins by emptying the batches of this processor, the only
// one.
void put_pages_on_lists() {
  void* page = map(kPageBytes);
  need(madvise(page, kPageBytes, MADV_COLD), "MADV_COLD");
  munmap(page, kPageBytes);
}

void expect(const Bitmap& is, const Bitmap& wanted, const std::string& when) {
  int missing = 0;
  int excess = 0;
  for (std::size_t i = 0; i < is.size(); i++) {
    missing += std::popcount(wanted[i] & ~is[i]);
    excess += std::popcount(is[i] & ~wanted[i]);
  }
  if (missing + excess > 0) {
    die(when + ": " + std::to_string(missing) + " pages missing, " + std::to_string(excess) +
        " in excess");
  }
}

Measured measure(const std::string& name, const std::function<std::unique_ptr<Method>()>& make) {
  const std::unique_ptr<Method> method = make();
  const Bitmap none(kPages / 64);
  Bitmap written = none;
  Measured measured;
  method->vm.write(choose(100, 0));
  put_pages_on_lists();
  method->scan(&written);
  written = none;
  method->scan(&written);
  expect(written, none, name + ", nothing written");
  for (std::size_t i = 0; i < kPercents.size(); i++) {
    for (unsigned turn = 0; turn < kTurns; turn++) {
      const PageList pages = choose(kPercents[i], turn);
      const Bitmap truth = bitmap_of(pages);
      measured.runs[i].add(method->vm.write(pages));
      written = none;
      const std::uint64_t before = instructions();
      method->scan(&written);
      measured.scans[i].add(instructions() - before);
      expect(written, truth, name + ", " + std::to_string(kPercents[i]) + " % written");
    }
  }
  return measured;
}

std::array<Counts, kPercents.size()> measure_untracked() {
  std::array<Counts, kPercents.size()> runs;
  Vm vm({});
  vm.write(choose(100, 0));
  for (std::size_t i = 0; i < kPercents.size(); i++) {
    for (unsigned turn = 0; turn < kTurns; turn++) {
      runs[i].add(vm.write(choose(kPercents[i], turn)));
    }
  }
  return runs;
}

template <typename T>
std::unique_ptr<Method> make() {
  return std::make_unique<T>();
}

int run() {
  check_counter();
  const auto untracked = measure_untracked();
  const Measured ours = measure("access bits", make<AccessBits>);
  const Measured accessed_only = measure("accessed bits", make<AccessedBits>);
  const std::vector<std::pair<std::string, Measured>> rivals{
      {"dirty log, get and clear", measure("dirty log", make<DirtyLog>)},
      {"dirty log, get alone", measure("dirty log at once", make<DirtyLogAtOnce>)},
      {"dirty ring", measure("dirty ring", make<DirtyRing>)},
      {"page_idle", measure("page_idle", make<PageIdle>)}};
  Report report;
  for (std::size_t i = 0; i < kPercents.size(); i++) {
    const std::string name = "access bits, " + std::to_string(kPercents[i]) + " % touched, ";
    const auto scan = [&](const Measured& of) { return of.scans[i].median() / kPages; };
    const auto whole = [&](const Measured& of) {
      return scan(of) + (of.runs[i].median() - untracked[i].median()) / kPages;
    };
    std::vector<Rival> scans;
    std::vector<Rival> wholes;
    for (const auto& [rival, measured] : rivals) {
      scans.push_back({rival, scan(measured)});
      wholes.push_back({rival, whole(measured)});
    }
    report.add(name + "scan", scan(ours), ours.scans[i].spread(), scans);
    report.note(name + "scan: accessed only, no flush", scan(accessed_only), {"ours", scan(ours)});
    report.add(name + "scan and faults", whole(ours), ours.scans[i].spread(), wholes);
  }
  report.print();
  return 0;
}

}  // namespace
}  // namespace kintsugi::bench

int main() { return kintsugi::bench::run(); }
