// SPDX-License-Identifier: GPL-2.0-or-later
#include "tools/sim.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tiering/bounds.h"
#include "tiering/policy.h"
#include "tiering/simulator.h"
#include "tiering/synthetic.h"
#include "tools/sim_report.h"

namespace kintsugi::tools {
namespace {

constexpr std::string_view kSynthetic = "synthetic:";

constexpr const char* kFooter = R"(Examples:
  kintsugi sim build.trace --policy none,mq,kintsugi --fast-percent 2.4
  kintsugi sim synthetic:zipf synthetic:phases --fast-percent 10 --json
  kintsugi sim db.trace --policy mq --set mq:queues=4 --plot db.svg

Bytes of a trace with write-backs are what was counted; of another, each page written in
a period counts as --bytes-per-write. A swap writes 4096 bytes to each tier.)";

struct SimCommand {
  std::vector<std::string> traces;
  std::vector<std::string> policies = {"none", "lru", "mq", "kintsugi"};
  double fast_percent = 2.4;
  std::optional<std::uint64_t> fast_pages;
  std::string fast_at = "end";
  std::vector<std::string> settings;
  std::optional<double> limit, gate;
  SimulationOptions options;
  SyntheticOptions synthetic;
  std::uint64_t synthetic_pages = 1 << 20;
  bool accesses_are_writes = false, no_bounds = false, json = false, list = false;
  std::string plot;
};

void add_options(CLI::App* sim, SimCommand* c) {
  sim->add_option("TRACE", c->traces,
                  "Access traces, or synthetic:NAME; names are listed by --list")
      ->type_name("");
  sim->add_option("--policy", c->policies, "Policies, with commas between")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str()
      ->type_name("NAME");
  auto* percent = sim->add_option("--fast-percent", c->fast_percent, "Fast tier, of the VM's pages")
                      ->capture_default_str()
                      ->check(CLI::Range(0.0, 100.0).description(""))
                      ->type_name("P");
  sim->add_option("--fast-pages", c->fast_pages, "The same in pages")
      ->excludes(percent)
      ->type_name("N");
  sim->add_option("--fast-at", c->fast_at, "Where fast pages lie at first: start or end of the VM")
      ->capture_default_str()
      ->check(CLI::IsMember({"start", "end"}).description(""))
      ->type_name("WHERE");
  sim->add_option("--limit", c->limit, "Pairs a decision [1000]")->type_name("N");
  sim->add_option("--period", c->options.scans_per_decision, "Scans between decisions")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1000000U).description(""))
      ->type_name("N");
  sim->add_option("--ping-pong-gate", c->gate,
                  "Decisions for which a swapped page stays where it is [0]")
      ->type_name("N");
  sim->add_option("--set", c->settings, "A parameter of all policies named, or of one of them")
      ->allow_extra_args(false)
      ->type_name("[POLICY:]NAME=VALUE");
  sim->add_option("--bytes-per-write", c->options.bytes_per_write,
                  "What a page written in a period writes to memory, in traces without write-backs")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1U << 30).description(""))
      ->type_name("BYTES");
  sim->add_flag("--accesses-are-writes", c->accesses_are_writes,
                "Take traces of version 1, and every access in them for a write");
  sim->add_option("--scans", c->synthetic.scans, "Scans of a synthetic workload")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1000000U).description(""))
      ->type_name("N");
  sim->add_option("--pages", c->synthetic_pages, "Pages of a synthetic workload")
      ->capture_default_str()
      ->type_name("N");
  sim->add_flag("--no-bounds", c->no_bounds, "Leave out the bounds, which take longest");
  sim->add_flag("--json", c->json, "JSON instead of a table, with figures of each scan");
  sim->add_option("--plot", c->plot, "Draw bytes to each tier over time; needs matplotlib")
      ->type_name("FILE.svg|FILE.png");
  sim->add_flag("--list", c->list, "List policies with their parameters, and synthetic workloads");
  sim->footer(kFooter);
}

// Settings for `policy`, of all that were given. One with a policy's name before it is for that
// policy alone.
Result<SimulationOptions> options_for(const SimCommand& c, const std::string& policy,
                                      const Workload& workload) {
  SimulationOptions options = c.options;
  options.fast_at_end = c.fast_at == "end";
  const double share = static_cast<double>(workload.pages.value) * c.fast_percent / 100;
  options.fast_pages =
      PageCount{c.fast_pages.value_or(static_cast<std::uint64_t>(std::llround(share)))};
  if (c.limit) options.parameters.emplace_back("limit", *c.limit);
  if (c.gate) options.parameters.emplace_back("ping-pong-gate", *c.gate);
  for (const std::string& setting : c.settings) {
    std::string_view text = setting;
    const std::size_t colon = text.find(':');
    if (colon != std::string_view::npos) {
      if (text.substr(0, colon) != policy) continue;
      text.remove_prefix(colon + 1);
    }
    const std::size_t equals = text.find('=');
    double value = 0;
    const char* end = text.data() + text.size();
    if (equals == std::string_view::npos ||
        std::from_chars(text.data() + equals + 1, end, value).ptr != end ||
        equals + 1 == text.size()) {
      return make_error(EINVAL, "--set {}: expected [POLICY:]NAME=VALUE with a number", setting);
    }
    options.parameters.emplace_back(text.substr(0, equals), value);
  }
  return options;
}

Result<Workload> get_workload(const SimCommand& c, const std::string& name) {
  if (!name.starts_with(kSynthetic)) return load_workload(name, c.accesses_are_writes);
  SyntheticOptions options = c.synthetic;
  options.pages = PageCount{c.synthetic_pages};
  return make_synthetic(name.substr(kSynthetic.size()), options);
}

Result<std::vector<SimReport>> run_all(const SimCommand& c) {
  std::vector<SimReport> reports;
  for (const std::string& name : c.traces) {
    const auto workload = get_workload(c, name);
    if (!workload) return workload.error();
    SimReport report{.workload = name, .pages = workload->pages, .metered = workload->metered};
    for (const std::string& policy : c.policies) {
      const auto options = options_for(c, policy, *workload);
      if (!options) return options.error();
      report.fast_pages = options->fast_pages;
      report.scans_per_decision = options->scans_per_decision;
      auto result = simulate(*workload, policy, *options);
      if (!result) return result.error();
      report.results.push_back(std::move(*result));
    }
    if (!c.no_bounds && !c.policies.empty()) {
      report.bounds = tiering_bounds(*workload, *options_for(c, "", *workload));
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

int run_sim(const SimCommand& c) {
  if (c.traces.empty()) {
    std::fprintf(stderr, "kintsugi sim: name a trace, or synthetic:NAME; see --help\n");
    return 2;
  }
  const auto reports = run_all(c);
  if (!reports) {
    std::fprintf(stderr, "kintsugi sim: %s\n", reports.error().message.c_str());
    return 1;
  }
  std::fputs(c.json ? to_json(*reports).c_str() : to_table(*reports).c_str(), stdout);
  if (c.plot.empty()) return 0;
  if (auto ok = plot(*reports, c.plot); !ok) {
    std::fprintf(stderr, "kintsugi sim: %s\n", ok.error().message.c_str());
    return 1;
  }
  return 0;
}

int list() {
  std::puts("Policies:");
  for (const PolicyName& policy : policy_names()) {
    std::printf("  %-12s %s\n", policy.name.data(), policy.about.data());
    auto placement = Placement::create(PageCount{1});
    auto made = make_policy(policy.name, *placement);
    for (const Parameter& p : (*made)->parameters()) {
      std::printf("    %-20s %s [%g]\n", p.name.data(), p.help.data(), p.value);
    }
  }
  std::puts("Synthetic workloads:");
  for (const SyntheticName& name : synthetic_names()) {
    std::printf("  %-12s %s\n", name.name.data(), name.about.data());
  }
  return 0;
}

}  // namespace

void add_sim(CLI::App& app, int& status) {
  auto command = std::make_shared<SimCommand>();
  CLI::App* sim =
      app.add_subcommand("sim", "Play access traces to tiering policies, and count slow writes");
  add_options(sim, command.get());
  sim->callback(
      [command, sim, &status] { status = sim->count("--list") != 0 ? list() : run_sim(*command); });
}

}  // namespace kintsugi::tools
