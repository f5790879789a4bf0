// SPDX-License-Identifier: GPL-2.0-or-later
// The pager against the least that could do the same work.
//
//   paging_bench --memserver PROGRAM [--repeat 5] [--pages 8192] [--only latency|queue|scale|out]
//
// Prints a JSON list of results to stdout: name, value, unit, compared_with, ratio, goal, met.
//
// latency  One thread touches pages in random order, each of which is on one memory server behind
//          TCP loopback; the time of each touch is taken in the thread. The floor is a loop of
//          blocking read(userfaultfd), send, recv, UFFDIO_COPY over one connection to a server
//          process of 20 lines: no location map, nothing else it could wait for.
// queue    The same on pages that are in the eviction queue, because a server keeps back its
//          acknowledgments. The floor is a loop of blocking read(userfaultfd) and UFFDIO_COPY from
//          local memory.
// scale    Page-ins a second with 1, 2, 4, 8 threads and 1, 2, 4 servers. The floor is the same
//          loop, asking server page % servers.
// out      Page-out of random content to one server, by the evictor's own choice, from the first
//          page moved to the last acknowledged, to a server whose memory has been in use before;
//          against a stream of 256 KiB send()s into recv()s of
//          another process over TCP loopback.
//
// Floor and pager take turns, --repeat times (latency and queue: three times as often, with half of
// the pages), and each figure is the median over the turns, each ratio that of the medians: other
// work on the machine makes single turns twice as slow.

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "pager/latency.h"
#include "pager/pager.h"
#include "placement/split_plan.h"
#include "tests/unit/pager/fake_server.h"
#include "wire/connection.h"

namespace kintsugi {
namespace {

struct Options {
  std::string memserver;
  unsigned repeat = 5;
  std::uint64_t pages = 8192;
  std::string only;
};

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "paging_bench: %s\n", why.c_str());
  std::exit(1);
}
void need(const Result<void>& result) {
  if (!result) die(result.error().message);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
double quantile(std::vector<std::uint64_t>& sorted, double of) {
  return static_cast<double>(sorted[std::min(
      sorted.size() - 1, static_cast<std::size_t>(static_cast<double>(sorted.size()) * of))]);
}

// ---- Memory and touching it ---------------------------------------------------------------------

class Memory {
 public:
  explicit Memory(std::uint64_t pages) : bytes_(pages * kPageSize) {
    void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) die("no memory");
    at_ = static_cast<char*>(at);
    madvise(at_, bytes_, MADV_NOHUGEPAGE);
  }
  ~Memory() { munmap(at_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] char* page(std::uint64_t i) const { return at_ + i * kPageSize; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  char* at_;
};

std::vector<std::uint64_t> shuffled(std::uint64_t pages, std::uint64_t seed) {
  std::vector<std::uint64_t> order(pages);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  return order;
}

struct Touched {
  double p50_ns = 0;
  double p99_ns = 0;
  double per_second = 0;
};

// Each thread touches its share of the pages; the first word must say which page it is.
Touched touch(const Memory& memory, const std::vector<std::uint64_t>& order, unsigned threads) {
  std::vector<std::vector<std::uint64_t>> times(threads);
  std::atomic<unsigned> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> touchers;
  for (unsigned t = 0; t < threads; t++) {
    touchers.emplace_back([&, t] {
      times[t].reserve(order.size() / threads + 1);
      ready++;
      while (!go) std::this_thread::yield();
      for (std::size_t i = t; i < order.size(); i += threads) {
        const std::uint64_t start = now_ns();
        const std::uint64_t word =
            *reinterpret_cast<const volatile std::uint64_t*>(memory.page(order[i]));
        times[t].push_back(now_ns() - start);
        if (word != order[i] + 1) die("a page came back wrong");
      }
    });
  }
  while (ready != threads) std::this_thread::yield();
  const std::uint64_t start = now_ns();
  go = true;
  for (std::thread& toucher : touchers) toucher.join();
  const double seconds = static_cast<double>(now_ns() - start) / 1e9;
  std::vector<std::uint64_t> all;
  for (const auto& some : times) all.insert(all.end(), some.begin(), some.end());
  std::sort(all.begin(), all.end());
  return {quantile(all, 0.5), quantile(all, 0.99), static_cast<double>(order.size()) / seconds};
}

void fill_page(char* at, std::uint64_t page) {
  auto* words = reinterpret_cast<std::uint64_t*>(at);
  std::uint64_t x = page + 1;
  words[0] = x;
  for (std::size_t i = 1; i < kPageSize / 8; i++) {
    x = x * 6364136223846793005ULL + 1442695040888963407ULL;
    words[i] = x;
  }
}

// ---- The floor ----------------------------------------------------------------------------------

bool read_all(int fd, void* data, std::size_t bytes) {
  return recv(fd, data, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}
bool write_all(int fd, const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = send(fd, at, bytes, MSG_NOSIGNAL);
    if (put <= 0) return false;
    at += put;
    bytes -= static_cast<std::size_t>(put);
  }
  return true;
}

constexpr std::size_t kHead = sizeof(wire::FrameHeader);
constexpr std::size_t kAnswer = kHead + 8 + kPageSize;

// A process that takes one connection and runs `serve` on it.
class Peer {
 public:
  explicit Peer(const std::function<void(int)>& serve) {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        listen(listener, 1) != 0) {
      die("cannot listen");
    }
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int fd = accept(listener, nullptr, nullptr);
      const int one = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
      serve(fd);
      _exit(0);
    }
    close(listener);
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), length) != 0) die("cannot connect");
    const int one = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  ~Peer() {
    close(fd_);
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  [[nodiscard]] int fd() const { return fd_; }

 private:
  pid_t pid_;
  int fd_;
};

// Answers each header with a page of the floor's pattern.
void serve_pages(int fd, std::uint64_t pages) {
  std::vector<char> store(pages * kPageSize);
  for (std::uint64_t i = 0; i < pages; i++) fill_page(&store[i * kPageSize], i);
  wire::FrameHeader header;
  std::vector<char> head(kHead + 8);
  while (read_all(fd, &header, sizeof(header))) {
    iovec parts[2] = {{head.data(), head.size()},
                      {&store[header.page % pages * kPageSize], kPageSize}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    if (sendmsg(fd, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(kAnswer)) return;
  }
}

class BareUffd {
 public:
  explicit BareUffd(const Memory& memory) : memory_(memory) {
    fd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
    if (fd_ < 0) die("userfaultfd is not permitted");
    uffdio_api api{};
    api.api = UFFD_API;
    uffdio_register request{};
    request.range = {reinterpret_cast<std::uint64_t>(memory.page(0)), memory.bytes()};
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (ioctl(fd_, UFFDIO_API, &api) != 0 || ioctl(fd_, UFFDIO_REGISTER, &request) != 0) {
      die("cannot register memory with userfaultfd");
    }
  }
  ~BareUffd() { close(fd_); }
  BareUffd(const BareUffd&) = delete;
  BareUffd& operator=(const BareUffd&) = delete;

  [[nodiscard]] std::uint64_t wait() const {
    uffd_msg message;
    if (read(fd_, &message, sizeof(message)) != sizeof(message)) die("read(userfaultfd)");
    return (message.arg.pagefault.address - reinterpret_cast<std::uint64_t>(memory_.page(0))) /
           kPageSize;
  }
  void install(std::uint64_t page, const void* content) const {
    uffdio_copy copy{};
    copy.dst = reinterpret_cast<std::uint64_t>(memory_.page(page));
    copy.src = reinterpret_cast<std::uint64_t>(content);
    copy.len = kPageSize;
    if (ioctl(fd_, UFFDIO_COPY, &copy) != 0) die("UFFDIO_COPY");
  }

 private:
  const Memory& memory_;
  int fd_;
};

Touched bare_page_in(std::uint64_t pages, unsigned threads, unsigned servers, std::uint64_t seed) {
  std::vector<std::unique_ptr<Peer>> peers;
  for (unsigned i = 0; i < servers; i++) {
    peers.push_back(std::make_unique<Peer>([&](int fd) { serve_pages(fd, pages); }));
  }
  std::vector<char> buffer(kAnswer);
  wire::FrameHeader header;
  // Each has filled its store once it answers.
  for (const auto& peer : peers) {
    if (!write_all(peer->fd(), &header, sizeof(header)) ||
        !read_all(peer->fd(), buffer.data(), kAnswer)) {
      die("bare server");
    }
  }
  const Memory memory(pages);
  const BareUffd uffd(memory);
  std::thread handler([&] {
    for (std::uint64_t i = 0; i < pages; i++) {
      header.page = uffd.wait();
      const int fd = peers[header.page % servers]->fd();
      if (!write_all(fd, &header, sizeof(header)) || !read_all(fd, buffer.data(), kAnswer)) {
        die("bare server");
      }
      uffd.install(header.page, &buffer[kHead + 8]);
    }
  });
  const Touched touched = touch(memory, shuffled(pages, seed), threads);
  handler.join();
  return touched;
}

Touched bare_local(std::uint64_t pages, std::uint64_t seed) {
  Memory store(pages);
  for (std::uint64_t i = 0; i < pages; i++) fill_page(store.page(i), i);
  const Memory memory(pages);
  const BareUffd uffd(memory);
  std::thread handler([&] {
    for (std::uint64_t i = 0; i < pages; i++) {
      const std::uint64_t page = uffd.wait();
      uffd.install(page, store.page(page));
    }
  });
  const Touched touched = touch(memory, shuffled(pages, seed), 1);
  handler.join();
  return touched;
}

constexpr std::size_t kPiece = 256 * 1024;

double bare_stream_bytes_per_second(std::uint64_t bytes) {
  Peer peer([bytes](int fd) {
    std::vector<char> buffer(kPiece);
    std::uint64_t left = bytes;
    while (left > 0) {
      const ssize_t got = recv(fd, buffer.data(), std::min<std::uint64_t>(left, kPiece), 0);
      if (got <= 0) return;
      left -= static_cast<std::uint64_t>(got);
    }
    write_all(fd, "!", 1);
  });
  std::vector<char> content(bytes);
  for (std::size_t i = 0; i < bytes; i += kPageSize) fill_page(&content[i], i / kPageSize);
  const std::uint64_t start = now_ns();
  for (std::uint64_t at = 0; at < bytes; at += kPiece) {
    if (!write_all(peer.fd(), &content[at], kPiece)) die("stream");
  }
  char done = 0;
  if (!read_all(peer.fd(), &done, 1)) die("stream");
  return static_cast<double>(bytes) * 1e9 / static_cast<double>(now_ns() - start);
}

// ---- The pager ----------------------------------------------------------------------------------

// `memserver` in a process of its own.
class ServerProcess {
 public:
  explicit ServerProcess(const std::string& program) {
    char folder[] = "/tmp/paging_bench.XXXXXX";
    if (mkdtemp(folder) == nullptr) die("mkdtemp");
    folder_ = folder;
    const std::string port_file = folder_ + "/port";
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      execl(program.c_str(), program.c_str(), "--listen", "tcp:127.0.0.1:0", "--capacity", "2G",
            "--port-file", port_file.c_str(), "--log-level", "off", nullptr);
      _exit(127);
    }
    const std::uint64_t deadline = now_ns() + 10'000'000'000ULL;
    while (!std::filesystem::exists(port_file)) {
      if (now_ns() > deadline) die("the memory server does not start");
      if (waitpid(pid_, nullptr, WNOHANG) == pid_) die("cannot run " + program);
      usleep(1000);
    }
    std::ifstream file(port_file);
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const std::size_t from = text.find("tcp:");
    if (from == std::string::npos) die("no address in the memory server's port file");
    Result<wire::Uri> uri = wire::parse_uri(text.substr(from, text.find('"', from) - from));
    if (!uri) die(uri.error().message);
    uri_ = *uri;
  }
  ~ServerProcess() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    std::filesystem::remove_all(folder_);
  }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  [[nodiscard]] const wire::Uri& uri() const { return uri_; }

 private:
  std::string folder_;
  pid_t pid_;
  wire::Uri uri_;
};

using Servers = std::vector<wire::Uri>;

// A split VM: pages 0..local-1 here, the others dealt to the servers.
class Vm {
 public:
  Vm(const Servers& uris, std::uint64_t pages, std::uint64_t local, std::uint64_t chunk_pages)
      : pages_(pages), memory_(pages) {
    SplitRequest request;
    request.pages = PageCount{pages};
    request.chunk_pages = PageCount{chunk_pages};
    request.main_capacity = PageCount{local};
    request.server_capacities.assign(uris.size(), PageCount{pages});
    Result<SplitPlan> plan = plan_split(request, {});
    if (!plan) die(plan.error().message);
    for (std::size_t i = 0; i < config_.session.size(); i++) {
      config_.session[i] = static_cast<std::uint8_t>(random_());
    }
    for (const wire::Uri& uri : uris) open(uri);
    for (std::uint64_t i = 0; i < pages; i++) {
      const ServerId owner = plan->owner(PageIndex{i});
      if (owner == kMainHost) {
        fill_page(memory_.page(i), i);
      } else {
        put(owner, i);
      }
    }
    for (auto& connection : connections_) connection.reset();
    config_.vm_pages = PageCount{pages};
    config_.chunk_pages = PageCount{chunk_pages};
    config_.limit = PageCount{2 * pages};
    config_.prefetch = chunk_pages > 1;
    config_.io_timeout = std::chrono::seconds(60);
    config_.ping_interval = std::chrono::seconds(60);
    plan_.emplace(std::move(*plan));
  }
  ~Vm() {
    if (pager_) {
      pager_->release();
      pager_->stop(true);
    }
  }
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // Has the server's memory for `pages` pages touched once, as it is when a VM has been there.
  void warm(std::uint64_t pages) {
    auto connection = wire::Connection::connect(config_.servers[0].uri, {});
    if (!connection) die(connection.error().message);
    const auto attached = (*connection)->attach(config_.session, config_.servers[0].epoch);
    if (!attached) die(attached.error().message);
    connections_[0] = std::move(*connection);
    for (std::uint64_t i = 0; i < pages; i++) put(ServerId{1}, i);
    wire::FrameHeader header = connections_[0]->request(wire::Op::kDiscard, 1);
    header.count = static_cast<std::uint32_t>(pages);
    need(connections_[0]->send_frame(header, {}));
    const auto reply = connections_[0]->receive_header();
    if (!reply || reply->status != 0) die("discard");
    connections_[0].reset();
  }
  [[nodiscard]] PagerConfig& config() { return config_; }
  [[nodiscard]] const Memory& memory() const { return memory_; }
  [[nodiscard]] Pager& pager() { return *pager_; }
  void start() {
    Result<std::unique_ptr<Pager>> pager = Pager::create(config_, *plan_);
    if (!pager) die(pager.error().message);
    pager_ = std::move(*pager);
    need(pager_->add_region(memory_.page(0), PageIndex{0}, PageCount{pages_}));
    need(pager_->claim());
    need(pager_->start());
  }

 private:
  void open(const wire::Uri& uri) {
    auto connection = wire::Connection::connect(uri, {});
    if (!connection) die(connection.error().message);
    wire::OpenRequest request;
    request.session = config_.session;
    request.vm_pages = pages_;
    request.capacity_pages = pages_;
    const auto opened = (*connection)->open(request);
    if (!opened) die(opened.error().message);
    config_.servers.push_back({uri, PageCount{pages_}, opened->epoch});
    connections_.push_back(std::move(*connection));
  }
  void put(ServerId server, std::uint64_t page) {
    wire::Connection& connection = *connections_[server.value - 1U];
    fill_page(page_.data(), page);
    wire::FrameHeader header = connection.request(wire::Op::kPut, page + 1000);
    header.page = page;
    header.count = 1;
    header.version = 1;
    header.length = kPageSize;
    iovec part{page_.data(), page_.size()};
    need(connection.send_frame(header, {&part, 1}));
    const auto reply = connection.receive_header();
    if (!reply || reply->status != 0) die("put");
  }

  static std::mt19937_64 random_;
  std::uint64_t pages_;
  Memory memory_;
  PagerConfig config_;
  std::optional<SplitPlan> plan_;
  std::vector<std::unique_ptr<wire::Connection>> connections_;
  std::vector<char> page_ = std::vector<char>(kPageSize);
  std::unique_ptr<Pager> pager_;
};

std::mt19937_64 Vm::random_{std::random_device{}()};

Touched pager_page_in(const Servers& servers, std::uint64_t pages, unsigned threads,
                      std::uint64_t seed, std::uint64_t chunk_pages = 1) {
  // All but one chunk is remote, in pieces of one page dealt round, as the floor does.
  Vm vm(servers, pages, chunk_pages, chunk_pages);
  vm.start();
  std::vector<std::uint64_t> order = shuffled(pages, seed);
  std::erase_if(order, [&](std::uint64_t page) { return page < chunk_pages; });
  return touch(vm.memory(), order, threads);
}

// The pages in the queue stay there: nothing is acknowledged.
Touched pager_queue(std::uint64_t pages, std::uint64_t seed) {
  test::FakeServer server;
  Vm vm({server.uri()}, 3 * pages, 3 * pages - 64, 64);
  server.order([](const wire::FrameHeader& header) {
    return header.op == static_cast<std::uint16_t>(wire::Op::kPut) ? test::FakeServer::Act::kIgnore
                                                                   : test::FakeServer::Act::kServe;
  });
  vm.config().limit = PageCount{3 * pages - 64};
  vm.config().reserve = PageCount{pages + 64};
  vm.start();
  // The coldest chunks by order of index: everything is equally cold.
  const std::uint64_t deadline = now_ns() + 10'000'000'000ULL;
  while (vm.pager().stats().queued_pages < pages) {
    if (now_ns() > deadline) die("the eviction queue does not fill");
    usleep(1000);
  }
  const Touched touched = touch(vm.memory(), shuffled(pages, seed), 1);
  if (vm.pager().stats().queue_hits + 1 < pages) die("not all pages came from the queue");
  return touched;
}

double pager_out_bytes_per_second(const Servers& servers, std::uint64_t pages,
                                  PageOutMethod method) {
  Vm vm(servers, pages, pages - 64, 64);
  vm.warm(pages - 64);
  vm.config().method = method;
  vm.config().limit = PageCount{pages / 4};
  vm.config().reserve = PageCount{pages / 16};
  const std::uint64_t start = now_ns();
  vm.start();
  const std::uint64_t deadline = start + 60'000'000'000ULL;
  while (!vm.pager().settled()) {
    if (now_ns() > deadline) die("page-out does not come to an end");
    usleep(100);
  }
  const double seconds = static_cast<double>(now_ns() - start) / 1e9;
  return static_cast<double>(vm.pager().stats().page_outs) * kPageSize / seconds;
}

// ---- Results ------------------------------------------------------------------------------------

class Report {
 public:
  // `goal`: what the ratio must reach, from above or from below; 0 is reported only.
  void add(const std::string& name, double value, const std::string& unit,
           const std::string& compared_with, double ratio, double goal, bool at_most) {
    nlohmann::json result;
    result["name"] = name;
    result["value"] = value;
    result["unit"] = unit;
    result["compared_with"] = compared_with;
    result["ratio"] = ratio;
    if (goal > 0) {
      result["goal"] = fmt::format("{} {:.4g}", at_most ? "<=" : ">=", goal);
      result["met"] = at_most ? ratio <= goal : ratio >= goal;
    } else {
      result["goal"] = nullptr;
      result["met"] = nullptr;
    }
    std::fprintf(stderr, "%-44s %12.4g %-8s %6.3f x %-40s %s\n", name.c_str(), value, unit.c_str(),
                 ratio, compared_with.c_str(),
                 goal > 0 ? (result["met"].get<bool>() ? "met" : "MISSED") : "");
    results_.push_back(std::move(result));
  }
  void print() const { std::printf("%s\n", results_.dump(2).c_str()); }

 private:
  nlohmann::json results_ = nlohmann::json::array();
};

// Turns of floor and pager, and the medians over them.
struct Turns {
  std::vector<double> floor, pager;
  void add(double of_floor, double of_pager) {
    floor.push_back(of_floor);
    pager.push_back(of_pager);
  }
  [[nodiscard]] double ratio() const { return median(pager) / median(floor); }
};

void bench_latency(const Options& options, const Servers& servers, Report* report) {
  Turns p50;
  Turns p99;
  Turns chunk;
  for (unsigned i = 0; i < 3 * options.repeat; i++) {
    const Touched floor = bare_page_in(options.pages / 2, 1, 1, i);
    const Touched pager = pager_page_in({servers[0]}, options.pages / 2, 1, i);
    const Touched chunked = pager_page_in({servers[0]}, options.pages / 2, 1, i, 16);
    p50.add(floor.p50_ns, pager.p50_ns);
    p99.add(floor.p99_ns, pager.p99_ns);
    chunk.add(floor.per_second, chunked.per_second);
  }
  const auto against = [](const Turns& turns) {
    return fmt::format("bare userfaultfd + TCP ({:.1f} us)", median(turns.floor) / 1000);
  };
  report->add("page-in p50, 4 KiB", median(p50.pager) / 1000, "us", against(p50), p50.ratio(), 1.15,
              true);
  report->add("page-in p99, 4 KiB", median(p99.pager) / 1000, "us", against(p99), p99.ratio(), 1.5,
              true);
  report->add("pages a second touched, 64 KiB chunks", median(chunk.pager), "1/s",
              fmt::format("bare loop, page by page ({:.0f})", median(chunk.floor)), chunk.ratio(),
              0, false);
}

void bench_queue(const Options& options, Report* report) {
  Turns p50;
  Turns p99;
  for (unsigned i = 0; i < 3 * options.repeat; i++) {
    const Touched floor = bare_local(options.pages / 2, i);
    const Touched pager = pager_queue(options.pages / 2, i);
    p50.add(floor.p50_ns, pager.p50_ns);
    p99.add(floor.p99_ns, pager.p99_ns);
  }
  report->add("fault on a page in the eviction queue p50", median(p50.pager) / 1000, "us",
              fmt::format("bare local handler ({:.1f} us)", median(p50.floor) / 1000), p50.ratio(),
              1.25, true);
  report->add("fault on a page in the eviction queue p99", median(p99.pager) / 1000, "us",
              fmt::format("bare local handler ({:.1f} us)", median(p99.floor) / 1000), p99.ratio(),
              0, true);
}

void bench_scale(const Options& options, const Servers& servers, Report* report) {
  for (const unsigned used : {1U, 2U, 4U}) {
    const Servers some(servers.begin(), servers.begin() + used);
    double before = 0;
    double worst_step = 1e9;
    double best = 0;
    for (const unsigned threads : {1U, 2U, 4U, 8U}) {
      Turns turns;
      for (unsigned i = 0; i < options.repeat; i++) {
        turns.add(bare_page_in(options.pages, threads, used, i).per_second,
                  pager_page_in(some, options.pages, threads, i).per_second);
      }
      const double rate = median(turns.pager);
      report->add(fmt::format("page-ins a second, {} threads, {} servers", threads, used), rate,
                  "1/s", fmt::format("bare loop ({:.0f})", median(turns.floor)), turns.ratio(), 0.8,
                  false);
      if (before > 0) worst_step = std::min(worst_step, rate / best);
      best = std::max(best, rate);
      before = rate;
    }
    // A tenth is noise on a busy machine; a fall is more.
    report->add(fmt::format("no fall as threads are added, {} servers", used), worst_step, "ratio",
                "the best of fewer threads", worst_step, 0.9, false);
  }
}

void bench_out(const Options& options, const Servers& servers, Report* report) {
  constexpr std::uint64_t kPages = 65536;
  Turns move;
  Turns protect;
  for (unsigned i = 0; i < options.repeat; i++) {
    const double floor = bare_stream_bytes_per_second(kPages * kPageSize * 3 / 4);
    move.add(floor, pager_out_bytes_per_second({servers[0]}, kPages, PageOutMethod::kMove));
    protect.add(floor,
                pager_out_bytes_per_second({servers[0]}, kPages, PageOutMethod::kWriteProtect));
  }
  report->add("page-out, one server, by move", median(move.pager) / 1e9, "GB/s",
              fmt::format("raw TCP stream ({:.2f} GB/s)", median(move.floor) / 1e9), move.ratio(),
              0.5, false);
  report->add("page-out, one server, by write protection", median(protect.pager) / 1e9, "GB/s",
              fmt::format("raw TCP stream ({:.2f} GB/s)", median(protect.floor) / 1e9),
              protect.ratio(), 0, false);
}

int bench(const Options& options) {
  Report report;
  std::vector<std::unique_ptr<ServerProcess>> processes;
  Servers servers;
  for (int i = 0; i < 4; i++) {
    processes.push_back(std::make_unique<ServerProcess>(options.memserver));
    servers.push_back(processes.back()->uri());
  }
  const auto wanted = [&](const char* name) {
    return options.only.empty() || options.only == name;
  };
  if (wanted("latency")) bench_latency(options, servers, &report);
  if (wanted("queue")) bench_queue(options, &report);
  if (wanted("scale")) bench_scale(options, servers, &report);
  if (wanted("out")) bench_out(options, servers, &report);
  report.print();
  return 0;
}

Options parse(int argc, char** argv) {
  Options options;
  const auto number = [](const char* text) {
    std::uint64_t value = 0;
    const char* end = text + std::strlen(text);
    if (std::from_chars(text, end, value).ptr != end || value == 0) die("a number is missing");
    return value;
  };
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (i + 1 == argc) die("usage: paging_bench --memserver PROGRAM [--repeat N] [--pages N]");
    const char* value = argv[++i];
    if (word == "--memserver") {
      options.memserver = value;
    } else if (word == "--repeat") {
      options.repeat = static_cast<unsigned>(number(value));
    } else if (word == "--pages") {
      options.pages = number(value);
    } else if (word == "--only") {
      options.only = value;
    } else {
      die("unknown option " + word);
    }
  }
  if (options.memserver.empty()) die("--memserver PROGRAM is missing");
  return options;
}

}  // namespace
}  // namespace kintsugi

int main(int argc, char** argv) {
  try {
    return kintsugi::bench(kintsugi::parse(argc, argv));
  } catch (const std::exception& error) {  // JSON and files
    std::fprintf(stderr, "paging_bench: %s\n", error.what());
    return 1;
  }
}
