// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/memory_limit.h"

#include <fmt/format.h>
#include <sys/sysinfo.h>

#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

namespace kintsugi {
namespace {

// "max", and version 1's number beyond any memory, are no limit: the machine has less anyway.
std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t number = 0;
  if (!(file >> number)) return std::nullopt;
  return number;
}

Bytes machine_ram(const std::string& proc) {
  std::ifstream file(proc + "/meminfo");
  std::string word;
  std::uint64_t kib = 0;
  while (file >> word) {
    if (word == "MemTotal:" && file >> kib) return Bytes{kib << 10};
  }
  // A service may not see it.
  struct sysinfo info {};
  if (sysinfo(&info) != 0) return Bytes{std::numeric_limits<std::uint64_t>::max()};
  return Bytes{std::uint64_t{info.totalram} * info.mem_unit};
}

// `group` and everything above it, below `mount`.
void look_up(const std::string& mount, std::string group, const char* name, MemoryLimit* least) {
  for (;;) {
    const std::optional<std::uint64_t> limit = read_number(mount + group + "/" + name);
    if (limit && *limit < least->bytes.value) {
      least->bytes = Bytes{*limit};
      least->where = fmt::format("{} of the control group {}", name, group.empty() ? "/" : group);
    }
    if (group.empty()) return;
    group.resize(group.find_last_of('/'));
  }
}

}  // namespace

MemoryLimit memory_limit(const std::string& proc, const std::string& sys) {
  MemoryLimit least{machine_ram(proc), "this machine's RAM"};
  std::ifstream groups(proc + "/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // hierarchy:controllers:path
    std::istringstream fields(line);
    std::string hierarchy, controllers, path;
    if (!std::getline(fields, hierarchy, ':') || !std::getline(fields, controllers, ':') ||
        !std::getline(fields, path)) {
      continue;
    }
    if (path == "/") path.clear();
    if (!path.empty() && path.front() != '/') continue;
    if (controllers.empty()) {
      look_up(sys + "/fs/cgroup", path, "memory.max", &least);
    } else if (("," + controllers + ",").find(",memory,") != std::string::npos) {
      look_up(sys + "/fs/cgroup/memory", path, "memory.limit_in_bytes", &least);
    }
  }
  return least;
}

}  // namespace kintsugi
