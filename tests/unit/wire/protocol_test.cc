// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/protocol.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstring>

namespace kintsugi::wire {
namespace {

FrameHeader put(std::uint32_t count, std::uint32_t tag_bytes) {
  FrameHeader header;
  header.op = static_cast<std::uint16_t>(Op::kPut);
  header.count = count;
  header.length = count * (kPageSize + tag_bytes);
  return header;
}

TEST(ProtocolTest, AcceptsWellFormedRequests) {
  EXPECT_TRUE(check_header(put(1, 0), false, 0));
  EXPECT_TRUE(check_header(put(kMaxPagesPerFrame, kMaxTagBytes), false, kMaxTagBytes));
  FrameHeader get;
  get.op = static_cast<std::uint16_t>(Op::kGet);
  get.count = 7;
  EXPECT_TRUE(check_header(get, false, 0));
}

TEST(ProtocolTest, RefusesWhatIsOutOfBounds) {
  EXPECT_FALSE(check_header(put(0, 0), false, 0));
  EXPECT_FALSE(check_header(put(kMaxPagesPerFrame + 1, 0), false, 0));
  EXPECT_FALSE(check_header(put(1, 0), false, 16)) << "tags are missing";
  EXPECT_FALSE(check_header(put(1, 0), true, 0)) << "a request where a reply is due";

  FrameHeader header = put(1, 0);
  header.magic ^= 1;
  EXPECT_FALSE(check_header(header, false, 0));
  header = put(1, 0);
  header.reserved = 1;
  EXPECT_FALSE(check_header(header, false, 0));
  header = put(1, 0);
  header.flags = 1u << 9;
  EXPECT_FALSE(check_header(header, false, 0));
  header = put(1, 0);
  header.page = UINT64_MAX;
  EXPECT_FALSE(check_header(header, false, 0)) << "the range wraps";
  header = put(1, 0);
  header.status = 1;
  EXPECT_FALSE(check_header(header, false, 0));
}

TEST(ProtocolTest, MaskTellsWhichPagesAPutSends) {
  FrameHeader header = put(64, 0);
  header.page = 100;
  EXPECT_EQ(put_pages(header), 64U);
  header.mask = std::uint64_t{1} << 63 | 0b101;
  EXPECT_EQ(put_pages(header), 3U);
  header.length = 3 * kPageSize;
  EXPECT_TRUE(check_header(header, false, 0));
  PutPages pages(header);
  EXPECT_EQ(pages.next(), 100U);
  EXPECT_EQ(pages.next(), 102U);
  EXPECT_EQ(pages.next(), 163U);

  header.length = 64 * kPageSize;
  EXPECT_FALSE(check_header(header, false, 0)) << "pages that the mask leaves out";
  header.length = 3 * kPageSize;
  header.count = 63;
  EXPECT_FALSE(check_header(header, false, 0)) << "a page beyond the last";
  header.count = 65;
  EXPECT_FALSE(check_header(header, false, 0)) << "more than a mask has bits";
  header.count = 64;
  header.flags = kReply;
  header.length = 0;
  EXPECT_FALSE(check_header(header, true, 0)) << "a mask in a reply";
  header.flags = 0;
  header.op = static_cast<std::uint16_t>(Op::kGet);
  EXPECT_FALSE(check_header(header, false, 0)) << "a mask in a Get";
}

TEST(ProtocolTest, GetReplyHoldsNoMorePagesThanAsked) {
  FrameHeader reply;
  reply.op = static_cast<std::uint16_t>(Op::kGet);
  reply.flags = kReply;
  reply.count = 2;
  for (std::uint32_t pages = 0; pages <= 3; pages++) {
    reply.length = get_bitmap_bytes(2) + pages * kPageSize;
    EXPECT_EQ(check_header(reply, true, 0).ok(), pages <= 2) << pages;
  }
  reply.length = get_bitmap_bytes(2) + 1;
  EXPECT_FALSE(check_header(reply, true, 0));
}

TEST(ProtocolTest, AcceptedHeadersStayInBounds) {
  EXPECT_TRUE(rc::check("any 64 bytes", [] {
    const auto bytes = *rc::gen::container<std::vector<std::uint8_t>>(
        sizeof(FrameHeader), rc::gen::arbitrary<std::uint8_t>());
    FrameHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    header.magic = kMagic;
    header.op %= 16;
    header.flags &= kReply;
    header.reserved = 0;
    header.mask = 0;
    header.length %= 2 * kMaxPayloadBytes;
    const bool reply = (header.flags & kReply) != 0;
    if (check_header(header, reply, 0)) {
      RC_ASSERT(header.length <= kMaxPayloadBytes);
    }
  }));
}

TEST(ProtocolTest, EveryStatusHasTextAndErrno) {
  EXPECT_EQ(status_errno(Status::kOk), 0);
  for (std::uint32_t i = 1; i <= static_cast<std::uint32_t>(Status::kInternal); i++) {
    EXPECT_GT(status_errno(static_cast<Status>(i)), 0) << i;
    EXPECT_STRNE(status_text(static_cast<Status>(i)), status_text(Status::kOk)) << i;
  }
  EXPECT_EQ(status_errno(static_cast<Status>(999)), EPROTO);
}

}  // namespace
}  // namespace kintsugi::wire
