// SPDX-License-Identifier: GPL-2.0-or-later
// One task of a thread that others depend on.
#pragma once

#include <spdlog/spdlog.h>

#include <new>

namespace kintsugi::memserver {

// A task for which there is no memory is given up, and the thread goes on.
template <typename Task>
void run_task(const Task& task) {
  try {
    task();
  } catch (const std::bad_alloc&) {
    spdlog::error("no memory: something was left undone; lower --capacity or free some");
  }
}

}  // namespace kintsugi::memserver
