// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace kintsugi::bench {
namespace {

const char* const kUnit = "instructions/page";

}  // namespace

void die(const std::string& why) {
  std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, why.c_str());
  std::exit(1);
}

void die_errno(const std::string& what) { die(what + ": " + std::strerror(errno)); }

long need(long result, const char* what) {
  if (result < 0) die_errno(what);
  return result;
}

void check_counter() {
  constexpr std::uint64_t kRounds = 10000;
  constexpr std::uint64_t kAround = 16;  // for what reads the counter
  constexpr int kTries = 5;              // the timer's interrupt may come in between
  std::uint64_t least = ~std::uint64_t{0};
  for (int i = 0; i < kTries; i++) {
    std::uint64_t rounds = kRounds;
    const std::uint64_t before = instructions();
    __asm__ volatile("1: dec %0; jnz 1b" : "+r"(rounds));
    least = std::min(least, instructions() - before);
  }
  if (least < 2 * kRounds || least > 2 * kRounds + kAround) {
    die("the time stamp counter does not count instructions: `make bench SUITE=kernel` runs this");
  }
}

double Counts::median() const {
  std::vector<std::uint64_t> sorted = counts_;
  std::sort(sorted.begin(), sorted.end());
  return static_cast<double>(sorted[sorted.size() / 2]);
}

double Counts::spread() const {
  const auto [least, most] = std::minmax_element(counts_.begin(), counts_.end());
  return static_cast<double>(*most - *least) / median();
}

void Report::add(const std::string& name, double value, double spread,
                 const std::vector<Rival>& rivals) {
  const auto cheapest =
      std::min_element(rivals.begin(), rivals.end(),
                       [](const Rival& a, const Rival& b) { return a.value < b.value; });
  const double ratio = value / cheapest->value;
  results_.push_back({{"name", name},
                      {"value", value},
                      {"unit", kUnit},
                      {"spread", spread},
                      {"compared_with", cheapest->name},
                      {"ratio", ratio},
                      {"goal", "< 1"},
                      {"met", ratio < 1}});
  for (const Rival& rival : rivals) note(name + ": " + rival.name, rival.value, {"ours", value});
}

void Report::note(const std::string& name, double value, const Rival& rival) {
  results_.push_back({{"name", name},
                      {"value", value},
                      {"unit", kUnit},
                      {"compared_with", rival.name},
                      {"ratio", value / rival.value},
                      {"goal", nullptr},
                      {"met", nullptr}});
}

}  // namespace kintsugi::bench
