// SPDX-License-Identifier: GPL-2.0-or-later
// Workloads made by rule, where no recorded guest is at hand: the same at each call.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"
#include "base/types.h"
#include "tiering/workload.h"

namespace kintsugi {

struct SyntheticName {
  std::string_view name;
  std::string_view about;
};
[[nodiscard]] std::span<const SyntheticName> synthetic_names();

struct SyntheticOptions {
  PageCount pages{1 << 20};  // 4 GiB
  unsigned scans = 300;
  std::uint64_t seed = 1;
};

// Errors: a name that is none of synthetic_names(); the message lists them. Sizes of working sets
// scale with the pages.
[[nodiscard]] Result<Workload> make_synthetic(std::string_view name,
                                              const SyntheticOptions& options);

}  // namespace kintsugi
