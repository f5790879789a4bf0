// SPDX-License-Identifier: GPL-2.0-or-later
#include "split/split_source.h"

#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "base/thread.h"
#include "placement/reserve.h"

namespace kintsugi {
namespace {

bool fill_random(std::array<std::uint8_t, 16>* bytes) {
  return getrandom(bytes->data(), bytes->size(), 0) == static_cast<ssize_t>(bytes->size());
}

std::string mib(PageCount pages) {
  return fmt::format("{:.1f} MiB", static_cast<double>(to_bytes(pages).value) / (1 << 20));
}

}  // namespace

Result<void> SplitSource::check(const SplitSourceConfig& config) {
  if (config.sub_hosts.empty() || config.sub_hosts.size() > kMaxServers) {
    return make_error(EINVAL, "{} sub-hosts given: give 1 to {}", config.sub_hosts.size(),
                      kMaxServers);
  }
  if (config.vm_pages.value == 0) {
    return make_error(EINVAL,
                      "this VM has no RAM that can be split: it needs a memory backend of "
                      "private, anonymous 4 KiB pages");
  }
  if (Result<void> chunk = check_chunk_pages(config.chunk_pages); !chunk) return chunk;
  PageCount all = config.main_capacity;
  for (std::size_t i = 0; i < config.sub_hosts.size(); i++) {
    const SubHost& sub_host = config.sub_hosts[i];
    if (Result<wire::Uri> uri = wire::parse_uri(sub_host.uri); !uri) return uri.error();
    for (std::size_t j = 0; j < i; j++) {
      if (config.sub_hosts[j].uri == sub_host.uri) {
        return make_error(EINVAL,
                          "sub-host {} is given twice: give it once, with the sum of its "
                          "capacities",
                          sub_host.uri);
      }
    }
    if (sub_host.capacity.value == 0) {
      return make_error(EINVAL,
                        "sub-host {} has no capacity: give it at least one chunk, or leave "
                        "it out",
                        sub_host.uri);
    }
    if (sub_host.capacity.value > UINT64_MAX / kPageSize / 128) {
      return make_error(EINVAL, "the capacity of sub-host {} is beyond any memory", sub_host.uri);
    }
    all = all + sub_host.capacity;
  }
  if (Result<void> enough = check_main_limit(config.main_capacity, config.chunk_pages); !enough) {
    return enough;
  }
  const PageCount reserve = paging_reserve(config.main_capacity, config.chunk_pages);
  const PageCount need = config.vm_pages + reserve;
  if (all < need) {
    return make_error(ENOSPC,
                      "the capacities do not add up: main host {} and {} sub-host(s) {} hold {}, "
                      "but the VM has {} and paging needs {} free; raise main-memory or a "
                      "sub-host's capacity by {} or more",
                      mib(config.main_capacity), config.sub_hosts.size(),
                      mib(all - config.main_capacity), mib(all), mib(config.vm_pages), mib(reserve),
                      mib(need - all));
  }
  return {};
}

Result<std::unique_ptr<SplitSource>> SplitSource::create(SplitSourceConfig config) {
  if (Result<void> checked = check(config); !checked) return checked.error();
  std::unique_ptr<SplitSource> split(new SplitSource(std::move(config)));
  Result<PageBits> zero = PageBits::create(split->config_.vm_pages);
  Result<PageBits> stored = PageBits::create(split->config_.vm_pages);
  if (!zero) return zero.error();
  if (!stored) return stored.error();
  split->zero_.emplace(std::move(*zero));
  split->stored_.emplace(std::move(*stored));
  return split;
}

SplitSource::SplitSource(SplitSourceConfig config)
    : config_(std::move(config)), pace_(static_cast<unsigned>(config_.sub_hosts.size())) {
  for (const SubHost& sub_host : config_.sub_hosts) {
    uris_.push_back(*wire::parse_uri(sub_host.uri));  // check() has seen that they parse
  }
}

SplitSource::~SplitSource() { stop_senders(); }

wire::ConnectOptions SplitSource::connect_options(wire::Canceller* canceller) const {
  return {config_.connect_timeout, config_.io_timeout, canceller};
}

Result<void> SplitSource::open() {
  if (!fill_random(&handover_.session) || !fill_random(&handover_.ticket)) {
    return make_error(errno, "getrandom: {}", std::strerror(errno));
  }
  if (Result<void> planned = plan(); !planned) return planned;
  ownership_.emplace(handover_.ticket, std::vector<handover::Source::Server>(
                                           config_.sub_hosts.size(), {true, Epoch{}}));
  if (Result<void> reserved = reserve_all(); !reserved) {
    close(true);
    return reserved;
  }
  for (std::unique_ptr<wire::Connection>& connection : reserved_) {
    senders_.push_back(std::make_unique<PageSender>(std::move(connection), &*zero_, &*stored_));
    if (Result<void> started = senders_.back()->start(); !started) {
      close(true);
      return started;
    }
  }
  reserved_.clear();
  return {};
}

Result<void> SplitSource::plan() {
  const PageCount reserve = paging_reserve(config_.main_capacity, config_.chunk_pages);
  handover_.vm_pages = config_.vm_pages;
  handover_.chunk_pages = config_.chunk_pages;
  handover_.main_limit = config_.main_capacity;
  handover_.policy = config_.policy;
  SplitRequest request;
  request.pages = config_.vm_pages;
  request.chunk_pages = config_.chunk_pages;
  request.main_capacity = config_.main_capacity - reserve;
  for (const SubHost& sub_host : config_.sub_hosts) {
    request.server_capacities.push_back(sub_host.capacity);
  }
  const RankSource ranks =
      config_.history ? ranks_of(*config_.history, config_.chunk_pages) : RankSource{};
  Result<SplitPlan> planned = plan_split(request, ranks);
  if (!planned) return planned.error();
  handover_.plan.emplace(std::move(*planned));
  if (config_.history != nullptr && config_.history->chunk_pages() == config_.chunk_pages &&
      config_.history->policy() == config_.policy && config_.history->pages() == config_.vm_pages) {
    handover_.ranks.resize(config_.history->chunks());
    config_.history->export_ranks(ChunkIndex{0}, handover_.ranks);
  }
  return {};
}

std::optional<handover::Request> SplitSource::wanted(std::size_t index) {
  const std::lock_guard lock(ownership_mutex_);
  std::optional<handover::Request> request = ownership_->wanted(index);
  if (request) ownership_->asked(index, *request);
  return request;
}

void SplitSource::answered(std::size_t index, const handover::Request& request,
                           const handover::Answer& answer) {
  const std::lock_guard lock(ownership_mutex_);
  ownership_->answered(index, request, answer);
}

Result<std::unique_ptr<wire::Connection>> SplitSource::reserve(std::size_t index) {
  const SubHost& sub_host = config_.sub_hosts[index];
  Result<std::unique_ptr<wire::Connection>> connection =
      wire::Connection::connect(uris_[index], connect_options(&canceller_));
  if (!connection) return connection;
  const std::optional<handover::Request> request_now = wanted(index);
  if (!request_now || request_now->op != wire::Op::kOpen) {
    return make_error(ECANCELED, "another sub-host refused meanwhile");
  }
  wire::OpenRequest request;
  request.session = handover_.session;
  request.ticket = request_now->ticket;
  request.vm_pages = config_.vm_pages.value;
  request.capacity_pages = sub_host.capacity.value;
  std::strncpy(request.name, config_.vm_name.c_str(), sizeof(request.name) - 1);
  if (index != 0) {
    std::strncpy(request.arbiter, config_.sub_hosts.front().uri.c_str(),
                 sizeof(request.arbiter) - 1);
  }
  const Result<wire::OwnershipInfo> opened = (*connection)->ask_open(request);
  if (!opened) return opened.error();
  answered(index, *request_now, {opened->status, opened->epoch});
  if (opened->status != wire::Status::kOk) {
    const wire::HelloReply& server = (*connection)->server();
    const Error refusal = (*connection)->refusal(opened->status, "reserve memory");
    return make_error(refusal.code, "{} (asked for {}, it has {} of {} free)", refusal.message,
                      mib(sub_host.capacity), mib(PageCount{server.free_pages}),
                      mib(PageCount{server.capacity_pages}));
  }
  return connection;
}

// All servers at once, so that the slowest one alone sets the time.
Result<void> SplitSource::reserve_all() {
  const std::size_t count = config_.sub_hosts.size();
  std::vector<std::optional<Result<std::unique_ptr<wire::Connection>>>> results(count);
  for_each_at_once(count, [&](std::size_t i) { results[i].emplace(reserve(i)); });
  std::optional<Error> failure;
  for (std::size_t i = 0; i < count; i++) {
    Epoch epoch;
    if (*results[i]) {
      epoch = (**results[i])->epoch();
      reserved_.push_back(std::move(**results[i]));
    } else if (!failure || failure->code == ECANCELED) {
      failure = results[i]->error();
    }
    handover_.servers.push_back({config_.sub_hosts[i].uri, config_.sub_hosts[i].capacity, epoch});
  }
  if (failure) return *failure;
  return {};
}

int SplitSource::send(PageIndex page, const void* host) {
  return senders_[owner(page).value - 1]->queue(page, host);
}

void SplitSource::kick() {
  for (const auto& sender : senders_) sender->kick();
}

Result<void> SplitSource::flush() {
  kick();
  for (const auto& sender : senders_) {
    if (Result<void> flushed = sender->flush(); !flushed) return flushed;
  }
  // A server that had nothing to store may have died unnoticed. The senders are idle, so their
  // connections are free.
  for (const auto& sender : senders_) {
    const Result<wire::SessionInfo> alive = sender->connection().stat();
    if (!alive) return alive.error();
  }
  return {};
}

Result<void> SplitSource::end() {
  const std::lock_guard lock(ownership_mutex_);
  if (ownership_->end_sent()) return {};
  return make_error(ESTALE, "the handover has ended meanwhile");
}

Result<void> SplitSource::error() const {
  for (const auto& sender : senders_) {
    if (Result<void> state = sender->error(); !state) return state;
  }
  return {};
}

std::uint64_t SplitSource::pending_pages() const {
  std::uint64_t pages = 0;
  for (const auto& sender : senders_) pages += sender->pending_pages();
  return pages;
}

std::vector<std::uint8_t> SplitSource::encode_changes() {
  std::vector<ZeroRun> runs;
  for (const auto& sender : senders_) sender->take_zero_runs(&runs);
  return encode_zero_runs(runs);
}

Result<void> SplitSource::diagnose() const {
  constexpr std::chrono::milliseconds kPatience{2000};
  if (Result<void> failed = error(); !failed) return failed;
  return check_servers(handover_, std::min(config_.connect_timeout, kPatience));
}

handover::Source::Phase SplitSource::ownership_phase() {
  const std::lock_guard lock(ownership_mutex_);
  return ownership_->phase();
}

Result<void> SplitSource::ask(std::size_t index, const wire::ConnectOptions& options) {
  constexpr int kMaxRequests = 8;
  std::unique_ptr<wire::Connection> connection;
  const handover::Source::Phase phase = ownership_phase();
  for (int i = 0; i < kMaxRequests; i++) {
    const std::optional<handover::Request> request = wanted(index);
    if (!request || ownership_phase() != phase) return {};
    if (!connection) {
      Result<std::unique_ptr<wire::Connection>> made =
          wire::Connection::connect(uris_[index], options);
      if (!made) return made.error();
      connection = std::move(*made);
    }
    if (request->op == wire::Op::kDrop && connection->epoch() != request->epoch) {
      const Result<wire::SessionInfo> bound = connection->attach(handover_.session, request->epoch);
      if (!bound) return bound.error();
    }
    const Result<wire::OwnershipInfo> info =
        connection->ask_ownership(request->op, handover_.session, request->epoch, request->ticket);
    if (!info) return info.error();
    answered(index, *request, {info->status, info->epoch});
    if (info->status != wire::Status::kOk && info->status != wire::Status::kStale) {
      if (ownership_phase() != phase || !wanted(index)) return {};
      return connection->refusal(info->status, "give the VM back");
    }
  }
  return make_error(EPROTO, "memory server {} gave {} answers that settle nothing",
                    uris_[index].text(), kMaxRequests);
}

Result<void> SplitSource::settle() {
  using Phase = handover::Source::Phase;
  constexpr std::size_t kArbiter = 0;
  {
    const std::lock_guard lock(ownership_mutex_);
    ownership_->broke();
  }
  Result<void> asked;
  if (ownership_phase() == Phase::kAsking) asked = ask(kArbiter, connect_options(nullptr));
  if (ownership_phase() == Phase::kDone) {
    return make_error(EALREADY, "the VM runs on its new main host");
  }
  if (ownership_phase() != Phase::kAsking) return {};
  if (!asked) return asked;
  return make_error(EAGAIN, "memory server {} did not settle who owns the VM",
                    uris_[kArbiter].text());
}

void SplitSource::given_up() {
  const std::lock_guard lock(ownership_mutex_);
  if (ownership_) ownership_->told_given_up();
}

void SplitSource::stop_senders() {
  for (const auto& sender : senders_) sender->stop();
  senders_.clear();
  reserved_.clear();
}

void SplitSource::close(bool drop_sessions) {
  stop_senders();
  if (!drop_sessions || !ownership_) return;
  {
    const std::lock_guard lock(ownership_mutex_);
    ownership_->withdraw();
  }
  // Once each: what cannot be reached is uncommitted, and dies of age there.
  for_each_at_once(config_.sub_hosts.size(), [this](std::size_t i) {
    wire::ConnectOptions options = connect_options(nullptr);
    if (i < handover_.servers.size() && handover_.servers[i].epoch == Epoch{}) {
      // It was asked for a session and did not answer in time, so it may have one, or hang.
      constexpr std::chrono::milliseconds kPatience{2000};
      options.connect_timeout = std::min(options.connect_timeout, kPatience);
      options.io_timeout = std::min(options.io_timeout, kPatience);
    }
    (void)ask(i, options);
  });
}

PageCount SplitSource::planned(ServerId target) const {
  return handover_.plan ? handover_.plan->pages_on(target) : PageCount{};
}

PageSenderStats SplitSource::stats(ServerId target) const {
  if (target == kMainHost || target.value > senders_.size()) return {};
  return senders_[target.value - 1]->stats();
}

}  // namespace kintsugi
