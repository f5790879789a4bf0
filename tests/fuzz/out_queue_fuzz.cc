// SPDX-License-Identifier: GPL-2.0-or-later
// The queue of pages out, against a server that stores what it is told and answers in that order,
// some of it, over connections that break.
//
// Each byte of the input is a step. In the end everything is sent and answered, and then the server
// must have exactly the pages whose last step was a Put, in that version: whatever broke.
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "canned_server.h"
#include "pager/out_queue.h"

namespace kintsugi {
namespace {

constexpr unsigned kUnitPages = 4;
constexpr unsigned kFrames = 64;
constexpr std::uint64_t kPages = 32;

// A connection that has said Hello, and the server's end of it.
struct Line {
  std::unique_ptr<wire::Connection> client;
  int server = -1;
};

Line connect() {
  static const fuzz::CannedServer listener;
  Line line;
  std::thread greeter([&] {
    line.server = listener.accept();
    std::vector<std::uint8_t> hello;
    fuzz::append_answer(&hello, wire::Op::kHello, 1, fuzz::hello_reply());
    std::uint8_t request[sizeof(wire::FrameHeader) + sizeof(wire::HelloRequest)];
    if (recv(line.server, request, sizeof(request), MSG_WAITALL) !=
            static_cast<ssize_t>(sizeof(request)) ||
        send(line.server, hello.data(), hello.size(), MSG_NOSIGNAL) !=
            static_cast<ssize_t>(hello.size())) {
      abort();
    }
  });
  Result<std::unique_ptr<wire::Connection>> client =
      wire::Connection::connect(listener.uri(), wire::ConnectOptions{});
  greeter.join();
  if (!client) abort();
  line.client = std::move(*client);
  return line;
}

// What the server has, and what it would answer.
class Server {
 public:
  void receive(int fd) {
    for (;;) {
      std::uint8_t piece[4096];
      const ssize_t got = recv(fd, piece, sizeof(piece), MSG_DONTWAIT);
      if (got <= 0) break;
      bytes_.insert(bytes_.end(), piece, piece + got);
    }
    std::size_t at = 0;
    wire::FrameHeader header;
    while (bytes_.size() - at >= sizeof(header)) {
      std::memcpy(&header, bytes_.data() + at, sizeof(header));
      if (!wire::check_header(header, false, 0)) abort();
      if (bytes_.size() - at - sizeof(header) < header.length) break;
      handle(header, bytes_.data() + at + sizeof(header));
      at += sizeof(header) + header.length;
    }
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  // The rest of a frame, and the answers, are lost with a connection.
  void forget_connection() {
    bytes_.clear();
    answers_.clear();
  }
  [[nodiscard]] std::vector<std::uint64_t>& answers() { return answers_; }
  [[nodiscard]] const std::map<std::uint64_t, std::uint64_t>& pages() const { return pages_; }

 private:
  void handle(const wire::FrameHeader& header, const std::uint8_t* payload) {
    answers_.push_back(header.seq);
    for (std::uint64_t i = 0; i < header.count; i++) {
      const std::uint64_t page = header.page + i;
      const auto at = pages_.find(page);
      if (header.op == static_cast<std::uint16_t>(wire::Op::kDiscard)) {
        if (at != pages_.end() && at->second <= header.version) pages_.erase(at);
        continue;
      }
      std::uint64_t content[2];
      std::memcpy(content, payload + i * kPageSize, sizeof(content));
      if (content[0] != page || content[1] != header.version) abort();  // another page's bytes
      if (at == pages_.end() || at->second < header.version) pages_[page] = header.version;
    }
  }

  std::vector<std::uint8_t> bytes_;
  std::vector<std::uint64_t> answers_;
  std::map<std::uint64_t, std::uint64_t> pages_;
};

class Run {
 public:
  Run() : line_(connect()) {
    Result<OutQueue> queue = OutQueue::create();
    Result<std::unique_ptr<Staging>> staging =
        Staging::create(kUnitPages, kFrames, PageOutMethod::kWriteProtect);
    if (!queue || !staging) abort();
    queue_ = std::move(*queue);
    staging_ = std::move(*staging);
  }
  ~Run() { close(line_.server); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  void step(std::uint8_t what) {
    const std::uint64_t page = what % kPages;
    switch (what / kPages) {
      case 0:
        put(page, 1);
        break;
      case 1:
        put(page / kUnitPages * kUnitPages, 1 + page % kUnitPages);
        break;
      case 2:
        discard(page, 1);
        break;
      case 3:
        discard(page / 2, 1 + page % 8);
        break;
      case 4:
        send();
        break;
      case 5:
        answer(page);
        break;
      case 6:
        // What was answered before, or never asked, is nothing to mark.
        if (queue_.answered(page) && !asked(page)) abort();
        break;
      default:
        break_connection();
    }
  }

  // Whatever happened before, all goes out in the end.
  void finish() {
    for (int round = 0; !queue_.empty(); round++) {
      if (round > 10'000) abort();
      send();
      answer(UINT64_MAX);
    }
    if (server_.pages() != expected_) abort();
  }

 private:
  void put(std::uint64_t page, unsigned pages) {
    if (queue_.room() == 0 || next_frame_ == kFrames) return;
    pages = static_cast<unsigned>(std::min<std::uint64_t>(pages, kPages - page));
    const std::uint64_t version = next_version_++;
    for (unsigned i = 0; i < pages; i++) {
      const std::uint64_t content[2] = {page + i, version};
      std::memcpy(staging_->place(next_frame_, i), content, sizeof(content));
      expected_[page + i] = version;
    }
    queue_.put(PageIndex{page}, pages, version, next_frame_++, 0);
  }
  void discard(std::uint64_t page, unsigned pages) {
    if (queue_.room() == 0) return;
    queue_.discard(PageIndex{page}, pages, next_version_ - 1);
    for (unsigned i = 0; i < pages; i++) expected_.erase(page + i);
  }
  void send() {
    if (!queue_.send(*line_.client, *staging_).ok()) abort();
    server_.receive(line_.server);
  }
  // The oldest answers arrive.
  void answer(std::uint64_t count) {
    std::vector<std::uint64_t>& answers = server_.answers();
    for (; count > 0 && !answers.empty(); count--) {
      settle(answers.front());
      answers.erase(answers.begin());
    }
  }
  // As the evictor takes an answer.
  void settle(std::uint64_t seq) {
    OutQueue::Item* item = queue_.answered(seq);
    if (!item) return;
    item->done = true;
    if (item->kind == OutQueue::Kind::kPut) queue_.settle_discards_before(seq);
    queue_.trim();
  }
  [[nodiscard]] bool asked(std::uint64_t seq) {
    const std::vector<std::uint64_t>& answers = server_.answers();
    return std::find(answers.begin(), answers.end(), seq) != answers.end();
  }
  void break_connection() {
    close(line_.server);
    line_ = connect();
    server_.forget_connection();
    queue_.trim();
    queue_.rewind();
  }

  Line line_;
  OutQueue queue_;
  std::unique_ptr<Staging> staging_;
  Server server_;
  std::uint64_t next_version_ = 1;
  unsigned next_frame_ = 0;
  std::map<std::uint64_t, std::uint64_t> expected_;
};

}  // namespace
}  // namespace kintsugi

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kintsugi::Run run;
  for (std::size_t i = 0; i < size && i < 500; i++) run.step(data[i]);
  run.finish();
  return 0;
}
