// SPDX-License-Identifier: GPL-2.0-or-later
// The server's figures for Prometheus, at http://HOST:PORT/metrics, in threads of their own.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "memserver/figures.h"

namespace kintsugi::memserver {

class Metrics {
 public:
  // `address`: HOST:PORT, port 0 for a free one.
  [[nodiscard]] static Result<std::unique_ptr<Metrics>> start(const std::string& address,
                                                              CollectFigures collect);
  virtual ~Metrics() = default;
  // Where it really listens.
  [[nodiscard]] virtual const std::string& address() const = 0;
};

}  // namespace kintsugi::memserver
