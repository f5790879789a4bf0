// SPDX-License-Identifier: GPL-2.0-or-later
// The page protocol between a VM's hosts and its memory servers: frames as they are on the wire.
// docs/wire-protocol.md explains every byte; this header is its machine-readable half.
//
// A connection carries frames in both directions. A frame is a FrameHeader, little-endian, and
// `length` bytes of payload. Requests are pipelined and answered in their order; each answer
// repeats its request's `seq` and `op` with kReply set. The first frame of a connection is Hello; a
// connection is then bound to a session by Open, Attach, Claim or Reclaim, and from then on only
// speaks for that session, in the epoch that the last binding answer named. Who may ask for what is
// docs/ownership.md's subject.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/types.h"

namespace kintsugi::wire {

static_assert(std::endian::native == std::endian::little,
              "frames are copied to and from memory as they are");

inline constexpr std::uint32_t kMagic = 0x3147534b;  // "KSG1"
inline constexpr std::uint16_t kVersion = 2;         // the only one spoken
// Pages that one Put or Get may carry: bounds a frame at 1 MiB of content.
inline constexpr std::uint32_t kMaxPagesPerFrame = 256;
// Bytes of opaque tag that a page may carry (a nonce and a MAC, say). 0 in most sessions.
inline constexpr std::uint32_t kMaxTagBytes = 64;
inline constexpr std::size_t kMaxArbiterBytes = 256;
inline constexpr std::uint32_t kMaxPayloadBytes =
    kMaxPagesPerFrame * (static_cast<std::uint32_t>(kPageSize) + kMaxTagBytes) + 64;

enum class Op : std::uint16_t {
  kHello = 1,     // client's version range; answer: chosen version, what the server has free
  kOpen = 2,      // create a session, reserve its capacity and offer it; binds
  kAttach = 3,    // bind the connection to a session, in the epoch given
  kClaim = 4,     // the destination takes an offered session over: raises its epoch; binds
  kCommit = 5,    // the claiming side owns the VM for good
  kPut = 6,       // store pages
  kGet = 7,       // read pages; they stay until Discard or a newer Put
  kDiscard = 8,   // forget pages, but for newer ones
  kDrop = 9,      // end the session and free everything; a tombstone stays
  kStat = 10,     // figures of the bound session
  kOffer = 11,    // the owner lets whoever shows the ticket claim
  kReclaim = 12,  // the owner takes an offer back, claimed or not; binds. In epoch 0: only asks
  // 13..31 are kept for server-to-server transfer, replicas and STARTTLS.
};

enum FrameFlags : std::uint16_t {
  kReply = 1u << 0,
};

enum class Status : std::uint32_t {
  kOk = 0,
  kVersion = 1,     // no common protocol version
  kBadRequest = 2,  // malformed, or not allowed in this state of the connection
  kNoSession = 3,   // no such session here
  kExists = 4,      // Open: the session is there already, or its tombstone
  kFull = 5,        // Open: not that much capacity; Put: beyond the session's capacity
  kQuota = 6,       // Open: more than one VM may have here
  kFenced = 7,      // the epoch is not the one that may ask for this
  kCommitted = 8,   // Reclaim: the VM already runs elsewhere
  kTooMany = 9,     // sessions or connections beyond the server's bound
  kInternal = 10,   // the server could not do it; its log says why
  kStale = 11,  // Reclaim: only the asker itself has raised the epoch, to the reply's: ask again
  kGone = 12,   // the session was ended; Reclaim: nobody has committed it, and nobody can
};

// What each status means and what to change, as the end of a sentence for a user.
[[nodiscard]] const char* status_text(Status status);
// The errno a program decides by (0 for kOk).
[[nodiscard]] int status_errno(Status status);

// A struct as it goes over the wire: as it is in memory.
template <typename T>
[[nodiscard]] std::span<const std::uint8_t> bytes_of(const T& value) {
  return {reinterpret_cast<const std::uint8_t*>(&value), sizeof(value)};
}

using SessionId = std::array<std::uint8_t, 16>;  // random; names a VM's memory on all its servers
using Ticket = std::array<std::uint8_t, 16>;     // random; of one attempt to hand the VM over

struct FrameHeader {
  std::uint32_t magic = kMagic;
  std::uint16_t op = 0;
  std::uint16_t flags = 0;
  std::uint32_t length = 0;  // payload bytes that follow, <= kMaxPayloadBytes
  std::uint32_t status = 0;  // Status in a reply, 0 in a request
  std::uint64_t seq = 0;     // chosen by the client, repeated in the reply
  std::uint64_t epoch = 0;   // of the sender's binding; 0 before binding
  std::uint64_t page = 0;    // first page (Put, Get, Discard)
  std::uint32_t count = 0;   // pages
  std::uint32_t reserved = 0;
  // Put: the version the pages get. Servers keep the highest; a Put that is older than what is
  // stored is answered kOk and ignored. Discard: pages of a higher version stay. Get reply: the
  // lowest version among the pages returned.
  std::uint64_t version = 0;
  // Put: which of the pages are sent, bit i for page + i; then there are at most 64. 0: all.
  std::uint64_t mask = 0;
};
static_assert(sizeof(FrameHeader) == 64);

// Payload of Hello.
struct HelloRequest {
  std::uint16_t min_version = kVersion;
  std::uint16_t max_version = kVersion;
  std::uint32_t features = 0;  // none defined yet; TLS and others will be bits here
};
static_assert(sizeof(HelloRequest) == 8);

struct HelloReply {
  std::uint16_t version = 0;  // chosen; with Status::kVersion, the newest the server speaks
  std::uint16_t min_version = 0;
  std::uint32_t features = 0;
  std::uint64_t capacity_pages = 0;
  std::uint64_t free_pages = 0;              // not reserved by any session
  std::array<std::uint8_t, 16> server_id{};  // kept in the arena file: survives a restart with it
};
static_assert(sizeof(HelloReply) == 40);

// Payload of Open.
struct OpenRequest {
  SessionId session{};
  std::uint64_t vm_pages = 0;        // page indices 0..vm_pages-1 may be used
  std::uint64_t capacity_pages = 0;  // reserved until Drop
  std::uint32_t tag_bytes = 0;       // per page, <= kMaxTagBytes
  std::uint32_t reserved = 0;
  char name[64] = {};  // of the VM, for people; NUL-terminated
  Ticket ticket{};     // the first offer; an Open with the same one is the same Open once more
  // URI of the server that decides who owns the VM; empty: this one. NUL-terminated.
  char arbiter[kMaxArbiterBytes] = {};
};
static_assert(sizeof(OpenRequest) == 376);

// Payload of Attach, Claim, Reclaim and Offer: which session, and for Claim and Offer the ticket.
// The epoch is in the header.
struct BindRequest {
  SessionId session{};
  Ticket ticket{};
};
static_assert(sizeof(BindRequest) == 32);

// Payload of the replies to Open, Attach, Claim, Reclaim and Stat. The header's epoch is the
// session's.
struct SessionReply {
  std::uint64_t capacity_pages = 0;
  std::uint64_t used_pages = 0;
  std::uint64_t vm_pages = 0;
  std::uint32_t tag_bytes = 0;
  std::uint32_t committed = 0;     // 1 once Commit was granted
  std::uint64_t last_version = 0;  // the highest that was ever stored; 0: none
};
static_assert(sizeof(SessionReply) == 40);

// Put payload:  put_pages() * kPageSize bytes of pages, then put_pages() * tag_bytes of tags.
constexpr std::uint32_t put_pages(const FrameHeader& put) {
  return put.mask == 0 ? put.count : static_cast<std::uint32_t>(std::popcount(put.mask));
}

// The pages of a Put, in the payload's order.
class PutPages {
 public:
  PutPages(std::uint64_t first, std::uint64_t mask) : next_(first), first_(first), mask_(mask) {}
  explicit PutPages(const FrameHeader& put) : PutPages(put.page, put.mask) {}
  // The next one's number. Not to be called more than put_pages() times.
  std::uint64_t next() {
    if (mask_ == 0) return next_++;
    const auto bit = static_cast<std::uint64_t>(std::countr_zero(mask_));
    mask_ &= mask_ - 1;
    return first_ + bit;
  }

 private:
  std::uint64_t next_;
  std::uint64_t first_;
  std::uint64_t mask_;
};

// Get reply:    presence bitmap, get_bitmap_bytes(count) bytes, bit i (LSB first) set when page
//               page+i is stored; then the stored pages in order, then their tags in order.
//               The header's count repeats the request's.
constexpr std::uint32_t get_bitmap_bytes(std::uint32_t count) { return (count + 63) / 64 * 8; }

// Checks everything about a header that does not depend on a connection's state: magic, known
// flags, length bound, reserved fields, and for each known op the length and count it may have
// (with tag_bytes of the binding; 0 before). Never trusts a byte. `reply` says which direction
// is being read. Unknown ops pass with any length within bounds: a server answers kBadRequest.
[[nodiscard]] Result<void> check_header(const FrameHeader& header, bool reply,
                                        std::uint32_t tag_bytes);

// Reads a payload struct: false when `payload` is not exactly sizeof(T) bytes.
template <typename T>
[[nodiscard]] bool read_payload(std::span<const std::uint8_t> payload, T* out) {
  if (payload.size() != sizeof(T)) return false;
  __builtin_memcpy(out, payload.data(), sizeof(T));
  return true;
}

}  // namespace kintsugi::wire
