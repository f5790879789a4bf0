// SPDX-License-Identifier: GPL-2.0-or-later
// A socket that clients connect to.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "memserver/owned_path.h"
#include "wire/uri.h"

namespace kintsugi::memserver {

class Listener {
 public:
  // One for each address that the URI's host has; port 0 takes a free one, the same for all. An
  // address that this machine has not is left out, with a warning, if there are others. A Unix
  // socket left behind by a dead process is replaced, a live one is an error. `mode`: of a
  // Unix socket.
  [[nodiscard]] static Result<std::vector<std::unique_ptr<Listener>>> open(const wire::Uri& uri,
                                                                           unsigned mode);
  // Closes it and removes a Unix socket's file.
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  [[nodiscard]] int fd() const { return fd_; }
  // Where it really listens.
  [[nodiscard]] const wire::Uri& uri() const { return uri_; }

  struct Accepted {
    int fd = -1;  // blocking, or a negative errno
    std::string peer;
  };
  // A connection that waits, ready for use: no delay, keepalive.
  [[nodiscard]] Accepted accept() const;

 private:
  Listener(int fd, wire::Uri uri) : fd_(fd), uri_(std::move(uri)) {}
  [[nodiscard]] static Result<std::unique_ptr<Listener>> open_unix(const wire::Uri& uri,
                                                                   unsigned mode);

  int fd_;
  wire::Uri uri_;
  OwnedPath path_;  // of a Unix socket
};

}  // namespace kintsugi::memserver
