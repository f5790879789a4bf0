// SPDX-License-Identifier: GPL-2.0-or-later
// From a server's URI to the addresses it may be at.
#pragma once

#include <netdb.h>
#include <sys/socket.h>

#include <chrono>
#include <functional>
#include <vector>

#include "base/result.h"
#include "wire/uri.h"

namespace kintsugi::wire {

class Canceller;

struct Endpoint {
  sockaddr_storage address{};
  socklen_t length = 0;
};

// As getaddrinfo(3), which tests replace.
using Lookup =
    std::function<int(const char* host, const char* port, const addrinfo* hints, addrinfo** list)>;

// All addresses of a URI, in the order in which they are to be tried. A number needs no look-up; a
// name is looked up in a thread of its own, because a resolver may take any time: after `timeout`,
// or when cancelled, that thread is left behind and ends by itself. Errors: EHOSTUNREACH, no such
// name; ETIMEDOUT; ECANCELED. Any thread.
[[nodiscard]] Result<std::vector<Endpoint>> resolve(const Uri& uri,
                                                    std::chrono::milliseconds timeout,
                                                    const Canceller* canceller,
                                                    const Lookup& lookup = &getaddrinfo);

}  // namespace kintsugi::wire
