// SPDX-License-Identifier: GPL-2.0-or-later
#include "split/handover.h"

#include "base/byte_stream.h"
#include "base/thread.h"
#include "wire/connection.h"

namespace kintsugi {
namespace {

constexpr std::uint32_t kHandoverMagic = 0x4b53504c;  // "LPSK"
constexpr std::uint32_t kChangesMagic = 0x4b53435a;
constexpr std::uint16_t kFormat = 2;

Error malformed(const char* what) {
  return make_error(EPROTO,
                    "the migration stream's {} cannot be read: it is damaged, or the "
                    "source is of another release",
                    what);
}

}  // namespace

std::vector<std::uint8_t> Handover::encode() const {
  ByteWriter out;
  out.put(kHandoverMagic);
  out.put(kFormat);
  out.put(static_cast<std::uint8_t>(policy));
  out.put(static_cast<std::uint8_t>(servers.size()));
  out.put(session);
  out.put(ticket);
  out.put(vm_pages.value);
  out.put(chunk_pages.value);
  out.put(main_limit.value);
  for (const HandoverServer& server : servers) {
    out.put_string(server.uri);
    out.put(server.capacity.value);
    out.put(server.epoch.value);
  }
  std::vector<std::uint8_t> encoded_plan;
  plan->encode(encoded_plan);
  out.put(static_cast<std::uint64_t>(encoded_plan.size()));
  out.put_bytes(encoded_plan);
  out.put(static_cast<std::uint64_t>(ranks.size()));
  out.put_bytes(
      {reinterpret_cast<const std::uint8_t*>(ranks.data()), ranks.size() * sizeof(std::uint16_t)});
  return std::move(out.bytes());
}

Result<Handover> Handover::decode(std::span<const std::uint8_t> bytes, PageCount max_pages) {
  ByteReader in(bytes);
  if (in.get<std::uint32_t>() != kHandoverMagic || in.get<std::uint16_t>() != kFormat) {
    return malformed("split plan");
  }
  Handover handover;
  const auto policy = in.get<std::uint8_t>();
  if (policy > static_cast<std::uint8_t>(AccessPolicy::kAging)) return malformed("policy");
  handover.policy = static_cast<AccessPolicy>(policy);
  const auto servers = in.get<std::uint8_t>();
  handover.session = in.get<wire::SessionId>();
  handover.ticket = in.get<wire::Ticket>();
  handover.vm_pages = PageCount{in.get<std::uint64_t>()};
  handover.chunk_pages = PageCount{in.get<std::uint64_t>()};
  handover.main_limit = PageCount{in.get<std::uint64_t>()};
  if (in.failed() || servers == 0 || servers > kMaxServers || handover.vm_pages.value == 0 ||
      handover.vm_pages > max_pages || !check_chunk_pages(handover.chunk_pages)) {
    return malformed("split plan");
  }
  for (unsigned i = 0; i < servers; i++) {
    HandoverServer server;
    server.uri = in.get_string();
    server.capacity = PageCount{in.get<std::uint64_t>()};
    server.epoch = Epoch{in.get<std::uint64_t>()};
    handover.servers.push_back(std::move(server));
  }
  const auto plan_bytes = in.get<std::uint64_t>();
  Result<SplitPlan> plan = SplitPlan::decode(in.get_bytes(plan_bytes), max_pages);
  if (in.failed()) return malformed("split plan");
  if (!plan) return plan.error();
  handover.plan.emplace(std::move(*plan));
  const std::uint64_t chunks =
      (handover.vm_pages.value + handover.chunk_pages.value - 1) / handover.chunk_pages.value;
  if (handover.plan->pages() != handover.vm_pages ||
      handover.plan->chunk_pages() != handover.chunk_pages ||
      handover.plan->servers() > handover.servers.size()) {
    return malformed("split plan");
  }
  const auto ranks = in.get<std::uint64_t>();
  if (ranks != 0 && ranks != chunks) return malformed("access history");
  const std::span<const std::uint8_t> rank_bytes = in.get_bytes(ranks * sizeof(std::uint16_t));
  if (!in.done()) return malformed("access history");
  handover.ranks.resize(ranks);
  if (ranks != 0) std::memcpy(handover.ranks.data(), rank_bytes.data(), rank_bytes.size());
  return handover;
}

Result<void> check_servers(const Handover& handover, std::chrono::milliseconds timeout) {
  const auto check = [&](const HandoverServer& server) -> Result<void> {
    const Result<wire::Uri> uri = wire::parse_uri(server.uri);
    if (!uri) return uri.error();
    const Result<std::unique_ptr<wire::Connection>> connection =
        wire::Connection::connect(*uri, {timeout, timeout, nullptr});
    if (!connection) return connection.error();
    const Result<wire::SessionInfo> attached =
        (*connection)->attach(handover.session, server.epoch);
    if (!attached) return attached.error();
    return {};
  };
  std::vector<Result<void>> results(handover.servers.size());
  for_each_at_once(results.size(), [&](std::size_t i) { results[i] = check(handover.servers[i]); });
  for (const Result<void>& result : results) {
    if (!result) return result;
  }
  return {};
}

std::vector<std::uint8_t> encode_zero_runs(std::span<const ZeroRun> runs) {
  ByteWriter out;
  out.put(kChangesMagic);
  out.put(static_cast<std::uint64_t>(runs.size()));
  for (const ZeroRun& run : runs) {
    out.put(run.first.value);
    out.put(run.count);
    out.put(static_cast<std::uint8_t>(run.zero ? 1 : 0));
  }
  return std::move(out.bytes());
}

Result<std::vector<ZeroRun>> decode_zero_runs(std::span<const std::uint8_t> bytes,
                                              PageCount vm_pages) {
  constexpr std::size_t kRunBytes = 8 + 4 + 1;
  ByteReader in(bytes);
  if (in.get<std::uint32_t>() != kChangesMagic) return malformed("list of zero pages");
  const auto count = in.get<std::uint64_t>();
  if (in.failed() || count > bytes.size() / kRunBytes) return malformed("list of zero pages");
  std::vector<ZeroRun> runs(count);
  for (ZeroRun& run : runs) {
    run.first = PageIndex{in.get<std::uint64_t>()};
    run.count = in.get<std::uint32_t>();
    const auto zero = in.get<std::uint8_t>();
    if (zero > 1 || run.first.value > vm_pages.value ||
        run.count > vm_pages.value - run.first.value) {
      return malformed("list of zero pages");
    }
    run.zero = zero == 1;
  }
  if (!in.done()) return malformed("list of zero pages");
  return runs;
}

}  // namespace kintsugi
