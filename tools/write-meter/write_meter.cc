// SPDX-License-Identifier: GPL-2.0-or-later
// The write meter as a plugin of QEMU's TCG: docs/write-meter.md. This is the glue; the cache, the
// counts and the files are lib/meter.
//
// vCPU threads show their accesses to the meter, without a lock. A thread of the plugin's own wakes
// once an interval, adds up and writes; a vCPU never looks at a clock, and an idle guest gives
// lines all the same. Time is the host's: that is what a guest's clock shows too, unless -icount or
// a stop of the VM comes between.

// The header is C, and includes glib, which is not.
#include <glib.h>
extern "C" {
#include <qemu/qemu-plugin.h>
}

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "base/thread.h"
#include "meter/meter.h"
#include "meter/options.h"
#include "meter/recorder.h"

namespace {

using kintsugi::Result;
using kintsugi::meter::Meter;
using kintsugi::meter::RangeMap;
using kintsugi::meter::Recorder;

void complain(const std::string& message) {
  std::fprintf(stderr, "write-meter: %s\n", message.c_str());
}

// Made once and never destroyed: vCPU threads may still run while the process exits.
struct Plugin {
  Plugin(Meter the_meter, std::chrono::milliseconds the_interval)
      : meter(std::move(the_meter)), interval(the_interval) {}

  Meter meter;
  std::chrono::milliseconds interval;
  std::optional<Recorder> recorder;  // always there once the thread runs, which alone uses it

  std::thread thread;
  std::mutex mutex;  // of `stopping`
  std::condition_variable wake;
  bool stopping = false;
};

Plugin* plugin;

void run(Plugin& p) {
  auto next = std::chrono::steady_clock::now();
  std::unique_lock lock(p.mutex);
  for (;;) {
    next += p.interval;
    if (p.wake.wait_until(lock, next, [&] { return p.stopping; })) break;
    if (auto good = p.recorder->record(); !good) return complain(good.error().message);
  }
  if (auto good = p.recorder->finish(); !good) complain(good.error().message);
}

// QEMU's main thread waits for signals by signalfd; no thread of ours may take one.
Result<std::thread> start_without_signals(Plugin& p) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  auto thread = kintsugi::start_thread("write-meter", [&p] { run(p); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

// An access within one line, to a set that is sampled.
void on_sampled(Meter& meter, unsigned vcpu, qemu_plugin_meminfo_t info, std::uint64_t vaddr,
                unsigned bytes) {
  const bool write = qemu_plugin_mem_is_store(info);
  if (meter.repeats(vcpu, vaddr, write)) return;
  const qemu_plugin_hwaddr* where = qemu_plugin_get_hwaddr(info, vaddr);
  if (where == nullptr) return meter.saw_untranslated(vcpu);
  if (qemu_plugin_hwaddr_is_io(where)) return meter.saw_io(vcpu);
  meter.access(vcpu, {vaddr, qemu_plugin_hwaddr_phys_addr(where), bytes, write});
}

// An access whose line, or the next, is sampled. Apart from on_access() so that this one has no
// registers to save.
[[gnu::noinline]] void on_concerning(Meter& meter, unsigned vcpu, qemu_plugin_meminfo_t info,
                                     std::uint64_t vaddr) {
  const unsigned line_bytes = meter.cache().geometry().line_bytes;
  const unsigned bytes = 1U << qemu_plugin_mem_size_shift(info);
  const unsigned left = line_bytes - (vaddr & (line_bytes - 1));
  if (meter.cache().sampled(vaddr)) on_sampled(meter, vcpu, info, vaddr, std::min(bytes, left));
  // QEMU makes large accesses in parts, of at most 16 bytes.
  if (bytes > left && meter.cache().sampled(vaddr + left)) {
    on_sampled(meter, vcpu, info, vaddr + left, bytes - left);
  }
}

void on_access(unsigned vcpu, qemu_plugin_meminfo_t info, std::uint64_t vaddr, void* userdata) {
  Meter& meter = *static_cast<Meter*>(userdata);
  if (meter.cache().concerns(vaddr)) on_concerning(meter, vcpu, info, vaddr);
}

void on_translation(qemu_plugin_id_t, qemu_plugin_tb* block) {
  const std::size_t count = qemu_plugin_tb_n_insns(block);
  for (std::size_t i = 0; i < count; i++) {
    qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), on_access,
                                     QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, &plugin->meter);
  }
}

void on_exit(qemu_plugin_id_t, void*) {
  {
    const std::lock_guard lock(plugin->mutex);
    plugin->stopping = true;
  }
  plugin->wake.notify_one();
  plugin->thread.join();
}

Result<void> install(const qemu_info_t& info, std::span<const char* const> arguments) {
  if (!info.system_emulation) {
    return kintsugi::make_error(ENOTSUP,
                                "a program alone has no physical addresses: load this into "
                                "qemu-system-x86_64");
  }
  auto options = kintsugi::meter::parse_options(arguments);
  if (!options) return options.error();
  auto ranges = RangeMap::create(std::move(options->pieces));
  if (!ranges) return ranges.error();
  const auto vcpus = static_cast<unsigned>(info.system.max_vcpus);
  auto meter = Meter::create(options->cache, std::move(*ranges), vcpus, !options->pages.empty());
  if (!meter) return meter.error();
  auto made = std::make_unique<Plugin>(std::move(*meter), options->interval);
  auto recorder = Recorder::create(made->meter, options->out, options->pages, options->interval);
  if (!recorder) return recorder.error();
  made->recorder = std::move(*recorder);
  auto thread = start_without_signals(*made);
  if (!thread) return thread.error();
  made->thread = std::move(*thread);
  plugin = made.release();
  return {};
}

}  // namespace

extern "C" {

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc,
                                           char** argv) {
  const std::span<const char* const> arguments(argv, static_cast<std::size_t>(argc));
  if (auto good = install(*info, arguments); !good) {
    complain(good.error().message);
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_atexit_cb(id, on_exit, nullptr);
  return 0;
}

}  // extern "C"
