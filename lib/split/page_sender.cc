// SPDX-License-Identifier: GPL-2.0-or-later
#include "split/page_sender.h"

#include <pthread.h>

#include <span>
#include <utility>

#include "base/thread.h"
#include "base/zero.h"

namespace kintsugi {

Result<PageBits> PageBits::create(PageCount pages) {
  Result<LazyArray<Word>> words =
      LazyArray<Word>::create((pages.value + 63) / 64, "the split's page bits");
  if (!words) return words.error();
  return PageBits(std::move(*words));
}

bool PageBits::change(PageIndex page, bool value) {
  Word& word = words_[page.value / 64];
  const std::uint64_t bit = std::uint64_t{1} << (page.value % 64);
  const bool old = (word.load(std::memory_order_relaxed) & bit) != 0;
  if (old == value) return old;
  if (value) {
    word.fetch_or(bit, std::memory_order_relaxed);
  } else {
    word.fetch_and(~bit, std::memory_order_relaxed);
  }
  return old;
}

PageSender::PageSender(std::unique_ptr<wire::Connection> connection, PageBits* zero,
                       PageBits* stored, SendWindow window)
    : connection_(std::move(connection)), zero_(zero), stored_(stored), window_(window) {}

Result<void> PageSender::start() {
  Result<std::thread> thread = start_thread("ks-send", [this] { run(); });
  if (!thread) return thread.error();
  thread_ = std::move(*thread);
  return {};
}

PageSender::~PageSender() { stop(); }

void PageSender::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

int PageSender::queue(PageIndex page, const void* host) {
  const auto* content = static_cast<const std::byte*>(host);
  pending_.fetch_add(1, std::memory_order_relaxed);
  if (open_run_.count > 0 && open_run_.count < kMaxRunPages &&
      page == open_run_.first + PageCount{open_run_.count} &&
      content == open_run_.host + open_run_.count * kPageSize) {
    open_run_.count++;
    return 0;
  }
  push_open_run();
  open_run_ = {page, content, 1};
  return failed_code_.load(std::memory_order_acquire);
}

void PageSender::kick() { push_open_run(); }

void PageSender::push_open_run() {
  if (open_run_.count == 0) return;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return runs_.size() < kMaxQueuedRuns || failed_ || stopping_; });
  const bool was_empty = runs_.empty();
  runs_.push_back(std::exchange(open_run_, {}));
  lock.unlock();
  if (was_empty) changed_.notify_all();
}

Result<void> PageSender::flush() {
  push_open_run();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return (runs_.empty() && !busy_) || failed_ || stopping_; });
  if (failed_) return error_;
  return {};
}

void PageSender::take_zero_runs(std::vector<ZeroRun>* out) {
  const std::lock_guard lock(mutex_);
  out->insert(out->end(), notes_.begin(), notes_.end());
  notes_.clear();
}

PageSenderStats PageSender::stats() const {
  return {sent_pages_.load(), sent_bytes_.load(), zero_pages_.load()};
}

Result<void> PageSender::error() const {
  const std::lock_guard lock(mutex_);
  if (failed_) return error_;
  return {};
}

void PageSender::fail(Error error) {
  {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    error_ = std::move(error);
    // Last: whoever sees it finds the error.
    failed_code_.store(-error_.code, std::memory_order_release);
  }
  changed_.notify_all();
}

void PageSender::run() {
  std::vector<Run> taken;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      busy_ = false;
      if (runs_.empty()) {
        // Everything taken so far is answered for: see below.
        changed_.notify_all();
      }
      changed_.wait(lock, [&] { return !runs_.empty() || stopping_; });
      if (stopping_) return;
      taken.assign(runs_.begin(), runs_.end());
      runs_.clear();
      busy_ = true;
    }
    changed_.notify_all();
    if (Result<void> sent = send_runs(taken); !sent) {
      fail(sent.error());
      return;
    }
    std::uint64_t pages = 0;
    for (const Run& run : taken) pages += run.count;
    pending_.fetch_sub(pages, std::memory_order_relaxed);
  }
}

// Sends them, and waits for all answers only if no more work is queued: so `busy_` false and an
// empty queue mean that everything is stored.
Result<void> PageSender::send_runs(const std::vector<Run>& runs) {
  new_notes_.clear();
  for (const Run& run : runs) {
    if (Result<void> sent = send_run(run); !sent) return sent;
  }
  if (Result<void> sent = send_batch(); !sent) return sent;
  bool idle = false;
  {
    const std::lock_guard lock(mutex_);
    notes_.insert(notes_.end(), new_notes_.begin(), new_notes_.end());
    idle = runs_.empty();
  }
  if (!idle) return {};
  window_.idle();
  return take_answers(0, 0);
}

// One Put for all of its pages but those that are zero.
Result<void> PageSender::send_run(const Run& run) {
  pieces_.clear();
  std::uint32_t first = 0;
  std::uint32_t last = 0;
  std::uint64_t mask = 0;
  for (std::uint32_t i = 0; i < run.count; i++) {
    const std::byte* const content = run.host + i * kPageSize;
    // What is_zero_page() will look at first some pages on.
    if (i + 4 < run.count) __builtin_prefetch(content + 4 * kPageSize);
    const PageIndex page = run.first + PageCount{i};
    if (!is_zero_page(content)) {
      if (mask != 0 && last + 1 == i) {
        pieces_.back().iov_len += kPageSize;
      } else {
        pieces_.push_back({const_cast<std::byte*>(content), kPageSize});
      }
      if (mask == 0) first = i;
      last = i;
      mask |= std::uint64_t{1} << (i - first);
      stored_->set(page);
      if (zero_->clear(page)) note(page, false);
      continue;
    }
    zero_pages_.fetch_add(1, std::memory_order_relaxed);
    if (!zero_->set(page)) note(page, true);
    // What the server holds is stale now, and in the way of other pages.
    if (stored_->clear(page)) {
      if (Result<void> sent = add_frame(wire::Op::kDiscard, page, 1); !sent) return sent;
    }
  }
  if (mask == 0) return {};
  return add_frame(wire::Op::kPut, run.first + PageCount{first}, last + 1 - first,
                   pieces_.size() > 1 ? mask : 0);
}

void PageSender::note(PageIndex page, bool zero) {
  if (!new_notes_.empty()) {
    ZeroRun& last = new_notes_.back();
    if (last.zero == zero && last.first + PageCount{last.count} == page) {
      last.count++;
      return;
    }
  }
  new_notes_.push_back({page, 1, zero});
}

// The content of a Put is pieces_.
Result<void> PageSender::add_frame(wire::Op op, PageIndex first, std::uint32_t count,
                                   std::uint64_t mask) {
  if (batch_frames_ == kMaxBatchFrames || batch_bytes_ >= kMaxBatchBytes) {
    if (Result<void> sent = send_batch(); !sent) return sent;
  }
  wire::FrameHeader& header = headers_[batch_frames_++];
  header = connection_->request(op, next_seq_++);
  header.page = first.value;
  header.count = count;
  header.mask = mask;
  header.version = header.seq;
  batch_.push_back({&header, sizeof(header)});
  if (op == wire::Op::kPut) {
    const std::uint32_t pages = wire::put_pages(header);
    header.length = pages * static_cast<std::uint32_t>(kPageSize);
    batch_.insert(batch_.end(), pieces_.begin(), pieces_.end());
    batch_bytes_ += header.length;
    sent_pages_.fetch_add(pages, std::memory_order_relaxed);
  }
  sent_bytes_.fetch_add(sizeof(header) + header.length, std::memory_order_relaxed);
  return {};
}

Result<void> PageSender::send_batch() {
  if (batch_frames_ == 0) return {};
  // Half of the window at once, so that answers are worth waking up for.
  if (unanswered_bytes_ > window_.bytes() || unanswered_.size() > kMaxUnanswered) {
    const std::uint64_t before = unanswered_bytes_;
    if (Result<void> answers = take_answers(kMaxUnanswered / 2, window_.bytes() / 2); !answers) {
      return answers;
    }
    window_.answered(before - unanswered_bytes_, SendWindow::Clock::now());
  }
  Result<void> sent = connection_->send_iovecs(batch_);
  for (const wire::FrameHeader& header : std::span(headers_).first(batch_frames_)) {
    unanswered_.push_back(header.length);
    unanswered_bytes_ += header.length;
  }
  batch_.clear();
  batch_frames_ = 0;
  batch_bytes_ = 0;
  return sent;
}

// Waits until the answers to at most `until_frames` frames are missing, with at most `until_bytes`
// of payload.
Result<void> PageSender::take_answers(std::uint64_t until_frames, std::uint64_t until_bytes) {
  std::array<wire::FrameHeader, 64> answers;
  // Answers come in order. next_seq_ counts the frames of the unsent batch too.
  std::uint64_t seq = next_seq_ - batch_frames_ - unanswered_.size();
  while (unanswered_.size() > until_frames || unanswered_bytes_ > until_bytes) {
    std::size_t count = 0;
    while (count < answers.size() &&
           (unanswered_.size() > until_frames || unanswered_bytes_ > until_bytes)) {
      unanswered_bytes_ -= unanswered_.front();
      unanswered_.pop_front();
      count++;
    }
    const std::span got(answers.data(), count);
    if (Result<void> received = connection_->receive_headers(got); !received) return received;
    for (const wire::FrameHeader& answer : got) {
      if (answer.seq != seq++) {
        return make_error(EPROTO, "memory server {} answered what was not asked",
                          connection_->name());
      }
      if (answer.status != 0) {
        return connection_->refusal(static_cast<wire::Status>(answer.status), "store pages");
      }
    }
  }
  return {};
}

}  // namespace kintsugi
