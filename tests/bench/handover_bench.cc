// SPDX-License-Identifier: GPL-2.0-or-later
// What the handover adds to the downtime, by size of the plan and number of servers.
//
//   handover_bench [--vm-gib 2048] [--servers 16] [--rounds 5]
//
// Measured is what the destination does between the end of the stream and the vCPUs' start: claim,
// register memory, start the pager, commit; with servers in this process that answer at once. A
// simulated VM of 2 TiB whose plan is as scattered as random ranks make it, on 16 servers, against
// a VM of 1 GiB on one server. What is done earlier, while the VM still runs at the source, is
// reported too. Prints a JSON list: name, value, unit, compared_with, ratio, goal, met.
#include <fmt/format.h>
#include <sys/mman.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pager/pager.h"
#include "placement/split_plan.h"
#include "tests/unit/pager/fake_server.h"
#include "wire/connection.h"

namespace kintsugi {
namespace {

constexpr double kGoalMs = 10;
constexpr PageCount kChunk{16};
constexpr unsigned kMainPercent = 40;

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

template <typename T>
T need(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return std::move(*result);
}
void need(const Result<void>& result) {
  if (!result) throw std::runtime_error(result.error().message);
}

// Any number from a chunk's index, always the same.
std::uint16_t scattered(std::uint64_t chunk) {
  return static_cast<std::uint16_t>((chunk * 0x9e3779b97f4a7c15ULL) >> 48);
}

struct Times {
  double before_ms = 0;    // while the VM runs at the source
  double downtime_ms = 0;  // while it is stopped
  double runs = 0;         // of remote pages in the plan
};

class Vm {
 public:
  Vm(std::uint64_t gib, unsigned servers) : pages_(gib << 18) {
    SplitRequest request;
    request.pages = PageCount{pages_};
    request.chunk_pages = kChunk;
    request.main_capacity = PageCount{pages_ * kMainPercent / 100};
    for (unsigned i = 0; i < servers; i++) {
      servers_.push_back(std::make_unique<test::FakeServer>());
      request.server_capacities.push_back(PageCount{pages_ / servers + 4 * kChunk.value});
    }
    const RankSource ranks = [](ChunkIndex first, std::span<std::uint16_t> out) {
      for (std::size_t i = 0; i < out.size(); i++) out[i] = scattered(first.value + i);
    };
    plan_.emplace(need(plan_split(request, ranks)));
    memory_ = mmap(nullptr, pages_ * kPageSize, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::runtime_error("no addresses for the VM's memory");
  }
  ~Vm() { munmap(memory_, pages_ * kPageSize); }
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  Times hand_over() {
    Times times;
    plan_->for_each_run(
        [&](ServerId owner, PageIndex, PageCount) { times.runs += owner == kMainHost ? 0 : 1; });
    PagerConfig config;
    config.session[0] = ++session_;
    config.vm_pages = PageCount{pages_};
    config.chunk_pages = kChunk;
    config.limit = PageCount{pages_ / 2};
    config.memory_limit = [] { return MemoryLimit{Bytes{UINT64_MAX}, ""}; };
    for (unsigned i = 0; i < servers_.size(); i++) {
      const ServerId id{static_cast<std::uint8_t>(i + 1)};
      servers_[i]->pretend(plan_->pages_on(id).value);
      auto connection = need(wire::Connection::connect(servers_[i]->uri(), {}));
      wire::OpenRequest open;
      open.session = config.session;
      open.vm_pages = pages_;
      open.capacity_pages = pages_;
      const wire::SessionInfo info = need(connection->open(open));
      config.servers.push_back({servers_[i]->uri(), PageCount{pages_}, info.epoch});
    }
    const std::unique_ptr<Pager> pager = need(Pager::create(std::move(config), *plan_));
    auto start = std::chrono::steady_clock::now();
    need(pager->connect());
    need(pager->add_region(memory_, PageIndex{0}, PageCount{pages_}));
    times.before_ms = ms_since(start);
    start = std::chrono::steady_clock::now();
    need(pager->claim());
    need(pager->start());
    need(pager->commit());
    times.downtime_ms = ms_since(start);
    pager->release();
    pager->stop(false);
    return times;
  }

 private:
  std::uint64_t pages_;
  std::vector<std::unique_ptr<test::FakeServer>> servers_;
  std::optional<SplitPlan> plan_;
  void* memory_ = nullptr;
  std::uint8_t session_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void run(std::uint64_t vm_gib, unsigned servers, unsigned rounds) {
  Vm small(1, 1);
  Vm large(vm_gib, servers);
  std::vector<double> small_ms, large_ms, before_ms;
  double runs = 0;
  for (unsigned i = 0; i < rounds; i++) {
    small_ms.push_back(small.hand_over().downtime_ms);
    const Times times = large.hand_over();
    large_ms.push_back(times.downtime_ms);
    before_ms.push_back(times.before_ms);
    runs = times.runs;
  }
  const double difference = median(large_ms) - median(small_ms);
  const std::string what =
      fmt::format("{} GiB in {:.0f} remote runs on {} servers", vm_gib, runs, servers);
  nlohmann::json results;
  results.push_back(
      {{"name", "handover in the downtime, " + what},
       {"value", median(large_ms)},
       {"unit", "ms"},
       {"compared_with", fmt::format("1 GiB on 1 server: {:.2f} ms", median(small_ms))},
       {"ratio", difference},
       {"goal", fmt::format("<= +{:.0f} ms", kGoalMs)},
       {"met", difference <= kGoalMs}});
  results.push_back({{"name", "handover prepared while the VM runs, " + what},
                     {"value", median(before_ms)},
                     {"unit", "ms"},
                     {"compared_with", nullptr},
                     {"ratio", nullptr},
                     {"goal", nullptr},
                     {"met", nullptr}});
  std::puts(results.dump(2).c_str());
}

}  // namespace
}  // namespace kintsugi

int main(int argc, char** argv) {
  CLI::App app("Measures what a handover adds to the downtime.");
  std::uint64_t vm_gib = 2048;
  unsigned servers = 16;
  unsigned rounds = 5;
  app.add_option("--vm-gib", vm_gib, "Size of the large VM")->capture_default_str();
  app.add_option("--servers", servers, "Its memory servers")
      ->capture_default_str()
      ->check(CLI::Range(1U, kintsugi::kMaxServers));
  app.add_option("--rounds", rounds, "Handovers of each")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    kintsugi::run(vm_gib, servers, rounds);
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "handover_bench: {}\n", error.what());
    return 1;
  }
}
