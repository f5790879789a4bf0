// SPDX-License-Identifier: GPL-2.0-or-later
// The C interface of tiering.
#include <memory>
#include <string>

#include "capi/capi_internal.h"
#include "tiering/tiering.h"

using namespace kintsugi;        // NOLINT: this file is the border
using namespace kintsugi::capi;  // NOLINT

struct KsTiering {
  std::unique_ptr<Tiering> tiering;
  bool out_of_memory = false;  // in the middle of something: nothing can be relied on any more
};

namespace {

// Runs `body` unless memory has run out before; notes it if it does now.
template <typename Body>
int used(KsTiering* t, KsError* err, Body&& body) {
  if (t->out_of_memory) {
    return report(make_error(ENOMEM, "tiering stands still, as memory ran out: start it anew"),
                  err);
  }
  const int done = guarded(err, -ENOMEM, body);
  t->out_of_memory = done == -ENOMEM;
  return done;
}

}  // namespace

extern "C" {

KsTiering* ks_tiering_new(uint64_t pages, const char* policy, KsError* err) {
  return guarded(err, nullptr, [&]() -> KsTiering* {
    Result<std::unique_ptr<Tiering>> tiering = Tiering::create(PageCount{pages}, policy);
    if (!tiering) {
      report(tiering.error(), err);
      return nullptr;
    }
    return new KsTiering{std::move(*tiering)};
  });
}

void ks_tiering_free(KsTiering* tiering) { delete tiering; }

int ks_tiering_set_fast(KsTiering* t, uint64_t first_page, uint64_t pages, bool fast,
                        KsError* err) {
  return used(t, err, [&] {
    return report(t->tiering->set_fast(PageIndex{first_page}, PageCount{pages}, fast), err);
  });
}

bool ks_tiering_is_fast(const KsTiering* t, uint64_t page) {
  return page < t->tiering->placement().pages().value && t->tiering->is_fast(PageIndex{page});
}

int ks_tiering_begin_scan(KsTiering* t, int64_t now_ms) {
  return used(t, nullptr, [&] {
    t->tiering->begin_scan(now_ms);
    return 0;
  });
}

int ks_tiering_feed_written(KsTiering* t, uint64_t first_page, const uint64_t* written,
                            uint64_t pages) {
  return used(t, nullptr, [&] {
    t->tiering->feed_written(PageIndex{first_page}, written, PageCount{pages});
    return 0;
  });
}

int ks_tiering_feed_accessed(KsTiering* t, uint64_t first_page, const uint64_t* accessed,
                             uint64_t pages) {
  return used(t, nullptr, [&] {
    t->tiering->feed_accessed(PageIndex{first_page}, accessed, PageCount{pages});
    return 0;
  });
}

int ks_tiering_end_scan(KsTiering* t) {
  return used(t, nullptr, [&] {
    t->tiering->end_scan();
    return 0;
  });
}

int ks_tiering_decide(KsTiering* t, KsTieringPair* pairs, uint32_t max, uint32_t* count,
                      KsError* err) {
  *count = 0;
  return used(t, err, [&] {
    for (const SwapPair& pair : t->tiering->decide(max)) {
      pairs[(*count)++] = {.slow_page = pair.slow.value, .fast_page = pair.fast.value};
    }
    return 0;
  });
}

int ks_tiering_report(KsTiering* t, uint32_t pair, bool swapped) {
  return used(t, nullptr, [&] { return t->tiering->report(pair, swapped) ? 0 : -ENOENT; });
}

int ks_tiering_set_policy(KsTiering* t, const char* policy, KsError* err) {
  return used(t, err, [&] { return report(t->tiering->set_policy(policy), err); });
}

const char* ks_tiering_policy(const KsTiering* t) { return t->tiering->policy().c_str(); }

const char* ks_tiering_policy_name(unsigned index, const char** about) {
  if (index >= policy_names().size()) return nullptr;
  // Both are string literals, so end in a NUL.
  const PolicyName& policy = policy_names()[index];
  if (about != nullptr) *about = policy.about.data();
  return policy.name.data();
}

int ks_tiering_set(KsTiering* t, const char* name, double value, KsError* err) {
  return used(t, err, [&] { return report(t->tiering->set(name, value), err); });
}

int ks_tiering_get(const KsTiering* t, const char* name, double* value, KsError* err) {
  return guarded(err, -ENOMEM, [&] {
    const Result<double> got = t->tiering->get(name);
    if (!got) return report(got.error(), err);
    *value = *got;
    return 0;
  });
}

bool ks_tiering_parameter(const KsTiering* t, unsigned index, KsTieringParameter* out) {
  return guarded(nullptr, false, [&] {
    const std::vector<Parameter> all = t->tiering->parameters();
    if (index >= all.size()) return false;
    const Parameter& parameter = all[index];
    copy_text(out->name, sizeof(out->name), std::string(parameter.name));
    copy_text(out->help, sizeof(out->help), std::string(parameter.help));
    out->min = parameter.min;
    out->max = parameter.max;
    out->integer = parameter.integer;
    out->value = parameter.value;
    return true;
  });
}

void ks_tiering_stats(const KsTiering* t, KsTieringStats* out) {
  const TieringStats stats = t->tiering->stats();
  *out = {
      .scans = stats.scans,
      .decisions = stats.decisions,
      .fast_writes = stats.fast_writes,
      .slow_writes = stats.slow_writes,
      .pairs = stats.pairs,
      .swapped = stats.swapped,
      .refused = stats.refused,
      .pages = stats.pages.value,
      .fast_pages = stats.fast_pages.value,
      .tracked_pages = stats.tracked_pages,
      .memory_bytes = stats.memory.value,
  };
}

}  // extern "C"
