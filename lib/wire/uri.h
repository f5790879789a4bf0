// SPDX-License-Identifier: GPL-2.0-or-later
// Where a memory server listens: tcp:HOST:PORT, tcp:[V6]:PORT or unix:PATH.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace kintsugi::wire {

struct Uri {
  enum class Kind { kTcp, kUnix };
  Kind kind = Kind::kTcp;
  std::string host;  // kTcp: name or address, without brackets
  std::string port;  // kTcp: decimal, 0..65535
  std::string path;  // kUnix: shorter than sockaddr_un's bound

  // The form parse_uri() takes.
  [[nodiscard]] std::string text() const;
};

// The error names the URI and the forms there are.
[[nodiscard]] Result<Uri> parse_uri(std::string_view text);

}  // namespace kintsugi::wire
