// SPDX-License-Identifier: GPL-2.0-or-later
// A file or socket in the file system that is removed at the end, unless somebody else, a successor
// say, has put another one in its place.
#pragma once

#include <string>

namespace kintsugi::memserver {

class OwnedPath {
 public:
  OwnedPath() = default;
  // What is at `path` now is ours.
  explicit OwnedPath(std::string path);
  ~OwnedPath();
  OwnedPath(OwnedPath&& other) noexcept;
  OwnedPath& operator=(OwnedPath&& other) noexcept;

 private:
  std::string path_;  // empty: nothing is owned
  int fd_ = -1;       // keeps the inode, so that its number is not another's
};

}  // namespace kintsugi::memserver
