// SPDX-License-Identifier: GPL-2.0-or-later
// Requests about sessions: Hello, what binds a connection, and who owns the VM.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "memserver/channel.h"
#include "memserver/text.h"

namespace kintsugi::memserver {

using wire::Op;
using wire::Status;

void Channel::handle_hello() {
  wire::HelloRequest hello;
  std::memcpy(&hello, input(), sizeof(hello));
  wire::HelloReply answer;
  answer.version = answer.min_version = wire::kVersion;
  const std::uint64_t capacity = sessions_->capacity().value;
  answer.capacity_pages = capacity;
  answer.free_pages = capacity - sessions_->reserved().value;
  answer.server_id = sessions_->arena().server_id();
  Status status = Status::kOk;
  if (options_.refuse) {
    status = Status::kTooMany;
  } else if (hello.min_version > hello.max_version) {
    status = Status::kBadRequest;
  } else if (hello.min_version > wire::kVersion || hello.max_version < wire::kVersion) {
    status = Status::kVersion;
  }
  reply(status, 0, bytes_of(answer));
  if (status == Status::kOk) {
    greeted_ = true;
    return;
  }
  spdlog::warn("{}: refused at Hello: {}", options_.peer, wire::status_text(status));
  state_ = State::kClosing;
}

void Channel::finish_binding(const BindAnswer& answer, std::shared_ptr<Session> session) {
  if (answer.status != Status::kOk) {
    refuse(answer.status, answer.status == Status::kStale ? answer.epoch : 0);
    return;
  }
  unbind();
  session_ = std::move(session);
  epoch_ = answer.epoch;
  tag_bytes_ = session_->tag_bytes();
  reply(Status::kOk, epoch_, bytes_of(answer.figures));
}

void Channel::handle_open() {
  wire::OpenRequest request;
  std::memcpy(&request, input(), sizeof(request));
  if (session_ && session_->check_read(epoch_) != Status::kGone) {
    fail("Open on a connection that is bound");
    return;
  }
  Sessions::Opened opened;
  if (sessions_->may_bind(nullptr)) {
    opened = sessions_->open(request);
  } else {
    opened.answer.status = Status::kTooMany;
  }
  const Status status = opened.answer.status;
  if (status == Status::kBadRequest) {
    fail("Open with figures out of range");
    return;
  }
  finish_binding(opened.answer, std::move(opened.session));
  if (status == Status::kOk) {
    spdlog::info("{}: session {} of VM '{}' opened with {} of {}", options_.peer,
                 id_text(request.session), session_->name(),
                 size_text(to_bytes(PageCount{request.capacity_pages})),
                 size_text(to_bytes(PageCount{request.vm_pages})));
  } else {
    spdlog::warn("{}: session {} asks for {}, refused: {}", options_.peer, id_text(request.session),
                 size_text(to_bytes(PageCount{std::min(request.capacity_pages, kMaxVmPages)})),
                 wire::status_text(status));
    count(stats_->refused_opens[static_cast<std::size_t>(status)]);
  }
}

void Channel::handle_bind(Op op) {
  wire::BindRequest request;
  std::memcpy(&request, input(), sizeof(request));
  const bool dead = !session_ || session_->check_read(epoch_) == Status::kGone;
  // A connection may be bound anew to its own session, in another epoch say.
  if (!dead && session_->id() != request.session) {
    fail("a connection is bound to one session only");
    return;
  }
  std::shared_ptr<Session> session = sessions_->find(request.session);
  BindAnswer answer;
  if (!session) {
    answer = sessions_->find_ended(request.session, header_.epoch);
  } else if (op == Op::kAttach) {
    if (sessions_->may_bind(session.get())) {
      answer = session->attach(header_.epoch);
    } else {
      answer.status = Status::kTooMany;
    }
  } else if (op == Op::kClaim) {
    answer = session->claim(header_.epoch, request.ticket);
  } else {
    answer = session->reclaim(header_.epoch);
  }
  finish_binding(answer, session);
  if (op != Op::kAttach && session && header_.epoch != 0) {
    spdlog::info("{}: {} session {} of VM '{}': {}", options_.peer,
                 op == Op::kClaim ? "claims" : "reclaims", id_text(session->id()), session->name(),
                 answer.status == Status::kOk ? fmt::format("epoch {}", answer.epoch)
                                              : wire::status_text(answer.status));
  }
}

void Channel::handle_ownership(Op op) {
  wire::BindRequest request;
  if (op == Op::kOffer) std::memcpy(&request, input(), sizeof(request));
  if (!check_bound()) return;
  if (op == Op::kOffer && request.session != session_->id()) {
    fail("an Offer of another session than the connection's");
    return;
  }
  const Status status =
      op == Op::kOffer ? session_->offer(epoch_, request.ticket) : session_->commit(epoch_);
  if (status != Status::kOk) {
    refuse(status);
    return;
  }
  spdlog::info("session {} of VM '{}' is {} in epoch {}", id_text(session_->id()), session_->name(),
               op == Op::kOffer ? "offered" : "committed", epoch_);
  reply(Status::kOk, epoch_);
}

void Channel::handle_stat() {
  if (!check_bound()) return;
  const BindAnswer answer = session_->stat(epoch_);
  answer.status == Status::kOk ? reply(Status::kOk, answer.epoch, bytes_of(answer.figures))
                               : refuse(answer.status);
}

void Channel::unbind() {
  if (session_) session_->unbind(sessions_->now());
  session_.reset();
  tag_bytes_ = 0;
}

bool Channel::check_bound() {
  if (!session_) {
    fail("a request that needs a session, on a connection that is not bound");
    return false;
  }
  if (header_.epoch != epoch_) {
    fail("a request in another epoch than the connection's");
    return false;
  }
  const bool pages = header_.op == static_cast<std::uint16_t>(Op::kGet) ||
                     header_.op == static_cast<std::uint16_t>(Op::kPut) ||
                     header_.op == static_cast<std::uint16_t>(Op::kDiscard);
  // check_header() has seen to it that the sum does not wrap.
  if (pages && header_.page + header_.count > session_->vm_pages()) {
    fail("pages beyond the VM's last");
    return false;
  }
  return true;
}

void Channel::handle_drop() {
  if (!check_bound()) return;
  const Session::Ended ended = session_->end(epoch_);
  if (ended.status != Status::kOk) {
    refuse(ended.status);
    return;
  }
  if (!ended.first) {
    reply(Status::kOk, epoch_);
    return;
  }
  // From here on somebody must give back what the session holds, before anything else can fail.
  state_ = State::kWaiting;
  auto work = [sessions = sessions_, session = session_] { sessions->free_ended(session); };
  auto done = [this] {
    state_ = State::kHeader;
    reply(Status::kOk, epoch_);
    process();
  };
  bool offloaded = false;
  if (options_.offload) {
    try {
      options_.offload(work, std::move(done));
      offloaded = true;
    } catch (const std::bad_alloc&) {
      if (state_ != State::kWaiting) throw;  // it was done, and the answer lacked memory
    }
  }
  if (!offloaded) {
    work();
    state_ = State::kHeader;
    reply(Status::kOk, epoch_);
  }
  if (session_) {
    spdlog::info("{}: session {} of VM '{}' dropped", options_.peer, id_text(session_->id()),
                 session_->name());
  }
}

}  // namespace kintsugi::memserver
