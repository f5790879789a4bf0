// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/owned_path.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

namespace kintsugi::memserver {

OwnedPath::OwnedPath(std::string path)
    : path_(std::move(path)), fd_(open(path_.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)) {}

OwnedPath::~OwnedPath() {
  if (fd_ < 0) return;
  struct stat ours {};
  struct stat there {};
  if (fstat(fd_, &ours) == 0 && lstat(path_.c_str(), &there) == 0 && ours.st_dev == there.st_dev &&
      ours.st_ino == there.st_ino) {
    unlink(path_.c_str());
  }
  close(fd_);
}

OwnedPath::OwnedPath(OwnedPath&& other) noexcept { *this = std::move(other); }

OwnedPath& OwnedPath::operator=(OwnedPath&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  return *this;
}

}  // namespace kintsugi::memserver
