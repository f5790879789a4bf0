// SPDX-License-Identifier: GPL-2.0-or-later
// What the files of the C interface share.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "access/history.h"
#include "base/result.h"
#include "kintsugi.h"

// A history is owned by who made it with ks_history_new(), or borrowed from a pager.
struct KsHistory {
  std::unique_ptr<kintsugi::AccessHistory> history;
};

namespace kintsugi::capi {

inline void copy_text(char* to, std::size_t size, const std::string& text) {
  const std::size_t length = std::min(size - 1, text.size());
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

// Fills `err` (may be null) and returns the negative errno.
inline int report(const Error& error, KsError* err) {
  const int code = error.code > 0 ? error.code : EIO;
  if (err != nullptr) {
    err->code = code;
    copy_text(err->message, sizeof(err->message), error.message);
  }
  return -code;
}

inline int report(const Result<void>& result, KsError* err) {
  return result.ok() ? 0 : report(result.error(), err);
}

// Runs `body` and turns what is thrown (by the standard library, for want of memory say) into an
// error: no exception crosses into C.
template <typename Body>
auto guarded(KsError* err, decltype(std::declval<Body>()()) on_throw, Body&& body)
    -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    report(make_error(ENOMEM, "out of memory"), err);
  } catch (const std::exception& e) {
    report(make_error(EIO, "internal error: {}", e.what()), err);
  }
  return on_throw;
}

}  // namespace kintsugi::capi
