// SPDX-License-Identifier: GPL-2.0-or-later
// How much memory this process may use: the machine's, or less if a control group says so.
#pragma once

#include <string>

#include "base/types.h"

namespace kintsugi {

struct MemoryLimit {
  Bytes bytes;
  std::string where;  // for a sentence: "this machine's RAM", "the control group's memory.max"
};

// The smallest limit of the process's memory control group and those above it, version 1 or 2, and
// the machine's RAM. `proc` and `sys` are /proc and /sys but for tests. Any thread.
[[nodiscard]] MemoryLimit memory_limit(const std::string& proc = "/proc",
                                       const std::string& sys = "/sys");

}  // namespace kintsugi
