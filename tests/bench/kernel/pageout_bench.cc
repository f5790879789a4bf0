// SPDX-License-Identifier: GPL-2.0-or-later
// What does it take to page out? UFFDIO_PAGEOUT against UFFDIO_MOVE and against write protection.
//
// Batches of 64 pages, each alone or all in a row, go out. Each method ends in the same state: the
// content is in a buffer of the pager's, nothing is mapped any more, there or in a staging area,
// and who had to wait meanwhile goes on. All that is checked.

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <random>

#include "bench.h"
#include "uapi.h"

namespace kintsugi::bench {
namespace {

constexpr std::uint64_t kPages = 4096;
constexpr std::uint64_t kBatch = 64;
constexpr int kBatches = 16;
constexpr std::uint64_t kBatchBytes = kBatch * kPageBytes;
constexpr std::uint64_t kHugeBytes = 512 * kPageBytes;

// A run of pages.
struct Run {
  char* at;
  std::uint64_t bytes;
};
using Batch = std::vector<Run>;

enum class Pages { kSmall, kHuge };

char* map(std::uint64_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) die_errno("mmap");
  need(madvise(at, bytes, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE");
  return static_cast<char*>(at);
}

// The pager's: an aligned huge page, or small ones in its place.
class Buffer {
 public:
  explicit Buffer(Pages pages) : mapped_(map(2 * kHugeBytes)) {
    const std::uint64_t skip = -reinterpret_cast<std::uint64_t>(mapped_) % kHugeBytes;
    at = mapped_ + skip;
    if (pages == Pages::kHuge) need(madvise(at, kHugeBytes, MADV_HUGEPAGE), "MADV_HUGEPAGE");
    clear();
    if (pages == Pages::kHuge && !one_huge_page()) die("no huge page for the buffer");
  }
  ~Buffer() { munmap(mapped_, 2 * kHugeBytes); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void clear() const { std::fill(at, at + kBatchBytes, 1); }
  char* at;

 private:
  // Only the first page was touched if so, and all the others are there.
  [[nodiscard]] bool one_huge_page() const {
    unsigned char there = 0;
    need(mincore(at + kHugeBytes - kPageBytes, kPageBytes, &there), "mincore");
    return (there & 1) != 0;
  }
  char* const mapped_;
};

// The guest's memory, under userfaultfd, with buffer and staging area of the pager.
class Memory {
 public:
  explicit Memory(bool write_protect, Pages buffer = Pages::kHuge)
      : uffd_(static_cast<int>(need(syscall(SYS_userfaultfd, O_CLOEXEC), "userfaultfd"))),
        memory_(map(kPages * kPageBytes)),
        buffer_(buffer),
        staging_(map(kBatchBytes)) {
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = kFeatureMove | kFeaturePageout | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    need(::ioctl(uffd_, UFFDIO_API, &api), "UFFDIO_API");
    for (std::uint64_t i = 0; i < kPages; i++) fill(memory_ + i * kPageBytes);
    enroll(memory_, kPages * kPageBytes, write_protect);
    enroll(staging_, kBatchBytes, false);
    pagemap_ = static_cast<int>(need(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "pagemap"));
  }
  ~Memory() {
    close(pagemap_);
    close(uffd_);
    munmap(memory_, kPages * kPageBytes);
    munmap(staging_, kBatchBytes);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void ioctl(unsigned long request, void* argument) const {
    need(::ioctl(uffd_, request, argument), "an ioctl of the userfaultfd");
  }
  [[nodiscard]] char* page(std::uint64_t i) const { return memory_ + i * kPageBytes; }
  [[nodiscard]] char* buffer() const { return buffer_.at; }
  [[nodiscard]] char* staging() const { return staging_; }

  // Dies unless the batch is out as it should be, then brings it back.
  void check_and_restore(const Batch& batch, const std::string& who) {
    const char* content = buffer_.at;
    for (const Run& run : batch) {
      need_absent(run.at, run.bytes, who + ": the source");
      for (char* at = run.at; at < run.at + run.bytes; at += kPageBytes, content += kPageBytes) {
        std::vector<char> wanted(kPageBytes);
        make(wanted.data(), at);
        if (!std::equal(wanted.begin(), wanted.end(), content)) die(who + ": wrong content");
      }
    }
    need_absent(staging_, kBatchBytes, who + ": the staging area");
    content = buffer_.at;
    for (const Run& run : batch) {
      uffdio_copy copy{};
      copy.dst = reinterpret_cast<std::uint64_t>(run.at);
      copy.src = reinterpret_cast<std::uint64_t>(content);
      copy.len = run.bytes;
      ioctl(UFFDIO_COPY, &copy);
      content += run.bytes;
    }
    buffer_.clear();
  }

 private:
  // The content of the page at `at`.
  static void make(char* to, const char* at) {
    auto* words = reinterpret_cast<std::uint64_t*>(to);
    for (std::uint64_t i = 0; i < kPageBytes / 8; i++) {
      words[i] = reinterpret_cast<std::uint64_t>(at) + i;
    }
  }
  static void fill(char* at) { make(at, at); }
  void enroll(char* at, std::uint64_t bytes, bool write_protect) const {
    uffdio_register registration{};
    registration.range = {reinterpret_cast<std::uint64_t>(at), bytes};
    registration.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (write_protect) registration.mode |= UFFDIO_REGISTER_MODE_WP;
    ioctl(UFFDIO_REGISTER, &registration);
  }
  void need_absent(const char* at, std::uint64_t bytes, const std::string& what) const {
    std::vector<std::uint64_t> entries(bytes / kPageBytes);
    const auto size = static_cast<ssize_t>(entries.size() * 8);
    const auto offset = static_cast<off_t>(reinterpret_cast<std::uint64_t>(at) / kPageBytes * 8);
    if (pread(pagemap_, entries.data(), entries.size() * 8, offset) != size) die_errno("pagemap");
    for (const std::uint64_t entry : entries) {
      if ((entry >> 62) != 0) die(what + " is mapped still");
    }
  }

  const int uffd_;
  char* const memory_;
  const Buffer buffer_;
  char* const staging_;
  int pagemap_ = -1;
};

// ---- Methods ------------------------------------------------------------------------------------

std::uint64_t address(const void* at) { return reinterpret_cast<std::uint64_t>(at); }

void copy_run(char* to, const Run& run) {
  for (std::uint64_t at = 0; at < run.bytes; at += kPageBytes) copy_page(to + at, run.at + at);
}

void by_pageout(const Memory& memory, const Batch& batch) {
  std::array<UffdPageoutRange, kBatch> ranges;
  std::array<std::uint8_t, kBatch> status;
  char* to = memory.buffer();
  for (std::size_t i = 0; i < batch.size(); i++) {
    ranges[i] = {address(batch[i].at), address(to), batch[i].bytes};
    to += batch[i].bytes;
  }
  UffdPageout pageout{};
  pageout.vec = address(ranges.data());
  pageout.status = address(status.data());
  pageout.nr = static_cast<std::uint32_t>(batch.size());
  memory.ioctl(kUffdPageout, &pageout);
  for (const std::uint8_t one : status) {
    if (one != kPageoutDone) die("UFFDIO_PAGEOUT: status " + std::to_string(one));
  }
}

// With the content left where it was moved to.
void move_only(const Memory& memory, const Batch& batch) {
  char* to = memory.staging();
  for (const Run& run : batch) {
    UffdMove move{};
    move.dst = address(to);
    move.src = address(run.at);
    move.len = run.bytes;
    memory.ioctl(kUffdMove, &move);
    to += run.bytes;
  }
}

void empty_staging(const Memory& memory) {
  need(madvise(memory.staging(), kBatchBytes, MADV_DONTNEED), "MADV_DONTNEED");
}

void by_move(const Memory& memory, const Batch& batch) {
  move_only(memory, batch);
  copy_run(memory.buffer(), {memory.staging(), kBatchBytes});
  empty_staging(memory);
}

// The content is used where it was moved to, as if that were the buffer.
void by_move_alone(const Memory& memory, const Batch& batch) {
  move_only(memory, batch);
  empty_staging(memory);
}

void by_write_protection(const Memory& memory, const Batch& batch) {
  char* to = memory.buffer();
  for (const Run& run : batch) {
    uffdio_writeprotect protect{};
    protect.range = {address(run.at), run.bytes};
    protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
    memory.ioctl(UFFDIO_WRITEPROTECT, &protect);
    copy_run(to, run);
    need(madvise(run.at, run.bytes, MADV_DONTNEED), "MADV_DONTNEED");
    // Who met the protection waits for the pager; a discard does not wake it.
    uffdio_range range = protect.range;
    memory.ioctl(UFFDIO_WAKE, &range);
    to += run.bytes;
  }
}

// ---- Measuring ----------------------------------------------------------------------------------

// Batches of pages that are nobody's neighbours, in no order.
std::vector<Batch> alone(const Memory& memory) {
  std::vector<std::uint64_t> pages(kPages / 2);
  for (std::uint64_t i = 0; i < pages.size(); i++) pages[i] = 2 * i;
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(1));
  std::vector<Batch> batches(kBatches);
  for (int i = 0; i < kBatches; i++) {
    for (std::uint64_t j = 0; j < kBatch; j++) {
      batches[i].push_back({memory.page(pages[i * kBatch + j]), kPageBytes});
    }
  }
  return batches;
}

std::vector<Batch> in_a_row(const Memory& memory) {
  std::vector<Batch> batches(kBatches);
  for (int i = 0; i < kBatches; i++) batches[i] = {{memory.page(i * kBatch), kBatchBytes}};
  return batches;
}

using Choose = std::vector<Batch>(const Memory&);

struct Way {
  std::string name;
  std::function<void(const Memory&, const Batch&)> out;
  bool write_protect = false;
  Pages buffer = Pages::kHuge;
};

Counts measure(const Way& way, Choose* choose) {
  Memory memory(way.write_protect, way.buffer);
  const std::vector<Batch> batches = choose(memory);
  Counts counts;
  for (int turn = 0; turn < 2; turn++) {
    for (const Batch& batch : batches) {
      const std::uint64_t before = instructions();
      way.out(memory, batch);
      // In the first turn pages are as they came from the allocator, tables are made.
      if (turn > 0) counts.add(instructions() - before);
      memory.check_and_restore(batch, way.name);
    }
  }
  return counts;
}

// Only the counting differs from by_move, but there is no content to check afterwards.
Counts measure_move_alone(Choose* choose) {
  Memory memory(false);
  Counts counts;
  for (const Batch& batch : choose(memory)) {
    const std::uint64_t before = instructions();
    by_move_alone(memory, batch);
    counts.add(instructions() - before);
  }
  return counts;
}

double measure_copy() {
  Memory memory(false);
  Counts counts;
  for (int i = 0; i < kBatches; i++) {
    const std::uint64_t before = instructions();
    copy_run(memory.buffer(), {memory.page(i * kBatch), kBatchBytes});
    counts.add(instructions() - before);
  }
  return counts.median() / kBatch;
}

int run() {
  check_counter();
  const Way ours{"UFFDIO_PAGEOUT", by_pageout};
  const std::vector<Way> rivals{{"UFFDIO_MOVE and copy", by_move},
                                {"write protection, copy, discard", by_write_protection, true}};
  const double copy = measure_copy();
  Report report;
  const std::vector<std::pair<std::string, Choose*>> patterns{
      {"page-out, 64 pages, each alone", alone}, {"page-out, 64 pages in a row", in_a_row}};
  for (const auto& [name, choose] : patterns) {
    const auto page = [](const Counts& counts) { return counts.median() / kBatch; };
    const Counts out = measure(ours, choose);
    std::vector<Rival> others;
    for (const Way& way : rivals) others.push_back({way.name, page(measure(way, choose))});
    report.add(name, page(out), out.spread(), others);
    report.note(name + ": UFFDIO_PAGEOUT to small pages",
                page(measure({ours.name, by_pageout, false, Pages::kSmall}, choose)),
                {"ours", page(out)});
    report.note(name + ": UFFDIO_MOVE, used where it is", page(measure_move_alone(choose)),
                {"ours", page(out)});
    report.note(name + ": the copy in each of them", copy, {"ours", page(out)});
  }
  report.print();
  return 0;
}

}  // namespace
}  // namespace kintsugi::bench

int main() { return kintsugi::bench::run(); }
