// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/fd_store.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "memserver/text.h"

namespace kintsugi::memserver {
namespace {

constexpr const char* kName = "kintsugi-arena";

}  // namespace

bool has_fd_store() { return std::getenv("NOTIFY_SOCKET") != nullptr; }

int arena_from_fd_store() {
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(1, &names);
  int found = -1;
  for (int i = 0; i < count; i++) {
    const int fd = SD_LISTEN_FDS_START + i;
    // The newest, if a process died between two of arena_to_fd_store()'s steps.
    if (std::string_view(names[i]) == kName) {
      if (found >= 0) close(found);
      found = fd;
    }
    std::free(names[i]);
  }
  std::free(names);
  return found;
}

bool arena_to_fd_store(int fd) {
  sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", kName);
  if (fd < 0) return true;
  const std::string state = fmt::format("FDSTORE=1\nFDNAME={}", kName);
  const int sent = sd_pid_notify_with_fds(0, 0, state.c_str(), &fd, 1);
  if (sent > 0) return true;
  spdlog::warn("the service manager cannot keep the arena for the next process: {}",
               sent < 0 ? errno_text(-sent) : "there is none");
  return false;
}

}  // namespace kintsugi::memserver
