// SPDX-License-Identifier: GPL-2.0-or-later
#include "wire/uri.h"

#include <sys/un.h>

#include <charconv>

namespace kintsugi::wire {
namespace {

bool is_port(std::string_view text) {
  unsigned port = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), port);
  return ec == std::errc{} && end == text.data() + text.size() && port <= UINT16_MAX;
}

}  // namespace

std::string Uri::text() const {
  if (kind == Kind::kUnix) return "unix:" + path;
  const bool v6 = host.find(':') != std::string::npos;
  return v6 ? fmt::format("tcp:[{}]:{}", host, port) : fmt::format("tcp:{}:{}", host, port);
}

Result<Uri> parse_uri(std::string_view text) {
  const auto refuse = [&](const char* why) {
    return make_error(EINVAL,
                      "'{}' is not a memory server's address: {}; write tcp:HOST:PORT, "
                      "tcp:[IPV6]:PORT or unix:PATH",
                      text, why);
  };
  Uri uri;
  if (text.starts_with("unix:")) {
    uri.kind = Uri::Kind::kUnix;
    uri.path = text.substr(5);
    if (uri.path.empty()) return refuse("the path is missing");
    if (uri.path.size() >= sizeof(sockaddr_un::sun_path)) return refuse("the path is too long");
    return uri;
  }
  if (!text.starts_with("tcp:")) return refuse("it has no known scheme");
  const std::string_view rest = text.substr(4);
  const std::size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return refuse("host or port is missing");
  std::string_view host = rest.substr(0, colon);
  if (host.front() == '[') {
    if (host.back() != ']' || host.size() < 3) return refuse("the bracket is not closed");
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return refuse("an IPv6 address goes in brackets");
  }
  uri.host = host;
  uri.port = rest.substr(colon + 1);
  if (!is_port(uri.port)) return refuse("the port is not a number from 0 to 65535");
  return uri;
}

}  // namespace kintsugi::wire
