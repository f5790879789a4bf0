// SPDX-License-Identifier: GPL-2.0-or-later
// The client's side of the page protocol against a server that answers anything.
//
// The input is what the server says, whatever it is asked; then it hangs up. The client connects,
// opens a session and reads frames to the end. Only errors may come of it.
#include <stdlib.h>

#include <cstring>
#include <thread>
#include <vector>

#include "canned_server.h"

namespace kintsugi::wire {
namespace {

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
  using kintsugi::fuzz::CannedServer;
  static const CannedServer canned;
  kintsugi::wire::check_any_header(data, size);
  std::thread server([&] { CannedServer::say(canned.accept(), {data, size}); });
  kintsugi::wire::talk(canned.uri());
  server.join();
  return 0;
}
