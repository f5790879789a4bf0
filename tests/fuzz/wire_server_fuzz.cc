// SPDX-License-Identifier: GPL-2.0-or-later
// The server's side of the page protocol, fed by four clients that send what they like.
//
// The input is a list of steps. The first byte of a step: bits 0..1 say which client, bits 2..7
// what it does: 63 hangs up and connects anew, 62 takes what the server has to say, anything else
// sends the next bytes, as many as the two bytes that follow tell (little-endian), in pieces of
// 97 * (that + 1) bytes. A client that never takes its answers is held back by the server; what it
// would have sent is lost.
//
// After each input: every answer was well-formed, every slot is accounted for, and dropping all
// sessions gives everything back.
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "memserver/channel.h"

namespace kintsugi::memserver {
namespace {

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

struct Fixture {
  Fixture() {
    spdlog::set_level(spdlog::level::off);
    ArenaOptions options;
    options.capacity = PageCount{64};
    options.max_sessions = 4;
    arena = std::move(*Arena::open(options));
    SessionLimits limits;
    limits.quota = PageCount{40};
    limits.tombstone_timeout = std::chrono::seconds(0);  // the next input uses the ids again
    sessions = std::move(*Sessions::create(arena.get(), limits));
    all_slots = arena->free_slots();
  }
  Stats stats;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<Sessions> sessions;
  std::uint64_t all_slots = 0;
};

class Client {
 public:
  explicit Client(Fixture* f) : fixture_(f) { connect(); }

  void connect() {
    channel_.reset();
    output_.clear();
    tag_bytes_ = 0;
    channel_ =
        std::make_unique<Channel>(fixture_->sessions.get(), &fixture_->stats, Channel::Options{});
  }

  void send(const std::uint8_t* data, std::size_t bytes, std::size_t step) {
    while (bytes > 0) {
      std::array<iovec, Channel::kMaxIovecs> iov;
      const std::size_t n = channel_->receive_buffers(iov);
      if (n == 0) return;
      std::size_t done = 0;
      const std::size_t now = std::min(step, bytes);
      for (std::size_t i = 0; i < n && done < now; i++) {
        check(iov[i].iov_len > 0, "an empty buffer");
        const std::size_t part = std::min(iov[i].iov_len, now - done);
        std::memcpy(iov[i].iov_base, data + done, part);
        done += part;
      }
      channel_->received(done);
      data += done;
      bytes -= done;
      check(channel_->output_bytes() < 4 * Channel::kOutputLimit, "unbounded output");
    }
  }

  void take_output() {
    const std::span<const std::uint8_t> out = channel_->take_output();
    if (out.empty()) return;
    output_.insert(output_.end(), out.begin(), out.end());
    channel_->output_sent();
    std::size_t at = 0;
    while (output_.size() - at >= sizeof(wire::FrameHeader)) {
      wire::FrameHeader header;
      std::memcpy(&header, output_.data() + at, sizeof(header));
      check(wire::check_header(header, true, tag_bytes_).ok(), "a malformed answer");
      at += sizeof(header);
      check(output_.size() - at >= header.length, "an answer cut short");
      const auto op = static_cast<wire::Op>(header.op);
      const bool binds = op == wire::Op::kOpen || op == wire::Op::kAttach ||
                         op == wire::Op::kClaim || op == wire::Op::kReclaim;
      if (binds && header.status == 0) {
        wire::SessionReply figures;
        check(wire::read_payload({output_.data() + at, header.length}, &figures), "figures");
        tag_bytes_ = figures.tag_bytes;
      }
      at += header.length;
    }
    check(at == output_.size(), "half an answer");
    output_.clear();
  }
  void hang_up() { channel_.reset(); }

 private:
  Fixture* const fixture_;
  std::unique_ptr<Channel> channel_;
  std::vector<std::uint8_t> output_;
  std::uint32_t tag_bytes_ = 0;
};

void run(std::span<const std::uint8_t> input) {
  static Fixture fixture;
  {
    std::vector<Client> clients;
    clients.reserve(4);
    for (int i = 0; i < 4; i++) clients.emplace_back(&fixture);
    while (!input.empty()) {
      Client& client = clients[input[0] & 3];
      const std::size_t action = input[0] >> 2;
      input = input.subspan(1);
      if (action == 63) {
        client.connect();
      } else if (action == 62) {
        client.take_output();
      } else {
        if (input.size() < 2) break;
        const std::size_t asked = input[0] | input[1] << 8;
        input = input.subspan(2);
        const std::size_t bytes = std::min(asked, input.size());
        client.send(input.data(), bytes, 97 * (action + 1));
        input = input.subspan(bytes);
      }
    }
    for (Client& client : clients) {
      client.take_output();
      client.hang_up();
    }
  }
  std::uint64_t used = 0;
  std::uint64_t reserved = 0;
  for (const std::shared_ptr<Session>& session : fixture.sessions->list()) {
    const Session::Figures figures = session->figures();
    check(!figures.ended && figures.connections == 0, "a session is held by nobody");
    check(figures.used_pages <= session->capacity_pages(), "more than the capacity");
    used += figures.used_pages;
    reserved += session->capacity_pages();
  }
  check(fixture.arena->free_slots() == fixture.all_slots - used, "slots are lost");
  check(fixture.sessions->reserved().value == reserved && reserved <= 64, "reservations");
  for (const std::shared_ptr<Session>& session : fixture.sessions->list()) {
    check(session->end_by_operator(true), "dropping");
    fixture.sessions->free_ended(session);
  }
  fixture.sessions->expire();  // the tombstones
  check(fixture.arena->free_slots() == fixture.all_slots, "slots are lost after all drops");
  check(fixture.sessions->reserved().value == 0, "reservations after all drops");
}

}  // namespace
}  // namespace kintsugi::memserver

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kintsugi::memserver::run({data, size});
  return 0;
}
