// SPDX-License-Identifier: GPL-2.0-or-later
// The arena outlives the process: systemd keeps its descriptor while a unit is restarted, and gives
// it to the next process (sd_pid_notify_with_fds(3), sd_listen_fds_with_names(3)). Nothing has to
// be set up for it but the unit that is shipped.
#pragma once

namespace kintsugi::memserver {

// Whether somebody who may keep descriptors has started us.
[[nodiscard]] bool has_fd_store();
// The arena that the process before us left there; -1 without.
[[nodiscard]] int arena_from_fd_store();
// Leaves the arena there, in place of whatever was; -1: nothing. False: it cannot be kept, the log
// says why.
bool arena_to_fd_store(int fd);

}  // namespace kintsugi::memserver
