// SPDX-License-Identifier: GPL-2.0-or-later
// A memory server that misbehaves on order: the pager's tests and others that need a bad peer.
//
// It is simple and slow: a thread for each connection, everything under one mutex, pages in a map.
// While nothing is ordered it keeps the protocol, so it is also a reference for what a server does.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/types.h"
#include "handover/record.h"
#include "wire/protocol.h"
#include "wire/uri.h"

namespace kintsugi::test {

class FakeServer {
 public:
  using Page = std::array<std::uint8_t, kPageSize>;
  // What an order does with one request.
  enum class Act {
    kServe,
    kIgnore,     // never answers
    kHangUp,     // closes the connection instead
    kWrongSeq,   // answers another request
    kWrongPage,  // answers with another page's number
    kAbsent,     // says that it has not the page (Get)
    kGarbage,    // answers bytes that are no frame
    kTwice,      // answers twice
    kRefuse,     // kInternal
  };

  FakeServer() { listen(); }
  ~FakeServer() { stop(); }
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  [[nodiscard]] wire::Uri uri() const {
    wire::Uri uri;
    uri.host = "127.0.0.1";
    uri.port = std::to_string(port_);
    return uri;
  }

  // Decides about every request from now on; called with the lock held, so it may count. Null:
  // serve all.
  void order(std::function<Act(const wire::FrameHeader&)> order) {
    const std::lock_guard lock(mutex_);
    order_ = std::move(order);
  }
  // Requests of the op wait until open_gate().
  void close_gate(wire::Op op) {
    const std::lock_guard lock(mutex_);
    gated_ = op;
  }
  void open_gate() {
    const std::lock_guard lock(mutex_);
    gated_.reset();
    changed_.notify_all();
  }
  // Blocks until so many requests have come to the closed gate.
  void wait_for_gated(unsigned count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= count; });
  }

  // Says that it holds so many pages more than it does.
  void pretend(std::uint64_t pages) {
    const std::lock_guard lock(mutex_);
    pretended_ = pages;
  }

  // As a crash: every connection breaks and new ones are refused. The pages stay.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      if (!running_) return;
      running_ = false;
      shutdown(listener_, SHUT_RDWR);
      for (const int fd : fds_) shutdown(fd, SHUT_RDWR);
      changed_.notify_all();
    }
    accepter_.join();
    for (std::thread& peer : peers_) peer.join();
    peers_.clear();
    close(listener_);
  }
  // As a restart with the arena file kept, on the same port.
  void start() { listen(); }
  void hang_up_all() {
    const std::lock_guard lock(mutex_);
    for (const int fd : fds_) shutdown(fd, SHUT_RDWR);
  }
  // As a restart without the arena file.
  void forget_sessions() {
    const std::lock_guard lock(mutex_);
    sessions_.clear();
  }

  // What is stored.
  [[nodiscard]] std::size_t pages() {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& [id, session] : sessions_) sum += session.pages.size();
    return sum;
  }
  [[nodiscard]] bool has(std::uint64_t page) {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, session] : sessions_) {
      if (session.pages.contains(page)) return true;
    }
    return false;
  }
  // Zeros when it is not there.
  [[nodiscard]] Page page(std::uint64_t page) {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, session] : sessions_) {
      const auto found = session.pages.find(page);
      if (found != session.pages.end()) return found->second.content;
    }
    return {};
  }
  // As a restart with an older copy of the arena: what it has is older than what it acknowledged.
  void age_pages() {
    const std::lock_guard lock(mutex_);
    for (auto& [id, session] : sessions_) session.last_version = 0;
  }
  // As another server that was started at this address.
  void become_another() {
    const std::lock_guard lock(mutex_);
    server_id_[0]++;
  }
  void lose_page(std::uint64_t page) {
    const std::lock_guard lock(mutex_);
    for (auto& [id, session] : sessions_) session.pages.erase(page);
  }
  [[nodiscard]] std::size_t sessions() {
    const std::lock_guard lock(mutex_);
    return sessions_.size();
  }
  [[nodiscard]] bool committed() {
    const std::lock_guard lock(mutex_);
    return !sessions_.empty() && sessions_.begin()->second.record().committed();
  }
  [[nodiscard]] std::uint64_t requests(wire::Op op) {
    const std::lock_guard lock(mutex_);
    return requests_[static_cast<std::uint16_t>(op)];
  }
  // More pages than the session reserved, at any time.
  [[nodiscard]] bool overflowed() {
    const std::lock_guard lock(mutex_);
    return overflowed_;
  }

 private:
  struct Stored {
    std::uint64_t version = 0;
    Page content;
  };
  struct Session {
    handover::RecordData ownership{};
    std::uint64_t last_version = 0;
    std::uint64_t capacity = 0;
    std::uint64_t vm_pages = 0;
    std::unordered_map<std::uint64_t, Stored> pages;
    [[nodiscard]] handover::Record record() { return handover::Record(&ownership); }
  };
  struct Binding {
    wire::SessionId id{};
    std::uint64_t epoch = 0;
  };

  void listen() {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int one = 1;
    setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port_);
    socklen_t length = sizeof(address);
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        ::listen(listener_, 64) != 0) {
      std::perror("fake server");
      std::abort();
    }
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    running_ = true;
    accepter_ = std::thread([this] { accept_all(); });
  }

  void accept_all() {
    for (;;) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      const int one = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
      const std::lock_guard lock(mutex_);
      if (!running_) {
        close(fd);
        return;
      }
      fds_.push_back(fd);
      peers_.emplace_back([this, fd] {
        serve(fd);
        const std::lock_guard inner(mutex_);
        fds_.remove(fd);
        close(fd);
      });
    }
  }

  static bool read_all(int fd, void* data, std::size_t bytes) {
    auto* at = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t got = recv(fd, at, bytes, 0);
      if (got <= 0) return false;
      at += got;
      bytes -= static_cast<std::size_t>(got);
    }
    return true;
  }
  static bool write_all(int fd, const void* data, std::size_t bytes) {
    const auto* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t put = send(fd, at, bytes, MSG_NOSIGNAL);
      if (put <= 0) return false;
      at += put;
      bytes -= static_cast<std::size_t>(put);
    }
    return true;
  }

  void serve(int fd) {
    Binding binding;
    std::vector<std::uint8_t> payload;
    std::vector<std::uint8_t> answer;
    wire::FrameHeader header;
    while (read_all(fd, &header, sizeof(header))) {
      if (!wire::check_header(header, false, 0)) return;
      payload.resize(header.length);
      if (!read_all(fd, payload.data(), payload.size())) return;
      Act act = Act::kServe;
      wire::FrameHeader reply = header;
      reply.flags = wire::kReply;
      reply.length = 0;
      reply.version = 0;
      reply.mask = 0;
      answer.clear();
      {
        std::unique_lock lock(mutex_);
        requests_[header.op]++;
        if (gated_ && header.op == static_cast<std::uint16_t>(*gated_)) {
          waiting_++;
          changed_.notify_all();
          changed_.wait(lock, [&] {
            return !running_ || !gated_ || header.op != static_cast<std::uint16_t>(*gated_);
          });
          waiting_--;
        }
        if (order_) act = order_(header);
        if (act == Act::kRefuse) {
          reply.status = static_cast<std::uint32_t>(wire::Status::kInternal);
        } else if (act != Act::kIgnore && act != Act::kHangUp) {
          reply.status = static_cast<std::uint32_t>(
              handle(header, payload, &binding, &reply, &answer, act == Act::kAbsent));
        }
      }
      if (act == Act::kIgnore) continue;
      if (act == Act::kHangUp) return;
      if (act == Act::kWrongSeq) reply.seq += 7;
      if (act == Act::kWrongPage) reply.page += 1;
      if (act == Act::kGarbage) reply.magic = 0xdeadbeef;
      reply.length = static_cast<std::uint32_t>(answer.size());
      for (int i = 0; i < (act == Act::kTwice ? 2 : 1); i++) {
        if (!write_all(fd, &reply, sizeof(reply))) return;
        if (!write_all(fd, answer.data(), answer.size())) return;
      }
    }
  }

  void figures(Session& session, std::vector<std::uint8_t>* answer) const {
    wire::SessionReply figures;
    figures.capacity_pages = session.capacity;
    figures.used_pages = session.pages.size() + pretended_;
    figures.vm_pages = session.vm_pages;
    figures.committed = session.record().committed() ? 1 : 0;
    figures.last_version = session.last_version;
    answer->resize(sizeof(figures));
    std::memcpy(answer->data(), &figures, sizeof(figures));
  }

  // Fills reply and answer; the status is 0 for ok.
  wire::Status handle(const wire::FrameHeader& header, const std::vector<std::uint8_t>& payload,
                      Binding* binding, wire::FrameHeader* reply, std::vector<std::uint8_t>* answer,
                      bool absent) {
    const auto op = static_cast<wire::Op>(header.op);
    if (op == wire::Op::kHello) {
      wire::HelloReply hello;
      hello.version = hello.min_version = wire::kVersion;
      hello.capacity_pages = hello.free_pages = 1U << 20;
      hello.server_id = server_id_;
      answer->resize(sizeof(hello));
      std::memcpy(answer->data(), &hello, sizeof(hello));
      return wire::Status::kOk;
    }
    if (op == wire::Op::kOpen) {
      wire::OpenRequest open;
      std::memcpy(&open, payload.data(), sizeof(open));
      if (sessions_.contains(open.session)) return wire::Status::kExists;
      Session& session = sessions_[open.session];
      session.capacity = open.capacity_pages;
      session.vm_pages = open.vm_pages;
      session.record().begin(open.ticket);
      *binding = {open.session, 1};
      reply->epoch = 1;
      figures(session, answer);
      return wire::Status::kOk;
    }
    if (op == wire::Op::kAttach || op == wire::Op::kClaim || op == wire::Op::kReclaim) {
      wire::BindRequest bind;
      std::memcpy(&bind, payload.data(), sizeof(bind));
      const auto found = sessions_.find(bind.session);
      if (found == sessions_.end()) return wire::Status::kNoSession;
      handover::Record record = found->second.record();
      const Epoch epoch{header.epoch};
      handover::Answer answered{record.may_read(epoch) ? wire::Status::kOk : wire::Status::kFenced,
                                epoch};
      if (op == wire::Op::kClaim) answered = record.claim(epoch, bind.ticket);
      if (op == wire::Op::kReclaim) answered = record.reclaim(epoch);
      reply->epoch = answered.epoch.value;
      if (answered.status != wire::Status::kOk) return answered.status;
      *binding = {bind.session, answered.epoch.value};
      figures(found->second, answer);
      return wire::Status::kOk;
    }
    const auto found = sessions_.find(binding->id);
    if (found == sessions_.end()) return wire::Status::kNoSession;
    Session& session = found->second;
    const bool writes = op == wire::Op::kPut || op == wire::Op::kDiscard || op == wire::Op::kDrop;
    const bool may = writes ? session.record().may_write(Epoch{header.epoch})
                            : session.record().may_read(Epoch{header.epoch});
    if (!may) return wire::Status::kFenced;
    switch (op) {
      case wire::Op::kCommit:
        return session.record().commit(Epoch{header.epoch}).status;
      case wire::Op::kDrop:
        sessions_.erase(found);
        return wire::Status::kOk;
      case wire::Op::kStat:
        figures(session, answer);
        return wire::Status::kOk;
      case wire::Op::kPut:
        for (std::uint32_t i = 0; i < header.count; i++) {
          if (header.mask != 0 && (header.mask >> i & 1) == 0) continue;
          Stored& stored = session.pages[header.page + i];
          session.last_version = std::max(session.last_version, header.version);
          if (stored.version > header.version) continue;
          stored.version = header.version;
          const auto before = static_cast<std::size_t>(
              std::popcount(header.mask & ((std::uint64_t{1} << i % 64) - 1)));
          std::memcpy(stored.content.data(),
                      payload.data() + (header.mask == 0 ? i : before) * kPageSize, kPageSize);
        }
        if (session.pages.size() > session.capacity) {
          overflowed_ = true;
          return wire::Status::kFull;
        }
        return wire::Status::kOk;
      case wire::Op::kDiscard:
        for (std::uint32_t i = 0; i < header.count; i++) {
          const auto page = session.pages.find(header.page + i);
          if (page != session.pages.end() && page->second.version <= header.version) {
            session.pages.erase(page);
          }
        }
        return wire::Status::kOk;
      case wire::Op::kGet: {
        const std::uint32_t bitmap = wire::get_bitmap_bytes(header.count);
        answer->assign(bitmap, 0);
        for (std::uint32_t i = 0; i < header.count && !absent; i++) {
          const auto page = session.pages.find(header.page + i);
          if (page == session.pages.end()) continue;
          (*answer)[i / 8] |= static_cast<std::uint8_t>(1U << i % 8);
          answer->insert(answer->end(), page->second.content.begin(), page->second.content.end());
        }
        return wire::Status::kOk;
      }
      default:
        return wire::Status::kBadRequest;
    }
  }

  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::thread accepter_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool running_ = false;
  std::list<std::thread> peers_;
  std::list<int> fds_;
  std::map<wire::SessionId, Session> sessions_;
  std::function<Act(const wire::FrameHeader&)> order_;
  std::optional<wire::Op> gated_;
  unsigned waiting_ = 0;
  bool overflowed_ = false;
  std::uint64_t pretended_ = 0;
  std::array<std::uint8_t, 16> server_id_{};
  std::array<std::uint64_t, UINT16_MAX + 1> requests_{};
};

}  // namespace kintsugi::test
