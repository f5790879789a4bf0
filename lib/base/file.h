// SPDX-License-Identifier: GPL-2.0-or-later
// A stdio file that closes itself.
#pragma once

#include <cstdio>
#include <memory>

namespace kintsugi {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FilePtr = std::unique_ptr<std::FILE, CloseFile>;

}  // namespace kintsugi
