// SPDX-License-Identifier: GPL-2.0-or-later
#include "pager/lane_port.h"

#include <sys/epoll.h>

namespace kintsugi {

Result<void> LanePort::init(ServerLink* link, Lane lane, int epoll, std::uint32_t trigger,
                            std::size_t buffer_bytes) {
  link_ = link;
  lane_ = lane;
  epoll_ = epoll;
  trigger_ = trigger;
  Result<FrameReader> reader = FrameReader::create(buffer_bytes);
  if (!reader) return reader.error();
  reader_ = std::move(*reader);
  return {};
}

void LanePort::watch(int operation, std::uint32_t events) const {
  epoll_event event{};
  event.events = events | trigger_;
  event.data.u32 = server().value;
  epoll_ctl(epoll_, operation, connection().fd(), &event);
}

bool LanePort::renew(std::uint64_t now_ns, bool only_drop) {
  const std::uint64_t generation = link_->generation();
  if (connected() && (!link_->connected() || generation != at_.generation)) disconnect();
  if (only_drop || connected() || generation == at_.generation) return false;
  ServerLink::LaneConnection at = link_->lane(lane_);
  if (!at.connection) return false;
  at_ = std::move(at);
  reader_.reset();
  sender_.reset();
  made_progress(now_ns);
  watch(EPOLL_CTL_ADD, EPOLLIN);
  return true;
}

void LanePort::fail(const Error& error) {
  link_->fail(at_.generation, error);
  disconnect();
}

void LanePort::disconnect() {
  if (!connected()) return;
  epoll_ctl(epoll_, EPOLL_CTL_DEL, connection().fd(), nullptr);
  at_.connection.reset();
  writable_watched_ = false;
}

void LanePort::watch_writable(bool on) {
  if (on == writable_watched_) return;
  writable_watched_ = on;
  watch(EPOLL_CTL_MOD, on ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

bool LanePort::overdue(std::uint64_t now_ns, std::chrono::milliseconds io_timeout) const {
  const auto limit_ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(io_timeout).count());
  return connected() && now_ns >= progress_ns_ + limit_ns;
}

}  // namespace kintsugi
