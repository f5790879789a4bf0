// SPDX-License-Identifier: GPL-2.0-or-later
#include "tools/sim_report.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace kintsugi::tools {
namespace {

using nlohmann::json;

constexpr double kMb = 1e6;

json object_of(const SimulationResult& result) {
  json scans = json::array();
  for (const SimulatedScan& scan : result.scans) {
    scans.push_back(
        {{"fast_bytes", scan.fast_bytes}, {"slow_bytes", scan.slow_bytes}, {"swaps", scan.swaps}});
  }
  return {{"policy", result.policy},
          {"fast_page_writes", result.fast_writes},
          {"slow_page_writes", result.slow_writes},
          {"fast_bytes", result.fast_bytes},
          {"slow_bytes", result.slow_bytes},
          {"copied_bytes", result.copied_bytes()},
          {"slow_bytes_with_copies", result.slow_bytes_with_copies()},
          {"hit_share", result.hit_share()},
          {"swaps", result.swaps},
          {"peak_tracked_pages", result.peak_tracked_pages},
          {"peak_memory_bytes", result.peak_memory_bytes},
          {"scans", std::move(scans)}};
}

// "+12 %" above a bound; "" if there is none to compare with.
std::string above(double bytes, double bound) {
  if (bound <= 0) return bytes <= 0 ? "0 %" : "-";
  return fmt::format("{:+.1f} %", (bytes / bound - 1) * 100);
}

std::filesystem::path find_script() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  for (const char* relative : {"../share/kintsugi", "../../../scripts"}) {
    auto script = program.parent_path() / relative / "sim_plot.py";
    if (std::filesystem::exists(script, error)) return script;
  }
  return {};
}

}  // namespace

std::string to_table(const std::vector<SimReport>& reports) {
  std::string text;
  for (const SimReport& report : reports) {
    text += fmt::format("{}: {} pages, {} of them fast; bytes {}\n", report.workload,
                        report.pages.value, report.fast_pages.value,
                        report.metered ? "counted" : "assumed");
    text += fmt::format("  {:<14}{:>14}{:>14}{:>9}{:>10}{:>12}{:>12}\n", "policy", "slow MB",
                        "of it copies", "hits", "swaps", "over top-K", "over bound");
    for (const SimulationResult& result : report.results) {
      const auto bytes = static_cast<double>(result.slow_bytes_with_copies());
      text += fmt::format("  {:<14}{:>14.1f}{:>14.1f}{:>7.2f} %{:>10}", result.policy, bytes / kMb,
                          static_cast<double>(result.copied_bytes()) / kMb,
                          result.hit_share() * 100, result.swaps);
      if (report.bounds) {
        text += fmt::format("{:>12}{:>12}", above(bytes, report.bounds->top_k_bytes),
                            above(bytes, report.bounds->lagrangian_bytes));
      }
      text += '\n';
    }
    if (report.bounds) {
      text += fmt::format("  {:<14}{:>14.1f}\n  {:<14}{:>14.1f}\n", "top-K",
                          report.bounds->top_k_bytes / kMb, "Lagrangian",
                          report.bounds->lagrangian_bytes / kMb);
    }
  }
  return text;
}

std::string to_json(const std::vector<SimReport>& reports) {
  json all = json::array();
  for (const SimReport& report : reports) {
    json results = json::array();
    for (const SimulationResult& result : report.results) results.push_back(object_of(result));
    json object{{"workload", report.workload},
                {"pages", report.pages.value},
                {"fast_pages", report.fast_pages.value},
                {"scans_per_decision", report.scans_per_decision},
                {"metered", report.metered},
                {"results", std::move(results)}};
    if (report.bounds) {
      object["bounds"] = {{"top_k_bytes", report.bounds->top_k_bytes},
                          {"lagrangian_bytes", report.bounds->lagrangian_bytes}};
    }
    all.push_back(std::move(object));
  }
  return all.dump(1) + "\n";
}

Result<void> plot(const std::vector<SimReport>& reports, const std::string& file) {
  const std::string script = find_script().string();
  if (script.empty()) {
    return make_error(ENOENT, "cannot draw {}: sim_plot.py is not beside this program", file);
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return make_error(errno, "cannot draw {}: {}", file, std::strerror(errno));
  }
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[0], STDIN_FILENO);
    execl("/usr/bin/python3", "python3", script.c_str(), file.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  close(ends[0]);
  std::string text = to_json(reports);
  // A child that has ended already is told by its status, not by SIGPIPE.
  FILE* to = fdopen(ends[1], "w");
  std::signal(SIGPIPE, SIG_IGN);
  std::fwrite(text.data(), 1, text.size(), to);
  std::fclose(to);
  int status = -1;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    return make_error(EIO,
                      "cannot draw {}: /usr/bin/python3 {} failed; it needs python3-matplotlib",
                      file, script);
  }
  return {};
}

}  // namespace kintsugi::tools
