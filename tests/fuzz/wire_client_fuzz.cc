// SPDX-License-Identifier: GPL-2.0-or-later
// The client's side of the page protocol against a server that answers anything.
//
// The input is what the server says, whatever it is asked; then it hangs up. The client connects,
// opens a session and reads frames to the end. Only errors may come of it.
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "wire/connection.h"

namespace kintsugi::wire {
namespace {

class Listener {
 public:
  Listener() {
    std::string dir = "/tmp/kintsugi-fuzz-XXXXXX";
    if (!mkdtemp(dir.data())) abort();
    dir_ = dir;
    uri_.kind = Uri::Kind::kUnix;
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
  ~Listener() {
    close(fd_);
    unlink(uri_.path.c_str());
    rmdir(dir_.c_str());
  }
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] const Uri& uri() const { return uri_; }

 private:
  std::string dir_;
  Uri uri_;
  int fd_ = -1;
};

void serve(int listener, const std::uint8_t* data, std::size_t size) {
  const int fd = accept(listener, nullptr, nullptr);
  while (size > 0) {
    const ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n <= 0) break;
    data += n;
    size -= static_cast<std::size_t>(n);
  }
  shutdown(fd, SHUT_WR);
  char sink[4096];
  while (recv(fd, sink, sizeof(sink), 0) > 0) {
  }
  close(fd);
}

void talk(const Uri& uri) {
  ConnectOptions options;
  options.connect_timeout = std::chrono::milliseconds(2000);
  options.io_timeout = std::chrono::milliseconds(2000);
  Result<std::unique_ptr<Connection>> connected = Connection::connect(uri, options);
  if (!connected) return;
  Connection& c = **connected;
  OpenRequest request;
  request.vm_pages = 100;
  request.capacity_pages = 100;
  if (const Result<SessionInfo> opened = c.open(request); !opened) return;
  if (const Result<SessionInfo> figures = c.stat(); !figures) return;
  std::vector<std::uint8_t> payload;
  for (;;) {
    const Result<FrameHeader> header = c.receive_header();
    if (!header) return;
    if (header->length > kMaxPayloadBytes) abort();
    payload.resize(header->length);
    if (const Result<void> got = c.receive(payload.data(), payload.size()); !got) return;
  }
}

void check_any_header(const std::uint8_t* data, std::size_t size) {
  FrameHeader header;
  if (size < sizeof(header) + 1) return;
  std::memcpy(&header, data + 1, sizeof(header));
  for (const bool reply : {false, true}) {
    const Result<void> checked = check_header(header, reply, data[0] % (kMaxTagBytes + 1));
    if (checked.ok() && (header.magic != kMagic || header.length > kMaxPayloadBytes)) abort();
  }
  static_cast<void>(status_text(static_cast<Status>(header.status)));
  static_cast<void>(status_errno(static_cast<Status>(header.status)));
}

}  // namespace
}  // namespace kintsugi::wire

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kintsugi::wire::Listener;
  static const Listener listener;
  kintsugi::wire::check_any_header(data, size);
  std::thread server([&] { kintsugi::wire::serve(listener.fd(), data, size); });
  kintsugi::wire::talk(listener.uri());
  server.join();
  return 0;
}
