// SPDX-License-Identifier: GPL-2.0-or-later
// What planning costs for a 2 TiB VM, and what a plan is worth on a recorded guest.
//
//   placement_bench [--vm-gib 2048] [--chunk-pages 16]
//                   [--trace FILE --split-at N --main-percent 40] [--shift-period 4]
//                   [--clock-turn 60]
//
// Prints a JSON list of results to stdout: name, value, unit, compared_with, ratio, goal, met.
//
// Cost: in a process of its own for each policy, a history with every page touched at random is
// planned onto a main host of 40 % and four sub-hosts, and the location map is filled. Seconds are
// for plan and map; the peak of resident memory is for everything: history, ranks, plan, map.
//
// Worth: the scans before --split-at feed the history, the plan is made, and each page touched in
// each later scan counts as one access. Reported is the share of those that fall on the main host,
// without any paging after the split: for the planner with clock and with aging, for random splits
// (ten fixed seeds, the mean), and for the best split there is, whose chunks are chosen by their
// later accesses. The trace format: docs/access-trace.md.

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "access/history.h"
#include "access/trace.h"
#include "pager/location_map.h"
#include "placement/split_plan.h"

namespace kintsugi {
namespace {

constexpr double kMaxSeconds = 10;
constexpr double kMaxPeakBytes = 3.0 * (1ULL << 30);
constexpr double kMaxBytesPerPage = 2;
constexpr unsigned kScalePercent = 40;
constexpr unsigned kScaleServers = 4;
constexpr unsigned kRandomSplits = 10;

struct Options {
  std::uint64_t vm_gib = 2048;
  std::uint64_t chunk_pages = 16;
  std::string trace;
  std::uint64_t split_at = 0;
  std::uint64_t main_percent = 40;
  std::uint64_t shift_period = 4;
  std::uint64_t clock_turn = 60;
};

struct Figure {
  std::string name;
  double value;
  std::string unit;
  std::string compared_with;
  double ratio;
  std::string goal;
  bool met;
};

using Figures = std::vector<Figure>;

const char* name_of(AccessPolicy policy) {
  return policy == AccessPolicy::kClock ? "clock" : "aging";
}

Result<std::unique_ptr<AccessHistory>> make_history(const Options& options, AccessPolicy policy,
                                                    PageCount pages) {
  return AccessHistory::create({.pages = pages,
                                .chunk_pages = PageCount{options.chunk_pages},
                                .policy = policy,
                                .shift_period_ticks = static_cast<unsigned>(options.shift_period),
                                .clock_turn_ticks = static_cast<unsigned>(options.clock_turn)});
}

// A main host of `percent` of the VM, and sub-hosts that just hold the rest.
SplitRequest request_for(const Options& options, PageCount pages, std::uint64_t percent,
                         unsigned servers) {
  const std::uint64_t chunk = options.chunk_pages;
  const std::uint64_t chunks = (pages.value + chunk - 1) / chunk;
  const std::uint64_t main = std::clamp<std::uint64_t>(chunks * percent / 100, 1, chunks);
  const std::uint64_t each = std::max<std::uint64_t>((chunks - main + servers - 1) / servers, 1);
  return {.pages = pages,
          .chunk_pages = PageCount{chunk},
          .main_capacity = PageCount{main * chunk},
          .server_capacities = std::vector<PageCount>(servers, PageCount{each * chunk})};
}

class Timer {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

double resident_bytes() {
  unsigned long size = 0;
  unsigned long resident = 0;
  const FilePtr file(std::fopen("/proc/self/statm", "re"));
  if (!file || std::fscanf(file.get(), "%lu %lu", &size, &resident) != 2) return 0;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

// What the measuring process tells its parent.
struct Scale {
  double feed_seconds = 0;
  double tick_seconds = 0;
  double plan_seconds = 0;
  double map_seconds = 0;
  double encode_seconds = 0;
  double encoded_bytes = 0;
  double map_bytes_per_page = 0;
  double peak_bytes = 0;
};

Result<Scale> measure_scale(const Options& options, AccessPolicy policy) {
  const PageCount pages{options.vm_gib << (30 - kPageShift)};
  auto history = make_history(options, policy, pages);
  if (!history) return history.error();
  Scale scale;

  // Two scans of different density, so that ranks differ from chunk to chunk: the first is shifted
  // on, or partly cleared, before the second.
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> bitmap(1 << 15);
  constexpr unsigned kScans = 2;
  for (unsigned scan = 0; scan < kScans; ++scan) {
    const Timer tick;
    for (unsigned i = 0; i < options.shift_period; ++i) (*history)->tick();
    scale.tick_seconds = std::max(scale.tick_seconds, tick.seconds());
    for (std::uint64_t& word : bitmap) {
      word = random();
      for (unsigned i = 0; i < scan * 4; ++i) word &= random();
    }
    const Timer feed;
    const std::uint64_t step = bitmap.size() * 64;
    for (std::uint64_t first = 0; first < pages.value; first += step) {
      (*history)->feed(PageIndex{first}, bitmap.data(), PageCount{step});
    }
    scale.feed_seconds = std::max(scale.feed_seconds, feed.seconds());
  }

  const Timer planning;
  const auto plan = plan_split(request_for(options, pages, kScalePercent, kScaleServers),
                               ranks_of(**history, PageCount{options.chunk_pages}));
  if (!plan) return plan.error();
  scale.plan_seconds = planning.seconds();

  const double before = resident_bytes();
  const Timer mapping;
  auto map = LocationMap::create(pages);
  if (!map) return map.error();
  if (auto ok = map->init_from(*plan); !ok) return ok.error();
  scale.map_seconds = mapping.seconds();

  // The dearest map there is: every page away.
  map->set_remote(PageIndex{0}, pages, ServerId{1});
  scale.map_bytes_per_page = (resident_bytes() - before) / static_cast<double>(pages.value);
  // What resident_bytes() counts beside the map is noise of some pages.
  scale.map_bytes_per_page =
      std::max(static_cast<double>(map->memory_at_rest().value) / static_cast<double>(pages.value),
               std::round(scale.map_bytes_per_page * 1000) / 1000);

  const Timer encoding;
  std::vector<std::uint8_t> encoded;
  plan->encode(encoded);
  scale.encode_seconds = encoding.seconds();
  scale.encoded_bytes = static_cast<double>(encoded.size());
  scale.peak_bytes = peak_bytes();
  return scale;
}

// measure_scale() in a process of its own, so that the peak is its own too.
Result<Scale> measure_scale_apart(const Options& options, AccessPolicy policy) {
  int ends[2];
  if (pipe(ends) != 0) return make_error(errno, "cannot make a pipe: {}", std::strerror(errno));
  const pid_t child = fork();
  if (child < 0) return make_error(errno, "cannot fork: {}", std::strerror(errno));
  if (child == 0) {
    const auto scale = measure_scale(options, policy);
    if (!scale) {
      fmt::print(stderr, "placement_bench: {}\n", scale.error().message);
      _exit(1);
    }
    const bool sent = write(ends[1], &*scale, sizeof *scale) == sizeof *scale;
    _exit(sent ? 0 : 1);
  }
  close(ends[1]);
  Scale scale;
  const bool got = read(ends[0], &scale, sizeof scale) == sizeof scale;
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!got || status != 0) {
    return make_error(ECHILD,
                      "the measuring process failed (wait status {}): a VM of {} GiB needs about "
                      "{:.1f} GiB of free memory here",
                      status, options.vm_gib, static_cast<double>(options.vm_gib) / 1000);
  }
  return scale;
}

Result<void> run_scale(const Options& options, Figures& figures) {
  for (const AccessPolicy policy : {AccessPolicy::kAging, AccessPolicy::kClock}) {
    fmt::print(stderr, "placement_bench: planning a VM of {} GiB by {}\n", options.vm_gib,
               name_of(policy));
    const auto scale = measure_scale_apart(options, policy);
    if (!scale) return scale.error();
    const std::string vm = fmt::format("{}GiB.{}", options.vm_gib, name_of(policy));
    const double seconds = scale->plan_seconds + scale->map_seconds;
    if (policy == AccessPolicy::kAging) {
      figures.push_back({"placement.location_map", scale->map_bytes_per_page, "bytes/page",
                         "limit of 2 bytes/page", scale->map_bytes_per_page / kMaxBytesPerPage,
                         "<= 2 bytes/page", scale->map_bytes_per_page <= kMaxBytesPerPage});
    }
    figures.push_back({"placement.plan_and_map." + vm, seconds, "s", "limit of 10 s",
                       seconds / kMaxSeconds, "<= 10 s", seconds <= kMaxSeconds});
    figures.push_back({"placement.peak_memory." + vm, scale->peak_bytes, "bytes", "limit of 3 GiB",
                       scale->peak_bytes / kMaxPeakBytes, "<= 3 GiB",
                       scale->peak_bytes <= kMaxPeakBytes});
    // Where the time goes, and what else the tracker and the stream pay.
    const auto report = [&](const char* what, double value, const char* unit, const char* against,
                            double ratio) {
      figures.push_back({fmt::format("placement.{}.{}", what, vm), value, unit, against, ratio,
                         "reported", true});
    };
    report("plan", scale->plan_seconds, "s", "plan and map", scale->plan_seconds / seconds);
    report("map", scale->map_seconds, "s", "plan and map", scale->map_seconds / seconds);
    report("feed", scale->feed_seconds, "s", "a scan period of 1 s", scale->feed_seconds);
    report("shift_or_hand", scale->tick_seconds, "s", "a scan period of 1 s", scale->tick_seconds);
    report("encoded_plan", scale->encoded_bytes, "bytes", "one byte a chunk",
           scale->encoded_bytes * static_cast<double>(options.chunk_pages) /
               static_cast<double>(options.vm_gib << (30 - kPageShift)));
    report("encode", scale->encode_seconds, "s", "plan and map", scale->encode_seconds / seconds);
  }
  return {};
}

// What a trace says about the time before and after the split.
struct Replay {
  PageCount pages;
  std::unique_ptr<AccessHistory> clock;
  std::unique_ptr<AccessHistory> aging;
  std::vector<std::uint64_t> later;  // accesses after the split, by chunk
  std::uint64_t scans = 0;
};

void count_by_chunk(const std::vector<PageRun>& runs, std::uint64_t chunk,
                    std::vector<std::uint64_t>& counts) {
  for (const PageRun& run : runs) {
    const std::uint64_t end = run.first.value + run.count.value;
    for (std::uint64_t page = run.first.value; page < end;) {
      const std::uint64_t next = std::min((page / chunk + 1) * chunk, end);
      counts[page / chunk] += next - page;
      page = next;
    }
  }
}

Result<Replay> read_trace(const Options& options) {
  auto reader = TraceReader::open(options.trace);
  if (!reader) return reader.error();
  Replay replay;
  replay.pages = reader->pages();
  auto clock = make_history(options, AccessPolicy::kClock, replay.pages);
  if (!clock) return clock.error();
  auto aging = make_history(options, AccessPolicy::kAging, replay.pages);
  if (!aging) return aging.error();
  replay.clock = std::move(*clock);
  replay.aging = std::move(*aging);
  replay.later.resize(replay.clock->chunks());

  std::vector<PageRun> runs;
  for (;; ++replay.scans) {
    auto more = reader->next_scan(runs);
    if (!more) return more.error();
    if (!*more) break;
    if (replay.scans >= options.split_at) {
      count_by_chunk(runs, options.chunk_pages, replay.later);
      continue;
    }
    for (AccessHistory* history : {replay.clock.get(), replay.aging.get()}) {
      history->tick();
      for (const PageRun& run : runs) history->mark_range(run.first, run.count);
    }
  }
  if (replay.scans <= options.split_at) {
    return make_error(EINVAL, "{} has {} scans: --split-at {} leaves none to count; use less",
                      options.trace, replay.scans, options.split_at);
  }
  return replay;
}

std::uint64_t hits(const SplitPlan& plan, const std::vector<std::uint64_t>& later) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < later.size(); ++i) {
    if (plan.owner(ChunkIndex{i}) == kMainHost) sum += later[i];
  }
  return sum;
}

std::uint64_t hits_of_first(const std::vector<std::uint64_t>& counts, std::uint64_t room) {
  const std::size_t n = std::min<std::uint64_t>(room, counts.size());
  return std::accumulate(counts.begin(), counts.begin() + n, std::uint64_t{0});
}

Result<void> run_replay(const Options& options, Figures& figures) {
  const auto replay = read_trace(options);
  if (!replay) return replay.error();
  const SplitRequest request = request_for(options, replay->pages, options.main_percent, 1);
  const std::uint64_t room = request.main_capacity.value / options.chunk_pages;
  const std::uint64_t all =
      std::accumulate(replay->later.begin(), replay->later.end(), std::uint64_t{0});
  if (all == 0) {
    return make_error(EINVAL, "{} has no access after scan {}: use a smaller --split-at",
                      options.trace, options.split_at);
  }
  const auto share = [all](double hit) { return hit / static_cast<double>(all); };

  std::vector<std::uint64_t> counts = replay->later;
  std::sort(counts.begin(), counts.end(), std::greater<>());
  const double optimum = share(static_cast<double>(hits_of_first(counts, room)));

  double random_hits = 0;
  for (unsigned seed = 1; seed <= kRandomSplits; ++seed) {
    std::mt19937_64 random(seed);
    counts = replay->later;
    std::shuffle(counts.begin(), counts.end(), random);
    random_hits += static_cast<double>(hits_of_first(counts, room));
  }
  const double random = share(random_hits / kRandomSplits);

  const std::string where = fmt::format("main host {} %", options.main_percent);
  const auto report = [&](const std::string& name, double value, const char* against,
                          double rival) {
    figures.push_back({"placement.replay." + name, value, "share of later accesses",
                       fmt::format("{}, {}", against, where), rival > 0 ? value / rival : 0,
                       "reported", true});
  };
  for (const AccessHistory* history : {replay->clock.get(), replay->aging.get()}) {
    const auto plan = plan_split(request, ranks_of(*history, request.chunk_pages));
    if (!plan) return plan.error();
    const double value = share(static_cast<double>(hits(*plan, replay->later)));
    const std::string policy = name_of(history->policy());
    report(policy, value, "offline optimum", optimum);
    report(policy + ".against_random", value, "random split", random);
  }
  report("random", random, "offline optimum", optimum);
  report("optimum", optimum, "offline optimum", optimum);
  fmt::print(stderr, "placement_bench: {} scans of {} MiB, split after {}, {} later accesses\n",
             replay->scans, to_bytes(replay->pages).value >> 20, options.split_at, all);
  return {};
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

void print_json(const Figures& figures) {
  fmt::print("[\n");
  for (std::size_t i = 0; i < figures.size(); ++i) {
    const Figure& f = figures[i];
    fmt::print(
        "  {{\"name\": {}, \"value\": {:.9g}, \"unit\": {}, \"compared_with\": {}, "
        "\"ratio\": {:.4g}, \"goal\": {}, \"met\": {}}}{}\n",
        json_string(f.name), f.value, json_string(f.unit), json_string(f.compared_with), f.ratio,
        json_string(f.goal), f.met, i + 1 < figures.size() ? "," : "");
  }
  fmt::print("]\n");
}

constexpr const char* kUsage =
    "usage: placement_bench [--vm-gib N] [--chunk-pages N] [--shift-period SCANS]\n"
    "                       [--clock-turn SCANS] [--trace FILE --split-at N [--main-percent N]]\n"
    "  --vm-gib 0 leaves the simulated VM out.\n";

Result<Options> parse(int argc, char** argv) {
  Options options;
  struct Number {
    std::string_view name;
    std::uint64_t* value;
    std::uint64_t least;
    std::uint64_t most;
  };
  const std::vector<Number> numbers = {
      {"--vm-gib", &options.vm_gib, 0, 1ULL << 16},
      {"--chunk-pages", &options.chunk_pages, 1, kMaxChunkPages.value},
      {"--split-at", &options.split_at, 1, 1ULL << 32},
      {"--main-percent", &options.main_percent, 1, 100},
      {"--shift-period", &options.shift_period, 1, 1 << 20},
      {"--clock-turn", &options.clock_turn, 0, 1 << 20},
  };
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    const auto number = std::find_if(numbers.begin(), numbers.end(),
                                     [name](const Number& n) { return n.name == name; });
    if (number == numbers.end() && name != "--trace") {
      return make_error(EINVAL, "unknown option {}\n{}", name, kUsage);
    }
    if (++i == argc) return make_error(EINVAL, "{} needs a value\n{}", name, kUsage);
    if (name == "--trace") {
      options.trace = argv[i];
      continue;
    }
    const char* end = argv[i] + std::strlen(argv[i]);
    const auto [at, error] = std::from_chars(argv[i], end, *number->value);
    if (error != std::errc() || at != end || *number->value < number->least ||
        *number->value > number->most) {
      return make_error(EINVAL, "{} {}: use a number from {} to {}", name, argv[i], number->least,
                        number->most);
    }
  }
  if (auto ok = check_chunk_pages(PageCount{options.chunk_pages}); !ok) return ok.error();
  if (options.trace.empty() != (options.split_at == 0)) {
    return make_error(EINVAL, "--trace and --split-at go together\n{}", kUsage);
  }
  return options;
}

Result<Figures> run(int argc, char** argv) {
  const auto options = parse(argc, argv);
  if (!options) return options.error();
  Figures figures;
  if (options->vm_gib != 0) {
    if (auto ok = run_scale(*options, figures); !ok) return ok.error();
  }
  if (!options->trace.empty()) {
    if (auto ok = run_replay(*options, figures); !ok) return ok.error();
  }
  return figures;
}

}  // namespace
}  // namespace kintsugi

int main(int argc, char** argv) {
  try {
    const auto figures = kintsugi::run(argc, argv);
    if (!figures) {
      fmt::print(stderr, "placement_bench: {}\n", figures.error().message);
      return 1;
    }
    kintsugi::print_json(*figures);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "placement_bench: %s\n", e.what());
    return 1;
  }
}
