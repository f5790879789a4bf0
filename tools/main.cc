// SPDX-License-Identifier: GPL-2.0-or-later
// kintsugi: the tools of a host, and what can be tried without one.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "tools/sim.h"

namespace {

constexpr int kCommandLine = 2;

int run(int argc, char** argv) {
  CLI::App app("Tools for hosts whose virtual machines live in several kinds of memory.");
  app.set_version_flag("--version", "kintsugi " KINTSUGI_VERSION);
  app.require_subcommand(1);
  app.footer("Exit codes: 0 done, 1 failure, 2 command line.");
  int status = 0;
  kintsugi::tools::add_sim(app, status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kCommandLine;
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kintsugi: %s\n", e.what());
    return 1;
  }
}
