// SPDX-License-Identifier: GPL-2.0-or-later
// A migration's sender of pages against a server that opens a session and then answers anything.
//
// The input is what the server says after that; then it hangs up. Pages are sent until the sender
// has failed or all of them are answered; only errors may come of it, and every page that counts as
// sent was asked for.
#include <thread>
#include <utility>
#include <vector>

#include "canned_server.h"
#include "split/page_sender.h"

namespace kintsugi {
namespace {

constexpr std::uint64_t kPages = 300;

void send_pages(const wire::Uri& uri) {
  wire::ConnectOptions options;
  options.connect_timeout = options.io_timeout = std::chrono::milliseconds(2000);
  Result<std::unique_ptr<wire::Connection>> connection = wire::Connection::connect(uri, options);
  if (!connection) abort();
  wire::OpenRequest request;
  request.vm_pages = request.capacity_pages = kPages;
  if (!(*connection)->open(request)) abort();
  static const std::vector<std::uint8_t> memory = [] {
    std::vector<std::uint8_t> bytes(kPages * kPageSize);
    for (std::uint64_t page = 0; page < kPages; page += 2) bytes[page * kPageSize] = 1;
    return bytes;
  }();
  Result<PageBits> zero = PageBits::create(PageCount{kPages});
  Result<PageBits> stored = PageBits::create(PageCount{kPages});
  if (!zero || !stored) abort();
  PageSender sender(std::move(*connection), &*zero, &*stored);
  if (!sender.start()) abort();
  for (std::uint64_t page = 0; page < kPages; page++) {
    if (sender.queue(PageIndex{page}, memory.data() + page * kPageSize) != 0) break;
  }
  const bool flushed = sender.flush().ok();
  if (flushed && !sender.error().ok()) abort();
  const PageSenderStats stats = sender.stats();
  if (stats.sent_pages > kPages || stats.zero_pages > kPages) abort();
  std::vector<ZeroRun> zeros;
  sender.take_zero_runs(&zeros);
}

}  // namespace
}  // namespace kintsugi

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using kintsugi::fuzz::CannedServer;
  static const CannedServer server;
  std::vector<std::uint8_t> answers;
  kintsugi::fuzz::append_answer(&answers, kintsugi::wire::Op::kHello, 1,
                                kintsugi::fuzz::hello_reply());
  kintsugi::fuzz::append_answer(&answers, kintsugi::wire::Op::kOpen, 2,
                                kintsugi::wire::SessionReply{});
  answers.insert(answers.end(), data, data + size);
  std::thread thread([&] { CannedServer::say(server.accept(), answers); });
  kintsugi::send_pages(server.uri());
  thread.join();
  return 0;
}
