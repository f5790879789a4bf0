// SPDX-License-Identifier: GPL-2.0-or-later
// How long what is left takes to move, where QEMU knows only the bandwidth of all ways together.
//
// QEMU divides what is left by what went in its last measuring period, to the main host and to the
// sub-hosts. If what is left goes one way mostly, it takes longer: as many times as all that went
// is more than what went that way. A way that little went is not as slow as that, so no way is
// taken to be slower than by the number of hosts.
//
// Threads: one at a time.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kintsugi {

class SplitPace {
 public:
  explicit SplitPace(unsigned sub_hosts) : most_(sub_hosts + 1) {}

  // The measuring period that began at `began_ms` began with so many bytes sent since the start, to
  // the main host and to all sub-hosts. May be called again in the same period.
  void period(std::int64_t began_ms, std::uint64_t main_bytes, std::uint64_t sub_bytes) {
    if (began_ms == began_ms_) return;
    const auto main = static_cast<double>(main_bytes - main_bytes_);
    const auto sub = static_cast<double>(sub_bytes - sub_bytes_);
    main_ = std::min(most_, (main + sub) / std::max(main, 1.0));
    sub_ = std::min(most_, (main + sub) / std::max(sub, 1.0));
    began_ms_ = began_ms;
    main_bytes_ = main_bytes;
    sub_bytes_ = sub_bytes;
  }

  // How many times longer than QEMU believes, 1 or more, if `sub_share` of what is left (0 to 1)
  // goes to sub-hosts. Both ways are used at a time.
  [[nodiscard]] double slowdown(double sub_share) const {
    return std::max({1.0, (1 - sub_share) * main_, sub_share * sub_});
  }

 private:
  double most_;
  std::int64_t began_ms_ = 0;
  std::uint64_t main_bytes_ = 0;
  std::uint64_t sub_bytes_ = 0;
  // All that went in the last period, to what went each way.
  double main_ = 1;
  double sub_ = 1;
};

}  // namespace kintsugi
