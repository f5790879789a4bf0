// SPDX-License-Identifier: GPL-2.0-or-later
// The client's end of one connection to a memory server.
//
// Two ways to use it. Until it is bound, and for session calls, it is a blocking remote procedure
// call with a deadline. Once bound, its owner may pipeline frames itself with send_frame() and
// receive(), which never block longer than the io deadline either. A Connection belongs to one
// thread; only cancel() may be called from others.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "wire/protocol.h"
#include "wire/resolve.h"
#include "wire/uri.h"

namespace kintsugi::wire {

// Lets another thread interrupt blocking calls: they then fail with ECANCELED. Shared by all
// connections of one job. Thread-safe.
class Canceller {
 public:
  Canceller();
  ~Canceller();
  Canceller(const Canceller&) = delete;
  Canceller& operator=(const Canceller&) = delete;
  void cancel();
  [[nodiscard]] bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // Readable for ever once cancelled.
  [[nodiscard]] int fd() const { return fd_; }

 private:
  std::atomic<bool> cancelled_{false};
  int fd_ = -1;
};

struct ConnectOptions {
  // To look the name up and to connect to one of its addresses, all together.
  std::chrono::milliseconds connect_timeout{5000};
  // A peer that moves no byte for so long while we wait for it is taken for dead.
  std::chrono::milliseconds io_timeout{10000};
  Canceller* canceller = nullptr;  // may be null; outlives the connection
  Lookup lookup;                   // empty: the machine's; tests have their own
};

// What Open, Attach and Stat answer.
struct SessionInfo {
  Epoch epoch;
  SessionReply figures;
};

// What a request about ownership is answered: any status is an answer. `epoch` counts with kOk and
// kStale, `figures` with kOk of Open, Claim and Reclaim.
struct OwnershipInfo {
  Status status = Status::kOk;
  Epoch epoch;
  SessionReply figures;
};

// An Error for a connection to the server `name` that came to its end: `code` is what send or recv
// failed with, 0 where recv met the end of the stream.
[[nodiscard]] Error connection_lost(std::string_view name, int code);

class Connection {
 public:
  // Connects and says Hello. Errors name the server and what to look at.
  [[nodiscard]] static Result<std::unique_ptr<Connection>> connect(const Uri& uri,
                                                                   const ConnectOptions& options);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  [[nodiscard]] const HelloReply& server() const { return server_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] Epoch epoch() const { return epoch_; }
  [[nodiscard]] int fd() const { return fd_; }

  // Session calls. Each sends one request and waits for its answer, so none may be made while
  // pipelined requests are outstanding. A refusal's Error carries status_errno().
  [[nodiscard]] Result<SessionInfo> open(const OpenRequest& request);
  [[nodiscard]] Result<SessionInfo> attach(const SessionId& session, Epoch epoch);
  [[nodiscard]] Result<void> drop();
  [[nodiscard]] Result<SessionInfo> stat();

  // The same in two halves, so that many servers can be asked at once by one thread.
  [[nodiscard]] Result<void> send_attach(const SessionId& session, Epoch epoch);
  [[nodiscard]] Result<SessionInfo> receive_attach();
  // Offer, Claim, Reclaim, Commit and Drop of the ownership protocol (lib/handover). Offer, Commit
  // and Drop need the connection to be bound in `epoch`. Errors: no answer, so that it may or may
  // not have taken effect.
  [[nodiscard]] Result<void> send_ownership(Op op, const SessionId& session, Epoch epoch,
                                            const Ticket& ticket);
  [[nodiscard]] Result<OwnershipInfo> receive_ownership();
  [[nodiscard]] Result<OwnershipInfo> ask_ownership(Op op, const SessionId& session, Epoch epoch,
                                                    const Ticket& ticket);
  // The same for an Open, whose payload is longer.
  [[nodiscard]] Result<OwnershipInfo> ask_open(const OpenRequest& request);

  // Fills a request's header for this binding.
  [[nodiscard]] FrameHeader request(Op op, std::uint64_t seq) const;
  // Sends `header` and `payload` whole. `payload` is consumed (its iovecs are advanced).
  [[nodiscard]] Result<void> send_frame(const FrameHeader& header, std::span<iovec> payload);
  // Sends whole frames that the caller laid out, headers and payloads. Consumes `frames`.
  [[nodiscard]] Result<void> send_iovecs(std::span<iovec> frames);
  // Receives and checks one reply header; then receive() takes its payload, exactly header.length
  // bytes in all.
  [[nodiscard]] Result<FrameHeader> receive_header();
  // The same for replies that have no payload, all of `headers`.
  [[nodiscard]] Result<void> receive_headers(std::span<FrameHeader> headers);
  [[nodiscard]] Result<void> receive(void* data, std::size_t bytes);

  // An Error for a reply whose status is not kOk: "memory server NAME refused to WHAT: WHY".
  [[nodiscard]] Error refusal(Status status, const char* what) const;

 private:
  Connection(int fd, std::string name, const ConnectOptions& options);
  [[nodiscard]] Result<void> wait(short events, const char* doing);
  [[nodiscard]] Result<void> check_reply(const FrameHeader& header) const;
  [[nodiscard]] Result<void> send_call(Op op, Epoch epoch, const void* payload, std::size_t bytes);
  // The answer to the last send_call(); `figures`, if not null, is what kOk carries. Binds.
  [[nodiscard]] Result<FrameHeader> receive_call(SessionReply* figures);
  [[nodiscard]] Result<SessionInfo> receive_bound(const char* what);
  [[nodiscard]] Result<void> hello();

  int fd_;
  std::string name_;
  ConnectOptions options_;
  HelloReply server_;
  Epoch epoch_;
  std::uint32_t tag_bytes_ = 0;
  std::uint64_t next_seq_ = 1;
  Op called_ = Op::kHello;  // by the last send_call()
};

}  // namespace kintsugi::wire
