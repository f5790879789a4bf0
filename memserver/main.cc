// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/command.h"

int main(int argc, char** argv) { return kintsugi::memserver::run_command(argc, argv); }
