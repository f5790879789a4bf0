// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/peer.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <vector>

#include "memserver/text.h"

namespace kintsugi::memserver {

void Peer::start(int fd, Channel::Options options, TimePoint now) {
  started_ = now;
  channel_ = std::make_unique<Channel>(&peers_->sessions(), &peers_->stats(), std::move(options));
  socket_ = peers_->loop().adopt(fd, this);
  pump();
}

void Peer::pump() {
  if (!closed_ && !sending_) {
    if (const std::span<const std::uint8_t> out = channel_->take_output(); !out.empty()) {
      send_iov_ = {const_cast<std::uint8_t*>(out.data()), out.size()};
      sending_ = true;
      socket_->send({&send_iov_, 1});
    } else if (channel_->closing() && !lingering_) {
      begin_linger();
    }
  }
  if (!closed_ && !receiving_) {
    if (const std::size_t n = channel_->receive_buffers(receive_iov_); n > 0) {
      receiving_ = true;
      socket_->receive({receive_iov_.data(), n});
    }
  }
  if (closed_ && !receiving_ && !sending_) peers_->remove(this);
}

// A close with bytes unread would be a reset, and the reset could overtake our answer. So we say
// that we are done, and read until the peer is.
void Peer::begin_linger() {
  lingering_ = true;
  linger_since_ = peers_->sessions().now();
  socket_->shutdown_send();
}

void Peer::close() {
  if (!closed_) {
    closed_ = true;
    socket_->shutdown();
  }
  pump();
}

void Peer::check_timeouts(TimePoint now) {
  if (closed_) return;
  if (!channel_->greeted() && now - started_ > kHelloTimeout) {
    spdlog::warn("{}: no Hello within {} s: connection closed", channel_->peer(),
                 kHelloTimeout.count());
    close();
  } else if (lingering_ && now - linger_since_ > kLingerTimeout) {
    close();
  }
}

void Peer::on_received(int result) {
  receiving_ = false;
  if (result <= 0) {
    if (result < 0 && !closed_) {
      spdlog::info("{}: connection lost: {}", channel_->peer(), errno_text(-result));
    }
    close();
    return;
  }
  channel_->received(static_cast<std::size_t>(result));
  pump();
}

void Peer::on_sent(int result) {
  sending_ = false;
  if (result < 0) {
    if (!closed_) spdlog::info("{}: connection lost: {}", channel_->peer(), errno_text(-result));
    close();
    return;
  }
  const auto sent = static_cast<std::size_t>(result);
  if (sent < send_iov_.iov_len && !closed_) {
    send_iov_ = {static_cast<std::uint8_t*>(send_iov_.iov_base) + sent, send_iov_.iov_len - sent};
    sending_ = true;
    socket_->send({&send_iov_, 1});
    return;
  }
  channel_->output_sent();
  pump();
}

void Peers::add(int fd, Channel::Options options) {
  if (closing_) {
    ::close(fd);
    count(stats_->connections_closed);
    return;
  }
  auto peer = std::make_shared<Peer>(this);
  peers_.emplace(peer.get(), peer);
  if (options.offload) {
    // The channel may be gone when the work is done.
    options.offload = [offload = std::move(options.offload), weak = std::weak_ptr(peer)](
                          std::function<void()> work, std::function<void()> done) {
      offload(std::move(work), [weak, done = std::move(done)] {
        if (const std::shared_ptr<Peer> alive = weak.lock()) {
          done();
          alive->pump();
        }
      });
    };
  }
  peer->start(fd, std::move(options), sessions_->now());
}

void Peers::close_all() {
  closing_ = true;
  std::vector<std::shared_ptr<Peer>> all;
  for (const auto& [address, peer] : peers_) all.push_back(peer);
  for (const std::shared_ptr<Peer>& peer : all) peer->close();
}

void Peers::check_timeouts() {
  const TimePoint now = sessions_->now();
  std::vector<std::shared_ptr<Peer>> all;
  for (const auto& [address, peer] : peers_) all.push_back(peer);
  for (const std::shared_ptr<Peer>& peer : all) peer->check_timeouts(now);
}

void Peers::remove(Peer* peer) {
  const auto at = peers_.find(peer);
  if (at == peers_.end()) return;
  // Not here: we are inside one of its own calls.
  loop_->post([gone = std::move(at->second)] {});
  peers_.erase(at);
  count(stats_->connections_closed);
}

}  // namespace kintsugi::memserver
