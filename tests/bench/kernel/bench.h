// SPDX-License-Identifier: GPL-2.0-or-later
// Counting instructions, and reporting them.
//
// These programs run in an emulated host with one processor, whose time is the number of
// instructions that it has executed (`-icount shift=0`). So its time stamp counter, which QEMU runs
// at 1 GHz then, counts the instructions of the kernel and of programs alike, exactly and again and
// again. A string instruction with a repeat prefix counts once for each repetition.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kintsugi::bench {

constexpr std::uint64_t kPageBytes = 4096;

[[noreturn]] void die(const std::string& why);
// Dies with `what` and errno.
[[noreturn]] void die_errno(const std::string& what);
// `result` if it is not negative; else dies.
long need(long result, const char* what);

// Instructions since the start of the machine.
inline std::uint64_t instructions() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
  return std::uint64_t{high} << 32 | low;
}

// Dies unless instructions() counts instructions.
void check_counter();

// Copies a page with as many instructions as the kernel's memcpy() on this processor. Vector
// instructions, of which it takes fewer, would make a copy by a program seem cheaper than the same
// by the kernel.
inline void copy_page(void* to, const void* from) {
  std::uint64_t bytes = kPageBytes - 32;
  __asm__ volatile(
      "1: subq $32, %2\n"
      "movq (%1), %%r8\n"
      "movq 8(%1), %%r9\n"
      "movq 16(%1), %%r10\n"
      "movq 24(%1), %%r11\n"
      "leaq 32(%1), %1\n"
      "movq %%r8, (%0)\n"
      "movq %%r9, 8(%0)\n"
      "movq %%r10, 16(%0)\n"
      "movq %%r11, 24(%0)\n"
      "leaq 32(%0), %0\n"
      "jae 1b\n"
      : "+r"(to), "+r"(from), "+r"(bytes)
      :
      : "r8", "r9", "r10", "r11", "memory", "cc");
}

// What the same work took each time.
class Counts {
 public:
  void add(std::uint64_t count) { counts_.push_back(count); }
  [[nodiscard]] double median() const;
  // From the least to the most, as a part of the median: what the timer's interrupts add now and
  // then.
  [[nodiscard]] double spread() const;

 private:
  std::vector<std::uint64_t> counts_;
};

struct Rival {
  std::string name;
  double value;
};

// The figures of one program, in instructions a page.
class Report {
 public:
  // `name` is to be below each rival. One figure is compared with the cheapest of them, and each
  // rival has one without a goal.
  void add(const std::string& name, double value, double spread, const std::vector<Rival>& rivals);
  // A figure without a goal.
  void note(const std::string& name, double value, const Rival& rival);
  void print() const { std::printf("%s\n", results_.dump(2).c_str()); }

 private:
  nlohmann::json results_ = nlohmann::json::array();
};

}  // namespace kintsugi::bench
