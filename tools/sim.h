// SPDX-License-Identifier: GPL-2.0-or-later
// `kintsugi sim`: tiering policies on recorded or made workloads.
#pragma once

#include <CLI/App.hpp>

namespace kintsugi::tools {

// Adds the subcommand, which sets `status`, the program's exit status, when it is run.
void add_sim(CLI::App& app, int& status);

}  // namespace kintsugi::tools
