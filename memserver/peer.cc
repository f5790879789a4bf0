// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/peer.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <new>
#include <utility>

#include "memserver/text.h"

namespace kintsugi::memserver {

void Peer::start(int fd, Channel::Options options, TimePoint now) {
  started_ = now;
  channel_ = std::make_unique<Channel>(&peers_->sessions(), &peers_->stats(), std::move(options));
  socket_ = peers_->loop().adopt(fd, this);
  pump();
}

template <typename Step>
void Peer::guarded(Step step) {
  try {
    step();
  } catch (const std::bad_alloc&) {
    spdlog::error("{}: no memory for its requests: connection closed", channel_->peer());
    close();
  }
}

void Peer::pump() {
  guarded([this] { go_on(); });
}

void Peer::go_on() {
  if (!closed_ && !sending_) {
    if (const std::span<const std::uint8_t> out = channel_->take_output(); !out.empty()) {
      send_iov_ = {const_cast<std::uint8_t*>(out.data()), out.size()};
      sending_ = true;
      outputs_++;
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

bool Peer::Progress::stuck(bool now_waiting, std::uint64_t now_part, std::uint64_t now_bytes,
                           TimePoint now) {
  if (waiting && now_waiting && part == now_part && now_bytes < bytes + kProgressBytes) {
    return now - since > kProgressTimeout;
  }
  *this = {now_waiting, now_part, now_bytes, now};
  return false;
}

std::optional<TimePoint> Peer::idle_since(TimePoint now) const {
  if (closed_ || channel_->bound() || channel_->closing()) return std::nullopt;
  const auto patience = channel_->greeted() ? kIdleBeforeGone : kSilentBeforeGone;
  if (now - started_ <= patience) return std::nullopt;
  return started_;
}

void Peer::check_timeouts(TimePoint now) {
  if (closed_) return;
  const Channel::Incoming in = channel_->incoming();
  const bool stuck_in = incoming_.stuck(in.partial && receiving_, in.request, in.bytes, now);
  const bool stuck_out = outgoing_.stuck(sending_, outputs_, sent_bytes_, now);
  if (stuck_in || stuck_out) {
    spdlog::warn("{}: {} for {} s: connection closed", channel_->peer(),
                 stuck_in ? "the rest of a request has not come" : "answers were not read",
                 kProgressTimeout.count());
    close();
    return;
  }
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
  guarded([&] {
    channel_->received(static_cast<std::size_t>(result));
    go_on();
  });
}

void Peer::on_sent(int result) {
  sending_ = false;
  if (result < 0) {
    if (!closed_) spdlog::info("{}: connection lost: {}", channel_->peer(), errno_text(-result));
    close();
    return;
  }
  const auto sent = static_cast<std::size_t>(result);
  sent_bytes_ += sent;
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
  std::shared_ptr<Peer> peer;
  try {
    peer = std::make_shared<Peer>(this);
    peers_.emplace(peer.get(), peer);
    if (options.offload) {
      // The channel may be gone when the work is done.
      options.offload = [offload = std::move(options.offload), weak = std::weak_ptr(peer)](
                            std::function<void()> work, std::function<void()> done) {
        offload(std::move(work), [weak, done = std::move(done)] {
          const std::shared_ptr<Peer> alive = weak.lock();
          if (!alive) return;
          alive->guarded(done);
          alive->pump();
        });
      };
    }
    peer->start(fd, std::move(options), sessions_->now());
  } catch (const std::bad_alloc&) {
    spdlog::error("no memory for another connection: closed");
    if (peer) peers_.erase(peer.get());
    if (!peer || !peer->socket_) ::close(fd);
    count(stats_->connections_closed);
  }
}

void Peers::close_all() {
  closing_ = true;
  for (auto at = peers_.begin(); at != peers_.end();) (at++)->second->close();
}

void Peers::check_timeouts() {
  bury();
  const TimePoint now = sessions_->now();
  for (auto at = peers_.begin(); at != peers_.end();) (at++)->second->check_timeouts(now);
}

void Peers::close_idle() {
  const TimePoint now = sessions_->now();
  Peer* oldest = nullptr;
  for (const auto& [address, peer] : peers_) {
    const std::optional<TimePoint> since = peer->idle_since(now);
    if (since && (!oldest || *since < *oldest->idle_since(now))) oldest = address;
  }
  if (!oldest) return;
  spdlog::warn("{}: without a session while others wait: connection closed",
               oldest->channel().peer());
  oldest->close();
}

void Peers::remove(Peer* peer) {
  const auto at = peers_.find(peer);
  if (at == peers_.end()) return;
  peer->next_gone_ = std::exchange(gone_, std::move(at->second));
  peers_.erase(at);
  count(stats_->connections_closed);
  try {
    loop_->post([this] { bury(); });
  } catch (const std::bad_alloc&) {
    // Then with the next check_timeouts().
  }
}

void Peers::bury() {
  while (gone_) gone_ = std::move(gone_->next_gone_);
}

}  // namespace kintsugi::memserver
