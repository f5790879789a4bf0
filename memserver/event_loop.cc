// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/event_loop.h"

#include <spdlog/spdlog.h>

namespace kintsugi::memserver {

Result<std::unique_ptr<EventLoop>> make_event_loop(LoopKind kind) {
  return make_event_loop(kind, make_uring_loop);
}

Result<std::unique_ptr<EventLoop>> make_event_loop(LoopKind kind, const LoopFactory& make_uring) {
  if (kind == LoopKind::kEpoll) return make_epoll_loop();
  Result<std::unique_ptr<EventLoop>> loop = make_uring();
  if (loop || kind == LoopKind::kUring) return loop;
  spdlog::info("{}; using epoll", loop.error().message);
  return make_epoll_loop();
}

}  // namespace kintsugi::memserver
