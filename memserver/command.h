// SPDX-License-Identifier: GPL-2.0-or-later
// The memserver command: see memserver(8).
#pragma once

namespace kintsugi::memserver {

enum ExitCode : int {
  kExitOk = 0,       // stopped by a signal; ctl: done
  kExitFailure = 1,  // anything else; ctl: refused, or no server there
  kExitUsage = 2,    // the command line
  kExitAddress = 3,  // an address to listen on
  kExitArena = 4,    // the arena: memory, file, geometry
};

int run_command(int argc, char** argv);

}  // namespace kintsugi::memserver
