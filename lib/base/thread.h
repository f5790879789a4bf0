// SPDX-License-Identifier: GPL-2.0-or-later
// Threads whose creation may fail: std::thread would throw, where nobody may.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/result.h"

namespace kintsugi {

// `name`: at most 15 bytes, as tools show it. The error says what to look at.
template <typename Body>
[[nodiscard]] Result<std::thread> start_thread(const std::string& name, Body&& body) {
  try {
    std::thread thread(std::forward<Body>(body));
    pthread_setname_np(thread.native_handle(), name.c_str());
    return thread;
  } catch (const std::system_error& error) {
    return make_error(error.code().value(),
                      "cannot start a thread ({}): {}: raise the limit on this user's or this "
                      "control group's tasks",
                      name, error.code().message());
  }
}

// Calls body(i) for each i below `count`, all at once, and returns when all are done. What gets no
// thread of its own is done by the caller, one after the other.
template <typename Body>
void for_each_at_once(std::size_t count, const Body& body) {
  std::vector<std::thread> threads;
  threads.reserve(count);
  for (std::size_t i = 0; i < count; i++) {
    Result<std::thread> thread = start_thread("ks-once", [&body, i] { body(i); });
    if (thread) {
      threads.push_back(std::move(*thread));
    } else {
      body(i);
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace kintsugi
