// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/channel.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "memserver/text.h"

namespace kintsugi::memserver {

using wire::FrameHeader;
using wire::Op;
using wire::Status;

Channel::Channel(Sessions* sessions, Stats* stats, Options options)
    : sessions_(sessions),
      stats_(stats),
      options_(std::move(options)),
      input_(new std::uint8_t[kReceiveBytes]) {}

Channel::~Channel() {
  drop_put();
  unbind();
}

// ---- Input --------------------------------------------------------------------------------------

std::size_t Channel::receive_buffers(std::span<iovec, kMaxIovecs> iov) {
  direct_bytes_ = 0;
  if (state_ == State::kWaiting || pending_.size() >= kOutputLimit) return 0;
  if (input_begin_ == input_end_) {
    input_begin_ = input_end_ = 0;
  } else if (input_begin_ > kReceiveBytes / 2) {
    std::memmove(input_.get(), input(), input_bytes());
    input_end_ -= input_begin_;
    input_begin_ = 0;
  }
  std::size_t n = 0;
  std::size_t room = kReceiveBytes - input_end_;
  const bool in_put = state_ == State::kPutSlots || state_ == State::kPutBounce;
  if (in_put && input_end_ == 0 && put_bytes() - payload_done_ >= kDirectBytes) {
    std::size_t at = payload_done_;
    while (at < put_bytes() && n < kMaxIovecs - 1) {
      const std::span<std::uint8_t> target = put_target(at, put_bytes());
      iov[n++] = {target.data(), target.size()};
      at += target.size();
    }
    direct_bytes_ = at - payload_done_;
    room = kTailBytes;
    // All of the payload or nothing of what follows.
    if (at < put_bytes()) return n;
  } else if (state_ == State::kHeader && input_end_ == 0 && after_big_put()) {
    room = kTailBytes;
  }
  iov[n++] = {input_.get() + input_end_, room};
  return n;
}

void Channel::received(std::size_t bytes) {
  count(stats_->bytes_received, bytes);
  const std::size_t direct = std::min(bytes, direct_bytes_);
  direct_bytes_ = 0;
  payload_done_ += direct;
  input_end_ += bytes - direct;
  process();
}

void Channel::process() {
  bool more = true;
  while (more) {
    switch (state_) {
      case State::kHeader:
        more = pending_.size() < kOutputLimit && process_header();
        break;
      case State::kPutSlots:
      case State::kPutBounce:
        more = process_put();
        break;
      case State::kSkip:
        more = process_skip();
        break;
      case State::kWaiting:
        more = false;
        break;
      case State::kClosing:
        consume(input_bytes());
        more = false;
        break;
    }
  }
}

bool Channel::process_header() {
  if (input_bytes() < sizeof(FrameHeader)) return false;
  std::memcpy(&header_, input(), sizeof(header_));
  if (Result<void> checked = wire::check_header(header_, false, tag_bytes_); !checked) {
    fail(checked.error().message);
    return true;
  }
  const auto op = static_cast<Op>(header_.op);
  const bool first = !greeted_;
  if (first != (op == Op::kHello)) {
    fail(first ? "the first frame is not Hello" : "a second Hello");
    return true;
  }
  if (op == Op::kPut) {
    take_header();
    begin_put();
    return true;
  }
  // check_header() has bound the payload of every other known op, and unknown ones go no further.
  const bool known = op >= Op::kHello && op <= Op::kReclaim;
  if (known && input_bytes() < sizeof(header_) + header_.length) return false;
  take_header();
  switch (op) {
    case Op::kHello:
      handle_hello();
      break;
    case Op::kOpen:
      handle_open();
      break;
    case Op::kAttach:
    case Op::kClaim:
    case Op::kReclaim:
      handle_bind(op);
      break;
    case Op::kOffer:
    case Op::kCommit:
      handle_ownership(op);
      break;
    case Op::kGet:
      handle_get();
      break;
    case Op::kDiscard:
      handle_discard();
      break;
    case Op::kDrop:
      handle_drop();
      return true;  // the session may be gone; a Drop has no payload
    case Op::kStat:
      handle_stat();
      break;
    case Op::kPut:
      break;
    default:
      fail("an unknown request");
      return true;
  }
  if (state_ != State::kClosing) consume(header_.length);
  return true;
}

void Channel::take_header() {
  count(stats_->requests);
  requests_++;
  consume(sizeof(header_));
}

bool Channel::process_skip() {
  const std::size_t bytes = std::min(input_bytes(), header_.length - payload_done_);
  consume(bytes);
  payload_done_ += bytes;
  if (payload_done_ < header_.length) return false;
  state_ = State::kHeader;
  refuse(skip_status_);
  return true;
}

bool Channel::process_put() {
  while (payload_done_ < put_bytes() && input_bytes() > 0) {
    const std::span<std::uint8_t> target = put_target(payload_done_, input_bytes());
    std::memcpy(target.data(), input(), target.size());
    consume(target.size());
    payload_done_ += target.size();
  }
  if (payload_done_ < put_bytes()) return false;
  finish_put();
  return true;
}

// ---- Pages --------------------------------------------------------------------------------------

void Channel::handle_get() {
  if (!check_bound()) return;
  std::uint8_t* at =
      pending_.room(sizeof(FrameHeader) + session_->get_payload_bound(header_.count));
  const Session::GetAnswer answer =
      session_->get(epoch_, header_.page, header_.count, at + sizeof(FrameHeader));
  if (answer.status != Status::kOk) {
    refuse(answer.status);
    return;
  }
  FrameHeader head = header_;
  head.flags = wire::kReply;
  head.length = static_cast<std::uint32_t>(answer.bytes);
  head.version = answer.version;
  std::memcpy(at, &head, sizeof(head));
  pending_.append(sizeof(head) + answer.bytes);
  count(stats_->pages_got, answer.found);
  count(stats_->pages_missing, header_.count - answer.found);
}

void Channel::handle_discard() {
  if (!check_bound()) return;
  std::uint64_t discarded = 0;
  const Status status =
      session_->discard(epoch_, header_.page, header_.count, header_.version, &discarded);
  count(stats_->pages_discarded, discarded);
  status == Status::kOk ? reply(status, epoch_) : refuse(status);
}

std::size_t Channel::put_page_bytes() const {
  return std::size_t{wire::put_pages(header_)} * kPageSize;
}
std::size_t Channel::put_bytes() const { return header_.length; }

std::span<std::uint8_t> Channel::put_target(std::size_t offset, std::size_t limit) {
  const std::size_t page_bytes = put_page_bytes();
  if (offset >= page_bytes) {
    return {put_tags_.get() + (offset - page_bytes), std::min(limit, put_bytes() - offset)};
  }
  if (state_ == State::kPutBounce) {
    return {bounce_.get() + offset, std::min(limit, page_bytes - offset)};
  }
  const std::size_t first = offset / kPageSize;
  std::size_t last = first;
  while (last + 1 < wire::put_pages(header_) && slots_[last + 1] == slots_[last] + 1 &&
         (last + 1) * kPageSize - offset < limit) {
    last++;
  }
  return {sessions_->arena().page(slots_[first]) + offset % kPageSize,
          std::min(limit, (last + 1) * kPageSize - offset)};
}

void Channel::begin_put() {
  if (!check_bound()) return;
  const Status status = session_->check_write(epoch_);
  payload_done_ = 0;
  if (status != Status::kOk) {
    skip_status_ = status;
    state_ = State::kSkip;
    return;
  }
  if (tag_bytes_ > 0 && !put_tags_) {
    put_tags_.reset(new std::uint8_t[std::size_t{wire::kMaxPagesPerFrame} * wire::kMaxTagBytes]);
  }
  const std::uint32_t pages = wire::put_pages(header_);
  if (sessions_->arena().allocate_in_flight({slots_.data(), pages}, &hint_)) {
    slots_held_ = slots_in_flight_ = pages;
    state_ = State::kPutSlots;
    return;
  }
  count(stats_->bounced_puts);
  bounce_.reset(new std::uint8_t[put_page_bytes()]);
  state_ = State::kPutBounce;
}

void Channel::finish_put() {
  Status status = Status::kOk;
  const std::uint32_t pages = wire::put_pages(header_);
  if (state_ == State::kPutBounce) {
    status = session_->publish_copy(epoch_, wire::PutPages(header_), header_.version, pages,
                                    bounce_.get(), put_tags_.get(), &hint_);
    bounce_.reset();
  } else {
    Arena& arena = sessions_->arena();
    for (std::uint32_t i = 0; tag_bytes_ > 0 && i < pages; i++) {
      std::memcpy(arena.tag(slots_[i]), put_tags_.get() + std::size_t{i} * tag_bytes_, tag_bytes_);
    }
    const Session::Published published =
        session_->publish(epoch_, wire::PutPages(header_), header_.version, {slots_.data(), pages});
    status = published.status;
    slots_held_ = published.unused;
    drop_put();
  }
  state_ = State::kHeader;
  if (status == Status::kOk) {
    count(stats_->pages_put, pages);
    reply(Status::kOk, epoch_);
  } else {
    refuse(status);
  }
}

void Channel::drop_put() {
  sessions_->arena().free({slots_.data(), slots_held_});
  sessions_->arena().landed(slots_in_flight_);
  slots_held_ = slots_in_flight_ = 0;
  bounce_.reset();
}

// ---- Output -------------------------------------------------------------------------------------

void Channel::reply(Status status, std::uint64_t epoch, std::span<const std::uint8_t> payload) {
  FrameHeader head = header_;
  head.flags = wire::kReply;
  head.length = static_cast<std::uint32_t>(payload.size());
  head.status = static_cast<std::uint32_t>(status);
  head.epoch = epoch;
  head.reserved = 0;
  head.mask = 0;
  std::uint8_t* at = pending_.room(sizeof(head) + payload.size());
  std::memcpy(at, &head, sizeof(head));
  if (!payload.empty()) std::memcpy(at + sizeof(head), payload.data(), payload.size());
  pending_.append(sizeof(head) + payload.size());
}

void Channel::refuse(Status status, std::uint64_t epoch) {
  if (status == Status::kFenced) count(stats_->fenced);
  reply(status, epoch);
}

void Channel::fail(const std::string& why) {
  count(stats_->protocol_errors);
  spdlog::warn("{}: {}: connection closed", options_.peer, why);
  // Who does not speak the protocol would not understand the answer.
  if (header_.magic == wire::kMagic) {
    if (header_.op == static_cast<std::uint16_t>(Op::kHello)) {
      const wire::HelloReply nothing{};
      reply(Status::kBadRequest, 0, bytes_of(nothing));
    } else {
      reply(Status::kBadRequest);
    }
  }
  drop_put();
  state_ = State::kClosing;
}

std::span<const std::uint8_t> Channel::take_output() {
  if (sending_.size() > 0 || pending_.size() == 0) return {};
  std::swap(pending_, sending_);
  // Requests may have waited for the room.
  process();
  return sending_.bytes();
}

void Channel::output_sent() {
  count(stats_->bytes_sent, sending_.size());
  sending_.clear();
}

}  // namespace kintsugi::memserver
