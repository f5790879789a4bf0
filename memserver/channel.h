// SPDX-License-Identifier: GPL-2.0-or-later
// The server's side of the page protocol on one connection: bytes in, replies out. It knows no
// socket, so tests and fuzzers drive it with arrays; docs/wire-protocol.md is its specification.
//
// Whoever drives it asks receive_buffers() where the next bytes go, puts them there, and calls
// received(); then sends what take_output() gives and calls output_sent(). A Put's pages go from
// the socket to the arena's slots without a copy, when it is big enough to be worth it.
//
// Bounds: kReceiveBytes of input, kOutputLimit plus one reply of output twice (one being filled,
// one being sent), one frame of payload; while more output than kOutputLimit waits, it takes no
// input. One thread at a time.
//
// Whatever takes input or gives output may throw std::bad_alloc. Then the channel is good for its
// destructor only, and other connections and sessions are as they were.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memserver/byte_buffer.h"
#include "memserver/sessions.h"
#include "memserver/stats.h"

namespace kintsugi::memserver {

// What a channel does when a request takes too long for a loop: `work` runs elsewhere, then `done`
// on the channel's own thread, unless the channel is gone by then. `done` may be called before
// this returns.
using Offload = std::function<void(std::function<void()> work, std::function<void()> done)>;

class Channel {
 public:
  static constexpr std::size_t kReceiveBytes = std::size_t{64} << 10;
  static constexpr std::size_t kOutputLimit = std::size_t{1} << 20;
  // What it takes at most: see above; a buffer that grows may be twice as big.
  static constexpr std::size_t kMaxBytes = kReceiveBytes + wire::kMaxPayloadBytes +
                                           4 * (kOutputLimit + std::size_t{wire::kMaxPayloadBytes});
  // iovecs that receive_buffers() may fill: a frame's slots and the receive buffer.
  static constexpr std::size_t kMaxIovecs = wire::kMaxPagesPerFrame + 1;

  struct Options {
    std::string peer = "?";  // for the log
    // The server has too many connections: say so at Hello.
    bool refuse = false;
    Offload offload;  // empty: work is done at once
  };

  // `sessions` and `stats` outlive the channel.
  Channel(Sessions* sessions, Stats* stats, Options options);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Fills `iov` with where the next bytes from the peer go and returns how many it filled; 0:
  // nothing is to be read now. They stay good until received(); output may be taken and sent in
  // between.
  std::size_t receive_buffers(std::span<iovec, kMaxIovecs> iov);
  // The peer sent `bytes` into these buffers, 0 when nothing came.
  void received(std::size_t bytes);

  // Begins sending all that waits: empty when nothing does, or while some is being sent. The bytes
  // stay until output_sent().
  [[nodiscard]] std::span<const std::uint8_t> take_output();
  void output_sent();

  // True once the connection is to be closed, after what take_output() still gives. Input is then
  // read and thrown away.
  [[nodiscard]] bool closing() const { return state_ == State::kClosing; }
  [[nodiscard]] bool greeted() const { return greeted_; }
  [[nodiscard]] bool bound() const { return session_ != nullptr; }
  // Whether the rest of a request is to come, which of them that is, and how much of it is here.
  struct Incoming {
    bool partial;
    std::uint64_t request;
    std::size_t bytes;
  };
  [[nodiscard]] Incoming incoming() const {
    const bool payload =
        state_ == State::kPutSlots || state_ == State::kPutBounce || state_ == State::kSkip;
    return {payload || input_bytes() > 0, requests_, payload ? payload_done_ : input_bytes()};
  }
  // Output in memory, waiting and being sent.
  [[nodiscard]] std::size_t output_bytes() const { return pending_.size() + sending_.size(); }
  [[nodiscard]] const std::string& peer() const { return options_.peer; }

 private:
  enum class State {
    kHeader,     // a header and a small payload come next
    kPutSlots,   // a Put's payload, into slots
    kPutBounce,  // a Put's payload, into bounce_
    kSkip,       // payload of a refused Put
    kWaiting,    // for offloaded work
    kClosing,
  };
  // A payload of which less than this is missing is read by way of the receive buffer.
  static constexpr std::size_t kDirectBytes = std::size_t{16} << 10;
  // What of the receive buffer is offered behind it, or next: a header, and a page. More would have
  // to be copied if it is of another big Put, as is likely.
  static constexpr std::size_t kTailBytes = sizeof(wire::FrameHeader) + kPageSize;

  void process();
  void take_header();
  // Each handles what is at the front of the input; false: more input is needed, or none may be
  // handled now.
  bool process_header();
  bool process_put();
  bool process_skip();

  void handle_hello();
  void handle_open();
  void handle_bind(wire::Op op);
  void handle_ownership(wire::Op op);
  void handle_stat();
  void handle_get();
  void handle_discard();
  void handle_drop();
  void finish_binding(const BindAnswer& answer, std::shared_ptr<Session> session);
  // False: the request is not of a bound connection, in its epoch and within the VM; kBadRequest
  // has then been answered.
  bool check_bound();
  void begin_put();
  void finish_put();
  void drop_put();
  void unbind();

  [[nodiscard]] std::size_t put_page_bytes() const;
  [[nodiscard]] std::size_t put_bytes() const;
  [[nodiscard]] bool after_big_put() const {
    return header_.op == static_cast<std::uint16_t>(wire::Op::kPut) &&
           header_.length >= kDirectBytes;
  }
  // Writes the part of a Put's payload from `offset` on that lies together; at most `limit`.
  [[nodiscard]] std::span<std::uint8_t> put_target(std::size_t offset, std::size_t limit);

  void reply(wire::Status status, std::uint64_t epoch = 0,
             std::span<const std::uint8_t> payload = {});
  void refuse(wire::Status status, std::uint64_t epoch = 0);
  // kBadRequest, and the end of the connection.
  void fail(const std::string& why);

  [[nodiscard]] std::size_t input_bytes() const { return input_end_ - input_begin_; }
  [[nodiscard]] const std::uint8_t* input() const { return input_.get() + input_begin_; }
  void consume(std::size_t bytes) { input_begin_ += bytes; }

  Sessions* const sessions_;
  Stats* const stats_;
  const Options options_;
  State state_ = State::kHeader;
  std::uint64_t requests_ = 0;  // whose header was read
  bool greeted_ = false;
  std::shared_ptr<Session> session_;
  std::uint64_t epoch_ = 0;  // of the binding
  std::uint32_t tag_bytes_ = 0;

  std::unique_ptr<std::uint8_t[]> input_;
  std::size_t input_begin_ = 0, input_end_ = 0;
  std::size_t direct_bytes_ = 0;  // of the buffers handed out, those that are not the input buffer

  wire::FrameHeader header_;      // of the request at hand
  std::size_t payload_done_ = 0;  // bytes of its payload that are where they belong
  std::array<SlotIndex, wire::kMaxPagesPerFrame> slots_{};
  std::size_t slots_held_ = 0;       // of these, not published
  std::size_t slots_in_flight_ = 0;  // as the arena counts them
  AllocationHint hint_;
  std::unique_ptr<std::uint8_t[]> put_tags_;  // of a Put in flight; with the first that has some
  std::unique_ptr<std::uint8_t[]> bounce_;    // only while it is needed
  wire::Status skip_status_ = wire::Status::kOk;

  ByteBuffer pending_, sending_;
};

}  // namespace kintsugi::memserver
