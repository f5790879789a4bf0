// SPDX-License-Identifier: GPL-2.0-or-later
// Sends pages to one memory server, on a thread of its own.
//
// The migration thread queues pages (queue()); consecutive ones join into runs. The sender thread
// reads the guest's memory when a run's turn comes, notes all-zero pages instead of sending them,
// and puts the rest on the wire as Put frames, many to a system call. Answers are counted; after
// flush() returns every page queued before is stored at the server.
//
// What is sent ahead of the answers is bounded by a SendWindow.
//
// A page that changes after it was read is queued again by dirty logging, and since one queue, one
// connection and one thread serve each server, the later content arrives later.
//
// Threads: queue(), kick() and flush() by one thread. Everything else by any.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/lazy_array.h"
#include "base/result.h"
#include "base/types.h"
#include "split/handover.h"
#include "split/send_window.h"
#include "wire/connection.h"

namespace kintsugi {

struct PageSenderStats {
  std::uint64_t sent_pages = 0;
  std::uint64_t sent_bytes = 0;
  std::uint64_t zero_pages = 0;
};

// Pages known all zero and pages a server holds, one bit each. Each page belongs to one sender, but
// neighbours may not, hence atomics.
class PageBits {
 public:
  static Result<PageBits> create(PageCount pages);
  // Returns the old value.
  bool set(PageIndex page) { return change(page, true); }
  bool clear(PageIndex page) { return change(page, false); }

 private:
  using Word = std::atomic<std::uint64_t>;
  explicit PageBits(LazyArray<Word> words) : words_(std::move(words)) {}
  bool change(PageIndex page, bool value);
  LazyArray<Word> words_;
};

class PageSender {
 public:
  // `connection` is bound to the session. `zero` and `stored` outlive the sender.
  PageSender(std::unique_ptr<wire::Connection> connection, PageBits* zero, PageBits* stored,
             SendWindow window = SendWindow());
  ~PageSender();
  PageSender(const PageSender&) = delete;
  PageSender& operator=(const PageSender&) = delete;

  // Starts the thread; before anything else.
  [[nodiscard]] Result<void> start();
  // Blocks while the queue is full. Returns 0 or the negative errno that the sender failed with.
  int queue(PageIndex page, const void* host);
  void kick();
  [[nodiscard]] Result<void> flush();
  // Appends what turned zero or non-zero since the last call.
  void take_zero_runs(std::vector<ZeroRun>* out);

  [[nodiscard]] PageSenderStats stats() const;
  [[nodiscard]] std::uint64_t pending_pages() const { return pending_.load(); }
  // Set once the sender has failed.
  [[nodiscard]] Result<void> error() const;
  // Ends the thread, whatever is queued. The connection stays usable if nothing had failed.
  void stop();
  [[nodiscard]] wire::Connection& connection() { return *connection_; }

 private:
  // Pages that are consecutive in the VM and in this process.
  struct Run {
    PageIndex first;
    const std::byte* host = nullptr;
    std::uint32_t count = 0;
  };

  static constexpr std::uint32_t kMaxRunPages = 64;  // as a Put's mask can tell
  static constexpr std::size_t kMaxQueuedRuns = 1024;
  // Bound what one system call gathers; a frame more may exceed the bytes.
  static constexpr std::size_t kMaxBatchFrames = 24;
  static constexpr std::size_t kMaxBatchBytes = kMaxRunPages * kPageSize;
  // Puts and Discards without an answer yet; their answers fit any socket buffer.
  static constexpr std::uint64_t kMaxUnanswered = 512;

  void run();
  [[nodiscard]] Result<void> send_runs(const std::vector<Run>& runs);
  [[nodiscard]] Result<void> send_run(const Run& run);
  [[nodiscard]] Result<void> add_frame(wire::Op op, PageIndex first, std::uint32_t count,
                                       std::uint64_t mask = 0);
  [[nodiscard]] Result<void> send_batch();
  [[nodiscard]] Result<void> take_answers(std::uint64_t until_frames, std::uint64_t until_bytes);
  void note(PageIndex page, bool zero);
  void push_open_run();
  void fail(Error error);

  std::unique_ptr<wire::Connection> connection_;
  PageBits* zero_;
  PageBits* stored_;

  // The queueing thread's.
  Run open_run_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Run> runs_;        // under mutex_
  bool busy_ = false;           // under mutex_: the thread works on runs it took
  bool stopping_ = false;       // under mutex_
  bool failed_ = false;         // under mutex_
  Error error_;                 // under mutex_
  std::vector<ZeroRun> notes_;  // under mutex_

  // The sender thread's.
  std::array<wire::FrameHeader, kMaxBatchFrames> headers_;
  std::vector<iovec> pieces_;  // of the run at hand, what is not zero
  std::vector<iovec> batch_;
  std::size_t batch_frames_ = 0;
  std::size_t batch_bytes_ = 0;
  std::vector<ZeroRun> new_notes_;
  std::uint64_t next_seq_ = 1;
  SendWindow window_;
  std::deque<std::uint32_t> unanswered_;  // payload bytes of each frame sent
  std::uint64_t unanswered_bytes_ = 0;

  std::atomic<std::uint64_t> pending_{0};
  std::atomic<std::uint64_t> sent_pages_{0};
  std::atomic<std::uint64_t> sent_bytes_{0};
  std::atomic<std::uint64_t> zero_pages_{0};
  std::atomic<int> failed_code_{0};
  std::thread thread_;
};

}  // namespace kintsugi
