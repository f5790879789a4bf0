// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/protocol.h"

#include <cerrno>

namespace kintsugi::wire {
namespace {

bool has_payload_length(const FrameHeader& header, std::uint64_t expected) {
  return header.length == expected;
}

bool page_range_ok(const FrameHeader& header, std::uint64_t max_count) {
  return header.count >= 1 && header.count <= max_count && header.page <= UINT64_MAX - header.count;
}

// A mask says of at most 64 pages which are sent.
bool mask_ok(const FrameHeader& header) {
  if (header.mask == 0) return true;
  return header.op == static_cast<std::uint16_t>(Op::kPut) && header.count <= 64 &&
         static_cast<std::uint32_t>(std::bit_width(header.mask)) <= header.count;
}

// Payload length that a request of a known op must have; false when it does not.
bool request_length_ok(const FrameHeader& header, std::uint32_t tag_bytes) {
  switch (static_cast<Op>(header.op)) {
    case Op::kHello:
      return has_payload_length(header, sizeof(HelloRequest));
    case Op::kOpen:
      return has_payload_length(header, sizeof(OpenRequest));
    case Op::kAttach:
    case Op::kClaim:
    case Op::kReclaim:
    case Op::kOffer:
      return has_payload_length(header, sizeof(BindRequest));
    case Op::kPut:
      return page_range_ok(header, kMaxPagesPerFrame) &&
             has_payload_length(header, std::uint64_t{put_pages(header)} * (kPageSize + tag_bytes));
    case Op::kGet:
      return page_range_ok(header, kMaxPagesPerFrame) && has_payload_length(header, 0);
    case Op::kDiscard:
      return page_range_ok(header, UINT32_MAX) && has_payload_length(header, 0);
    case Op::kCommit:
    case Op::kDrop:
    case Op::kStat:
      return has_payload_length(header, 0);
  }
  return true;
}

// The same for replies: errors carry no payload, except Hello's, which tells the versions.
bool reply_length_ok(const FrameHeader& header, std::uint32_t tag_bytes) {
  const bool ok = header.status == static_cast<std::uint32_t>(Status::kOk);
  switch (static_cast<Op>(header.op)) {
    case Op::kHello:
      return has_payload_length(header, sizeof(HelloReply));
    case Op::kOpen:
    case Op::kAttach:
    case Op::kClaim:
    case Op::kReclaim:
    case Op::kStat:
      return has_payload_length(header, ok ? sizeof(SessionReply) : 0);
    case Op::kGet: {
      if (!ok) return has_payload_length(header, 0);
      if (!page_range_ok(header, kMaxPagesPerFrame)) return false;
      const std::uint32_t bitmap = get_bitmap_bytes(header.count);
      if (header.length < bitmap) return false;
      const std::uint64_t content = header.length - bitmap;
      return content % (kPageSize + tag_bytes) == 0 &&
             content / (kPageSize + tag_bytes) <= header.count;
    }
    case Op::kCommit:
    case Op::kOffer:
    case Op::kPut:
    case Op::kDiscard:
    case Op::kDrop:
      return has_payload_length(header, 0);
  }
  return true;
}

}  // namespace

const char* status_text(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kVersion:
      return "it speaks no protocol version that we speak: install matching releases on both sides";
    case Status::kBadRequest:
      return "it calls the request malformed or out of place";
    case Status::kNoSession:
      return "it has no such session: it was restarted without its arena file, or the session "
             "was dropped";
    case Status::kExists:
      return "it has a session of this VM already";
    case Status::kFull:
      return "it has not that much memory free: lower this sub-host's capacity or give the "
             "memory server more";
    case Status::kQuota:
      return "that is more than its quota for one VM: lower this sub-host's capacity or raise "
             "the memory server's --quota";
    case Status::kFenced:
      return "another host has taken this VM over since";
    case Status::kCommitted:
      return "the VM already runs on its new host";
    case Status::kTooMany:
      return "it has as many sessions or connections as it may have";
    case Status::kInternal:
      return "it failed inside: see the memory server's log";
    case Status::kStale:
      return "an earlier request of this host took effect unanswered: ask again";
    case Status::kGone:
      return "the session was ended there";
  }
  return "it answered with an unknown status";
}

int status_errno(Status status) {
  switch (status) {
    case Status::kOk:
      return 0;
    case Status::kVersion:
      return EPROTONOSUPPORT;
    case Status::kBadRequest:
      return EPROTO;
    case Status::kNoSession:
      return ENOENT;
    case Status::kExists:
      return EEXIST;
    case Status::kFull:
      return ENOSPC;
    case Status::kQuota:
      return EDQUOT;
    case Status::kFenced:
      return ESTALE;
    case Status::kCommitted:
      return EALREADY;
    case Status::kTooMany:
      return EUSERS;
    case Status::kInternal:
      return EREMOTEIO;
    case Status::kStale:
      return EAGAIN;
    case Status::kGone:
      return EIDRM;
  }
  return EPROTO;
}

Result<void> check_header(const FrameHeader& header, bool reply, std::uint32_t tag_bytes) {
  if (header.magic != kMagic) {
    return make_error(EPROTO, "this is not the Kintsugi page protocol (magic {:#010x})",
                      header.magic);
  }
  if ((header.flags & ~unsigned{kReply}) != 0 || ((header.flags & kReply) != 0) != reply) {
    return make_error(EPROTO, "frame with unexpected flags {:#x}", header.flags);
  }
  if (header.reserved != 0 || (reply && header.mask != 0)) {
    return make_error(EPROTO, "frame with reserved fields in use: a newer peer?");
  }
  if (header.length > kMaxPayloadBytes) {
    return make_error(EPROTO, "frame of {} bytes, the bound is {}", header.length,
                      kMaxPayloadBytes);
  }
  if (!reply && header.status != 0) {
    return make_error(EPROTO, "request with a status");
  }
  if (!mask_ok(header)) {
    return make_error(EPROTO, "frame of op {} with mask {:#x} for {} pages", header.op, header.mask,
                      header.count);
  }
  const bool length_ok =
      reply ? reply_length_ok(header, tag_bytes) : request_length_ok(header, tag_bytes);
  if (!length_ok) {
    return make_error(EPROTO, "frame of op {} with {} bytes for {} pages", header.op, header.length,
                      header.count);
  }
  return {};
}

}  // namespace kintsugi::wire
