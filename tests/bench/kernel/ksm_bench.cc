// SPDX-License-Identifier: GPL-2.0-or-later
// Who shares KSM pages with whom? ksm/sharing_matrix in debugfs against /proc/PID/pagemap.
//
// 2, 4 and 8 processes have pages that all of them share, pages that two share and pages of their
// own, which KSM merges. Each method yields the whole matrix, which must be the planned one: for
// each pair how many KSM pages both map, for each process how many it maps. The pagemap method is
// given what it would have to find out: which processes, and where their memory is.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <cstring>
#include <ctime>
#include <string_view>

#include "bench.h"

namespace kintsugi::bench {
namespace {

constexpr std::uint64_t kPages = 8192;  // of each process
constexpr std::uint64_t kByAll = kPages / 2;
constexpr std::uint64_t kByTwo = kPages / 4;
constexpr unsigned kMostProcesses = 8;
constexpr int kTurns = 5;
constexpr time_t kMergeSeconds = 300;

// Row and column of each process, in the order in which they were started.
using Matrix = std::array<std::array<std::uint64_t, kMostProcesses>, kMostProcesses>;

void put(const std::string& path, const std::string& text) {
  const int fd = static_cast<int>(need(open(path.c_str(), O_WRONLY | O_CLOEXEC), path.c_str()));
  need(write(fd, text.data(), text.size()), path.c_str());
  close(fd);
}

std::uint64_t number_in(const std::string& path) {
  std::array<char, 32> text{};
  const int fd = static_cast<int>(need(open(path.c_str(), O_RDONLY | O_CLOEXEC), path.c_str()));
  need(read(fd, text.data(), text.size() - 1), path.c_str());
  close(fd);
  return std::strtoull(text.data(), nullptr, 10);
}

// ---- The processes ------------------------------------------------------------------------------

class Processes {
 public:
  explicit Processes(unsigned count) : memory_(map()) {
    for (unsigned i = 0; i < count; i++) start(i);
    merge();
  }
  ~Processes() {
    for (const pid_t pid : pids) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    put("/sys/kernel/mm/ksm/run", "2");
    munmap(memory_, kPages * kPageBytes);
  }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  std::vector<pid_t> pids;
  [[nodiscard]] std::uint64_t first_page() const {
    return reinterpret_cast<std::uint64_t>(memory_) / kPageBytes;
  }
  [[nodiscard]] Matrix planned() const {
    Matrix matrix{};
    for (unsigned a = 0; a < pids.size(); a++) {
      for (unsigned b = 0; b < pids.size(); b++) {
        // With two processes, those that two share are shared by all.
        matrix[a][b] = kByAll + (a / 2 == b / 2 ? kByTwo : 0);
      }
    }
    return matrix;
  }

 private:
  // The same address in each process; nothing is touched here.
  static char* map() {
    void* at = mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die_errno("mmap");
    return static_cast<char*>(at);
  }
  void start(unsigned index) {
    std::array<int, 2> ready{};
    need(pipe(ready.data()), "pipe");
    const auto pid = static_cast<pid_t>(need(fork(), "fork"));
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      need(madvise(memory_, kPages * kPageBytes, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE");
      for (std::uint64_t i = 0; i < kPages; i++) {
        // Page, and who has it: everybody, a pair, or one.
        const std::uint64_t owner = i < kByAll            ? 0
                                    : i < kByAll + kByTwo ? 1 + index / 2
                                                          : 100 + index;
        const std::array<std::uint64_t, 2> content{i + 1, owner};
        std::memcpy(memory_ + i * kPageBytes, content.data(), sizeof(content));
      }
      need(madvise(memory_, kPages * kPageBytes, MADV_MERGEABLE), "MADV_MERGEABLE");
      need(write(ready[1], "x", 1), "pipe");
      for (;;) pause();
    }
    char byte = 0;
    need(read(ready[0], &byte, 1), "pipe");
    close(ready[0]);
    close(ready[1]);
    pids.push_back(pid);
  }
  void merge() const {
    const std::string ksm = "/sys/kernel/mm/ksm/";
    const std::uint64_t pages = kPages * pids.size();
    const std::uint64_t groups = kByAll + kByTwo * (pids.size() / 2);
    const std::uint64_t merged = (kByAll + kByTwo) * pids.size();
    put(ksm + "smart_scan", "0");
    put(ksm + "sleep_millisecs", "1");
    put(ksm + "pages_to_scan", std::to_string(pages));
    put(ksm + "run", "1");
    const time_t deadline = time(nullptr) + kMergeSeconds;
    while (number_in(ksm + "pages_shared") != groups ||
           number_in(ksm + "pages_sharing") != merged - groups) {
      if (time(nullptr) > deadline) die("KSM does not merge what is the same");
      usleep(1000);
    }
    put(ksm + "run", "0");
  }

  char* const memory_;
};

// ---- Methods ------------------------------------------------------------------------------------

// Reads numbers and skips words.
class Parser {
 public:
  explicit Parser(std::string_view text) : at_(text.data()), end_(at_ + text.size()) {}
  std::uint64_t number() {
    while (at_ < end_ && (*at_ < '0' || *at_ > '9')) at_++;
    std::uint64_t value = 0;
    at_ = std::from_chars(at_, end_, value).ptr;
    return value;
  }
  void skip_line() {
    while (at_ < end_ && *at_++ != '\n') {
    }
  }

 private:
  const char* at_;
  const char* const end_;
};

Matrix by_debugfs(const Processes& processes) {
  constexpr int kHeadLines = 4;  // format, full_scans, pages, lagging_pages
  const char* const path = "/sys/kernel/debug/ksm/sharing_matrix";
  std::string text(1 << 16, '\0');
  const int fd = static_cast<int>(need(open(path, O_RDONLY | O_CLOEXEC), path));
  std::size_t bytes = 0;
  for (;;) {
    const long got = need(read(fd, text.data() + bytes, text.size() - bytes), path);
    if (got == 0) break;
    bytes += static_cast<std::size_t>(got);
  }
  close(fd);
  Parser parser({text.data(), bytes});
  for (int i = 0; i < kHeadLines; i++) parser.skip_line();
  const std::uint64_t rows = parser.number();
  const std::uint64_t pairs = parser.number();
  parser.skip_line();
  for (std::uint64_t i = 0; i < rows; i++) parser.skip_line();
  const auto index = [&](std::uint64_t pid) {
    const auto at = std::find(processes.pids.begin(), processes.pids.end(), pid);
    if (at == processes.pids.end()) die("the matrix has a process that is not ours");
    return static_cast<std::size_t>(at - processes.pids.begin());
  };
  Matrix matrix{};
  for (std::uint64_t i = 0; i < pairs; i++) {
    const std::size_t a = index(parser.number());
    const std::size_t b = index(parser.number());
    matrix[a][b] = matrix[b][a] = parser.number();
  }
  return matrix;
}

// A page is shared if several processes map its frame; with `flags`, only if it is KSM's besides.
// Frames are numbered past the hole below 4 GiB, so there may be twice as many as pages.
class Pagemap {
 public:
  explicit Pagemap(bool flags)
      : frames_(static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * 2), entries_(kPages) {
    if (!flags) return;
    const char* const path = "/proc/kpageflags";
    flags_ = static_cast<int>(need(open(path, O_RDONLY | O_CLOEXEC), path));
  }
  ~Pagemap() {
    if (flags_ >= 0) close(flags_);
  }
  Pagemap(const Pagemap&) = delete;
  Pagemap& operator=(const Pagemap&) = delete;

  Matrix operator()(const Processes& processes) {
    met_.clear();
    for (unsigned i = 0; i < processes.pids.size(); i++) note(processes, i);
    // How many pages each set of processes shares, and from that the pairs.
    std::array<std::uint64_t, 1 << kMostProcesses> sets{};
    for (const std::uint64_t pfn : met_) {
      if (flags_ < 0 || is_ksm(pfn)) sets[frames_[pfn]]++;
      frames_[pfn] = 0;
    }
    Matrix matrix{};
    for (unsigned set = 0; set < sets.size(); set++) {
      if (sets[set] == 0 || (set & (set - 1)) == 0) continue;
      for (unsigned a = 0; a < kMostProcesses; a++) {
        for (unsigned b = 0; b < kMostProcesses; b++) {
          if ((set >> a & set >> b & 1) != 0) matrix[a][b] += sets[set];
        }
      }
    }
    return matrix;
  }

 private:
  static constexpr std::uint64_t kPresent = std::uint64_t{1} << 63;
  static constexpr std::uint64_t kExclusive = std::uint64_t{1} << 56;
  static constexpr std::uint64_t kPfn = (std::uint64_t{1} << 55) - 1;
  static constexpr std::uint64_t kKsm = std::uint64_t{1} << 21;
  static constexpr std::uint64_t kFlagsAtOnce = 512;

  void note(const Processes& processes, unsigned index) {
    const std::string path = "/proc/" + std::to_string(processes.pids[index]) + "/pagemap";
    const int fd = static_cast<int>(need(open(path.c_str(), O_RDONLY | O_CLOEXEC), path.c_str()));
    const auto bytes = static_cast<ssize_t>(kPages * 8);
    if (pread(fd, entries_.data(), kPages * 8, static_cast<off_t>(processes.first_page() * 8)) !=
        bytes) {
      die_errno(path);
    }
    close(fd);
    for (const std::uint64_t entry : entries_) {
      if ((entry & (kPresent | kExclusive)) != kPresent) continue;
      const std::uint64_t pfn = entry & kPfn;
      if (pfn >= frames_.size()) die("a frame beyond the end of memory");
      if (frames_[pfn] == 0) met_.push_back(pfn);
      frames_[pfn] |= static_cast<std::uint8_t>(1 << index);
    }
  }
  bool is_ksm(std::uint64_t pfn) {
    const std::uint64_t first = pfn / kFlagsAtOnce * kFlagsAtOnce;
    if (first != flags_first_) {
      const auto bytes = static_cast<ssize_t>(sizeof(page_flags_));
      if (pread(flags_, page_flags_.data(), sizeof(page_flags_), static_cast<off_t>(first * 8)) !=
          bytes) {
        die_errno("kpageflags");
      }
      flags_first_ = first;
    }
    return (page_flags_[pfn - first] & kKsm) != 0;
  }

  std::vector<std::uint8_t> frames_;  // by page frame, the set of processes that map it
  std::vector<std::uint64_t> entries_, met_;
  int flags_ = -1;
  std::uint64_t flags_first_ = ~std::uint64_t{0};
  std::array<std::uint64_t, kFlagsAtOnce> page_flags_{};
};

// ---- Measuring ----------------------------------------------------------------------------------

template <typename Method>
Counts measure(const std::string& who, const Processes& processes, Method&& method) {
  const Matrix planned = processes.planned();
  Counts counts;
  for (int turn = -1; turn < kTurns; turn++) {
    const std::uint64_t before = instructions();
    const Matrix matrix = method(processes);
    // Memory of the method's own is touched first in a turn that does not count.
    if (turn >= 0) counts.add(instructions() - before);
    if (matrix != planned) die(who + ": not the matrix that was planned");
  }
  return counts;
}

int run() {
  check_counter();
  Report report;
  for (const unsigned count : {2, 4, 8}) {
    const Processes processes(count);
    const auto page = [&](const Counts& counts) {
      return counts.median() / static_cast<double>(kPages * count);
    };
    const Counts ours = measure("sharing_matrix", processes, by_debugfs);
    Pagemap without(false);
    Pagemap with(true);
    report.add("KSM sharing of " + std::to_string(count) + " processes", page(ours), ours.spread(),
               {{"pagemap", page(measure("pagemap", processes, without))},
                {"pagemap and kpageflags", page(measure("kpageflags", processes, with))}});
  }
  report.print();
  return 0;
}

}  // namespace
}  // namespace kintsugi::bench

int main() { return kintsugi::bench::run(); }
