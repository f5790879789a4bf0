// SPDX-License-Identifier: GPL-2.0-or-later
// What the memory server's tests share: temporary directories, a clock that a test winds, and a
// client that talks to a Channel without a socket.
#pragma once

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "memserver/channel.h"
#include "memserver/sessions.h"

namespace kintsugi::memserver::testing {

// The log would bury what a test says; KINTSUGI_TEST_LOG=debug shows it.
inline const bool log_is_set = [] {
  const char* level = std::getenv("KINTSUGI_TEST_LOG");
  spdlog::set_level(level ? spdlog::level::from_str(level) : spdlog::level::off);
  return true;
}();

class TempDir {
 public:
  TempDir() {
    // tmpfs where there is one: it is what arenas are meant to be on.
    std::string name = std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : "/tmp";
    name += "/kintsugi-test-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

class FakeClock {
 public:
  [[nodiscard]] Clock clock() {
    return [this] { return now_; };
  }
  void advance(std::chrono::milliseconds by) { now_ += by; }

 private:
  TimePoint now_{std::chrono::hours(1)};
};

inline ArenaOptions small_arena(std::uint64_t pages = 1024, const std::string& path = "") {
  ArenaOptions options;
  options.capacity = PageCount{pages};
  options.path = path;
  options.max_sessions = 8;
  return options;
}

inline wire::SessionId session_id(std::uint8_t n) {
  wire::SessionId id{};
  id.fill(n);
  return id;
}

inline wire::OpenRequest open_request(std::uint8_t n, std::uint64_t capacity = 256,
                                      std::uint64_t vm_pages = 4096, std::uint32_t tag_bytes = 0) {
  wire::OpenRequest request;
  request.session = session_id(n);
  request.vm_pages = vm_pages;
  request.capacity_pages = capacity;
  request.tag_bytes = tag_bytes;
  std::snprintf(request.name, sizeof(request.name), "vm%u", n);
  return request;
}

// A page whose every 8 bytes tell which page it is and which version.
inline void fill_page(std::uint8_t* at, std::uint64_t page, std::uint64_t version) {
  for (std::size_t i = 0; i < kPageSize / 8; i++) {
    const std::uint64_t word = (page << 32) ^ (version << 12) ^ i;
    std::memcpy(at + i * 8, &word, 8);
  }
}
inline std::vector<std::uint8_t> make_pages(std::uint64_t page, std::uint32_t count,
                                            std::uint64_t version) {
  std::vector<std::uint8_t> bytes(count * kPageSize);
  for (std::uint32_t i = 0; i < count; i++) {
    fill_page(bytes.data() + i * kPageSize, page + i, version);
  }
  return bytes;
}

struct Reply {
  wire::FrameHeader header;
  std::vector<std::uint8_t> payload;
  [[nodiscard]] wire::Status status() const { return static_cast<wire::Status>(header.status); }
};

// An arena with its sessions, as a server has them.
struct Store {
  // The arbiters of its sessions cannot be reached, unless a test says what they answer.
  static Result<handover::Answer> no_arbiter(const std::string&, const wire::SessionId&) {
    return make_error(EHOSTUNREACH, "there is no arbiter");
  }
  explicit Store(const ArenaOptions& options, SessionLimits limits = {},
                 ArenaMemory* memory = nullptr, AskArbiter ask = &no_arbiter) {
    Result<std::unique_ptr<Arena>> a = Arena::open(options, memory);
    if (!a) throw std::runtime_error(a.error().message);
    arena = std::move(*a);
    Result<std::unique_ptr<Sessions>> s =
        Sessions::create(arena.get(), limits, clock.clock(), std::move(ask));
    if (!s) throw std::runtime_error(s.error().message);
    sessions = std::move(*s);
  }
  [[nodiscard]] std::uint64_t all_slots() const {
    return (arena->capacity().value + Arena::kSpareSlots + SlotAllocator::kExtentSlots - 1) /
           SlotAllocator::kExtentSlots * SlotAllocator::kExtentSlots;
  }
  FakeClock clock;
  Stats stats;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<Sessions> sessions;
};

// The client's end of a Channel.
class ChannelClient {
 public:
  explicit ChannelClient(Store* store, Channel::Options options = {})
      : channel(
            std::make_unique<Channel>(store->sessions.get(), &store->stats, std::move(options))) {}

  // Feeds bytes, `step` at a time at most; returns how many the channel took.
  std::size_t feed(const void* data, std::size_t bytes, std::size_t step = SIZE_MAX) {
    const auto* at = static_cast<const std::uint8_t*>(data);
    std::size_t fed = 0;
    while (fed < bytes) {
      std::array<iovec, Channel::kMaxIovecs> iov;
      const std::size_t n = channel->receive_buffers(iov);
      if (n == 0) {
        if (!drain_on_block || !collect()) break;
        continue;
      }
      std::size_t done = 0;
      const std::size_t now = std::min(step, bytes - fed);
      for (std::size_t i = 0; i < n && done < now; i++) {
        const std::size_t part = std::min(iov[i].iov_len, now - done);
        std::memcpy(iov[i].iov_base, at + fed + done, part);
        done += part;
      }
      channel->received(done);
      fed += done;
    }
    return fed;
  }

  // Takes what the channel has to say; false when that is nothing.
  bool collect() {
    bool any = false;
    for (;;) {
      const std::span<const std::uint8_t> out = channel->take_output();
      if (out.empty()) break;
      output.insert(output.end(), out.begin(), out.end());
      channel->output_sent();
      any = true;
    }
    std::size_t at = 0;
    while (output.size() - at >= sizeof(wire::FrameHeader)) {
      Reply reply;
      std::memcpy(&reply.header, output.data() + at, sizeof(reply.header));
      if (output.size() - at - sizeof(reply.header) < reply.header.length) break;
      at += sizeof(reply.header);
      reply.payload.assign(output.begin() + static_cast<std::ptrdiff_t>(at),
                           output.begin() + static_cast<std::ptrdiff_t>(at + reply.header.length));
      at += reply.header.length;
      const Result<void> checked = wire::check_header(reply.header, true, tag_bytes);
      EXPECT_TRUE(checked.ok()) << checked.error().message;
      replies.push_back(std::move(reply));
    }
    output.erase(output.begin(), output.begin() + static_cast<std::ptrdiff_t>(at));
    return any;
  }

  wire::FrameHeader request(wire::Op op, std::uint64_t page = 0, std::uint32_t count = 0) {
    wire::FrameHeader header;
    header.op = static_cast<std::uint16_t>(op);
    header.seq = next_seq++;
    header.epoch = epoch;
    header.page = page;
    header.count = count;
    if (op == wire::Op::kDiscard) header.version = UINT64_MAX;
    return header;
  }

  void post(wire::FrameHeader header, std::span<const std::uint8_t> payload = {},
            std::size_t step = SIZE_MAX) {
    header.length = static_cast<std::uint32_t>(payload.size());
    std::vector<std::uint8_t> frame(sizeof(header) + payload.size());
    std::memcpy(frame.data(), &header, sizeof(header));
    if (!payload.empty()) {
      std::memcpy(frame.data() + sizeof(header), payload.data(), payload.size());
    }
    feed(frame.data(), frame.size(), step);
  }
  // The oldest reply not taken yet.
  Reply take() {
    collect();
    if (replies.empty()) {
      ADD_FAILURE() << "no reply";
      return {};
    }
    Reply reply = std::move(replies.front());
    replies.pop_front();
    return reply;
  }
  Reply call(const wire::FrameHeader& header, std::span<const std::uint8_t> payload = {},
             std::size_t step = SIZE_MAX) {
    post(header, payload, step);
    Reply reply = take();
    EXPECT_EQ(reply.header.seq, header.seq);
    EXPECT_EQ(reply.header.op, header.op);
    return reply;
  }
  template <typename T>
  static std::span<const std::uint8_t> bytes_of(const T& value) {
    return {reinterpret_cast<const std::uint8_t*>(&value), sizeof(value)};
  }

  wire::Status hello() {
    const wire::HelloRequest hello;
    return call(request(wire::Op::kHello), bytes_of(hello)).status();
  }
  wire::Status bound(const Reply& reply) {
    if (reply.status() == wire::Status::kOk) {
      epoch = reply.header.epoch;
      wire::SessionReply figures;
      EXPECT_TRUE(wire::read_payload(std::span(reply.payload), &figures));
      tag_bytes = figures.tag_bytes;
      last_figures = figures;
    }
    return reply.status();
  }
  wire::Status open(const wire::OpenRequest& r) {
    return bound(call(request(wire::Op::kOpen), bytes_of(r)));
  }
  wire::Status attach(std::uint8_t n, std::uint64_t at_epoch) {
    const wire::BindRequest r{session_id(n)};
    wire::FrameHeader header = request(wire::Op::kAttach);
    header.epoch = at_epoch;
    return bound(call(header, bytes_of(r)));
  }
  wire::Status bind(wire::Op op, std::uint8_t n, std::uint64_t at_epoch,
                    const wire::Ticket& ticket) {
    const wire::BindRequest r{session_id(n), ticket};
    wire::FrameHeader header = request(op);
    header.epoch = at_epoch;
    return bound(call(header, bytes_of(r)));
  }
  wire::Status claim(std::uint8_t n, std::uint64_t at_epoch, const wire::Ticket& ticket = {}) {
    return bind(wire::Op::kClaim, n, at_epoch, ticket);
  }
  wire::Status reclaim(std::uint8_t n, std::uint64_t at_epoch) {
    return bind(wire::Op::kReclaim, n, at_epoch, {});
  }
  wire::Status offer(std::uint8_t n, const wire::Ticket& ticket) {
    const wire::BindRequest r{session_id(n), ticket};
    return call(request(wire::Op::kOffer), bytes_of(r)).status();
  }
  wire::Status simple(wire::Op op) { return call(request(op)).status(); }
  wire::Status put(std::uint64_t page, std::uint32_t count, std::uint64_t version,
                   std::size_t step = SIZE_MAX, std::uint64_t mask = 0) {
    wire::FrameHeader header = request(wire::Op::kPut, page, count);
    header.version = version;
    header.mask = mask;
    std::vector<std::uint8_t> payload;
    std::vector<std::uint8_t> tags;
    wire::PutPages pages(header);
    for (std::uint32_t i = 0; i < wire::put_pages(header); i++) {
      const std::uint64_t at = pages.next();
      const std::vector<std::uint8_t> content = make_pages(at, 1, version);
      payload.insert(payload.end(), content.begin(), content.end());
      tags.insert(tags.end(), tag_bytes, static_cast<std::uint8_t>(at * 7 + version));
    }
    payload.insert(payload.end(), tags.begin(), tags.end());
    return call(header, payload, step).status();
  }
  // The version of every page that is there; checks that content and tags are of that version.
  std::map<std::uint64_t, std::uint64_t> get(std::uint64_t page, std::uint32_t count) {
    const Reply reply = call(request(wire::Op::kGet, page, count));
    EXPECT_EQ(reply.status(), wire::Status::kOk);
    return parse_get(reply);
  }
  std::map<std::uint64_t, std::uint64_t> parse_get(const Reply& reply) const {
    std::map<std::uint64_t, std::uint64_t> found;
    if (reply.status() != wire::Status::kOk) return found;
    const std::uint32_t count = reply.header.count;
    const std::uint8_t* bitmap = reply.payload.data();
    const std::uint8_t* at = bitmap + wire::get_bitmap_bytes(count);
    std::uint32_t stored = 0;
    for (std::uint32_t i = 0; i < count; i++) stored += bitmap[i / 8] >> (i % 8) & 1;
    EXPECT_EQ(reply.payload.size(),
              wire::get_bitmap_bytes(count) + stored * (kPageSize + tag_bytes));
    const std::uint8_t* tag = at + stored * kPageSize;
    for (std::uint32_t i = 0; i < count; i++) {
      if ((bitmap[i / 8] >> (i % 8) & 1) == 0) continue;
      const std::uint64_t page = reply.header.page + i;
      std::uint64_t first = 0;
      std::memcpy(&first, at, 8);
      const std::uint64_t version = (first ^ (page << 32)) >> 12;
      std::vector<std::uint8_t> expected(kPageSize);
      fill_page(expected.data(), page, version);
      EXPECT_EQ(std::memcmp(expected.data(), at, kPageSize), 0) << "page " << page << " is torn";
      for (std::uint32_t t = 0; t < tag_bytes; t++) {
        EXPECT_EQ(tag[t], static_cast<std::uint8_t>(page * 7 + version)) << "tag of " << page;
      }
      at += kPageSize;
      tag += tag_bytes;
      found[page] = version;
    }
    return found;
  }

  std::unique_ptr<Channel> channel;
  bool drain_on_block = true;
  std::vector<std::uint8_t> output;
  std::deque<Reply> replies;
  std::uint64_t next_seq = 1;
  std::uint64_t epoch = 0;
  std::uint32_t tag_bytes = 0;
  wire::SessionReply last_figures;
};

}  // namespace kintsugi::memserver::testing
