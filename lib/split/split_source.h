// SPDX-License-Identifier: GPL-2.0-or-later
// The source's half of a split migration (P1 4-2): reserves memory on the sub-hosts, plans which
// chunk goes where, sends the sub-hosts' pages straight to them, and hands the sessions over.
//
// Life of a job, each step at most once:
//   create -> open -> {send, kick, changes}* -> flush -> end -> (destination claims) -> close
//                                                            \-> settle, if the migration broke
// Who owns the VM is handover::Source's to know: this class carries its questions to the servers.
// Threads: open(), send(), kick(), flush(), end(), settle(), close() by one thread at a time;
// cancel(), given_up(), error() and the figures by any.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "access/history.h"
#include "base/result.h"
#include "base/types.h"
#include "handover/source.h"
#include "placement/split_plan.h"
#include "split/handover.h"
#include "split/pace.h"
#include "split/page_sender.h"
#include "wire/connection.h"

namespace kintsugi {

struct SubHost {
  std::string uri;
  PageCount capacity;
};

struct SplitSourceConfig {
  std::string vm_name;
  PageCount vm_pages;
  PageCount chunk_pages;
  PageCount main_capacity;
  std::vector<SubHost> sub_hosts;
  AccessPolicy policy = AccessPolicy::kAging;
  const AccessHistory* history = nullptr;  // used until open() returns
  std::chrono::milliseconds connect_timeout{5000};
  std::chrono::milliseconds io_timeout{10000};
};

class SplitSource {
 public:
  // What can be known without asking a server: addresses, chunk size, whether capacities add up.
  [[nodiscard]] static Result<void> check(const SplitSourceConfig& config);
  [[nodiscard]] static Result<std::unique_ptr<SplitSource>> create(SplitSourceConfig config);
  ~SplitSource();
  SplitSource(const SplitSource&) = delete;
  SplitSource& operator=(const SplitSource&) = delete;

  // Reserves and plans. On failure nothing stays reserved.
  [[nodiscard]] Result<void> open();
  [[nodiscard]] ServerId owner(PageIndex page) const { return handover_.plan->owner(page); }
  // Returns 0 or a negative errno.
  int send(PageIndex page, const void* host);
  void kick();
  // Waits until everything sent is stored, and asks every server whether it is still there.
  [[nodiscard]] Result<void> flush();
  // After flush(), with the VM stopped: the end of the stream is about to be sent, from which on
  // the VM may be the destination's. Fails when the attempt has ended meanwhile; then it must not.
  [[nodiscard]] Result<void> end();
  [[nodiscard]] Result<void> error() const;
  [[nodiscard]] std::uint64_t pending_pages() const;
  [[nodiscard]] SplitPace& pace() { return pace_; }

  [[nodiscard]] std::vector<std::uint8_t> encode_plan() const { return handover_.encode(); }
  // What changed since the last call.
  [[nodiscard]] std::vector<std::uint8_t> encode_changes();

  // The migration failed while the VM was running: whether a server is the cause. The destination
  // notices that too, but cannot tell the source why it gave up.
  [[nodiscard]] Result<void> diagnose() const;

  void cancel() { canceller_.cancel(); }
  // The stream broke after end(). May this side run the VM? ok: yes, and the destination cannot
  // any more. EALREADY: never again. Any other error: not known, ask again; the arbiter is asked
  // once in each call. ENOENT: it knows no such session, so that it may never be known.
  [[nodiscard]] Result<void> settle();
  // The destination said on the return path that it will never run the VM.
  void given_up();
  // Ends the senders; with `drop_sessions` frees what the servers hold, as far as they answer.
  void close(bool drop_sessions);

  [[nodiscard]] const SplitSourceConfig& config() const { return config_; }
  // Figures of one target; the main host is 0 and has only planned pages.
  [[nodiscard]] PageCount planned(ServerId target) const;
  [[nodiscard]] PageSenderStats stats(ServerId target) const;

 private:
  explicit SplitSource(SplitSourceConfig config);
  [[nodiscard]] wire::ConnectOptions connect_options(wire::Canceller* canceller) const;
  [[nodiscard]] Result<std::unique_ptr<wire::Connection>> reserve(std::size_t index);
  [[nodiscard]] Result<void> reserve_all();
  [[nodiscard]] Result<void> plan();
  void stop_senders();
  [[nodiscard]] std::optional<handover::Request> wanted(std::size_t index);
  void answered(std::size_t index, const handover::Request& request,
                const handover::Answer& answer);
  [[nodiscard]] handover::Source::Phase ownership_phase();
  // Asks the server what the ownership protocol wants of it in this phase, until it wants nothing.
  [[nodiscard]] Result<void> ask(std::size_t index, const wire::ConnectOptions& options);

  SplitSourceConfig config_;
  std::vector<wire::Uri> uris_;
  wire::Canceller canceller_;
  Handover handover_;
  SplitPace pace_;
  std::optional<PageBits> zero_;
  std::optional<PageBits> stored_;
  std::vector<std::unique_ptr<wire::Connection>> reserved_;  // until the senders own them
  std::mutex ownership_mutex_;
  std::optional<handover::Source> ownership_;         // once there is anything to own
  std::vector<std::unique_ptr<PageSender>> senders_;  // by server, from 0
};

}  // namespace kintsugi
