// SPDX-License-Identifier: GPL-2.0-or-later
// A server that says what it is given, whatever it is asked.
#pragma once

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "wire/connection.h"

namespace kintsugi::fuzz {

class CannedServer {
 public:
  CannedServer() {
    std::string dir = "/tmp/kintsugi-fuzz-XXXXXX";
    if (!mkdtemp(dir.data())) abort();
    dir_ = dir;
    uri_.kind = wire::Uri::Kind::kUnix;
    uri_.path = dir_ + "/s";
    fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, uri_.path.c_str(), uri_.path.size() + 1);
    if (bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(fd_, 1) != 0) {
      abort();
    }
  }
  ~CannedServer() {
    close(fd_);
    unlink(uri_.path.c_str());
    rmdir(dir_.c_str());
  }
  CannedServer(const CannedServer&) = delete;
  CannedServer& operator=(const CannedServer&) = delete;

  [[nodiscard]] const wire::Uri& uri() const { return uri_; }
  // The socket of the next client.
  [[nodiscard]] int accept() const { return ::accept(fd_, nullptr, nullptr); }
  // Says `data` to it, hangs up, and hears it out.
  static void say(int fd, std::span<const std::uint8_t> data) {
    while (!data.empty()) {
      const ssize_t n = send(fd, data.data(), data.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      data = data.subspan(static_cast<std::size_t>(n));
    }
    shutdown(fd, SHUT_WR);
    char sink[4096];
    while (recv(fd, sink, sizeof(sink), 0) > 0) {
    }
    close(fd);
  }

 private:
  std::string dir_;
  wire::Uri uri_;
  int fd_ = -1;
};

// An answer as a good server gives it.
template <typename Payload>
void append_answer(std::vector<std::uint8_t>* to, wire::Op op, std::uint64_t seq,
                   const Payload& payload) {
  wire::FrameHeader header;
  header.op = static_cast<std::uint16_t>(op);
  header.flags = wire::kReply;
  header.length = sizeof(payload);
  header.seq = seq;
  header.epoch = op == wire::Op::kHello ? 0 : 1;
  for (const auto part : {wire::bytes_of(header), wire::bytes_of(payload)}) {
    to->insert(to->end(), part.begin(), part.end());
  }
}

inline wire::HelloReply hello_reply() {
  wire::HelloReply hello;
  hello.version = hello.min_version = wire::kVersion;
  return hello;
}

}  // namespace kintsugi::fuzz
