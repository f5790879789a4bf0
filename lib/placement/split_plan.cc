// SPDX-License-Identifier: GPL-2.0-or-later
#include "placement/split_plan.h"

#include <array>
#include <bit>
#include <string>

#include "access/history.h"

namespace kintsugi {
namespace {

constexpr std::uint32_t kMagic = 0x4c50534b;
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 16;
constexpr unsigned kOwnerBits = 6;
static_assert(kMaxServers < 1U << kOwnerBits);
// Six groups of seven bits hold any run of kMaxPlanChunks.
constexpr unsigned kMaxRunBytes = 6;
static_assert((kMaxPlanChunks << kOwnerBits) >> (7 * kMaxRunBytes) == 0);

constexpr Bytes kExtentBytes{64ULL << 20};

// "1.5 GiB": rounded to a tenth of the largest unit that gives 1 or more.
std::string size_text(PageCount pages, bool round_up = false) {
  static constexpr std::array<const char*, 4> kUnits = {"KiB", "MiB", "GiB", "TiB"};
  unsigned unit = 0;
  std::uint64_t unit_pages_log2 = 0;  // log2 of the unit in KiB
  const std::uint64_t kib = pages.value << (kPageShift - 10);
  while (unit + 1 < kUnits.size() && (kib >> (unit_pages_log2 + 10)) != 0) {
    ++unit;
    unit_pages_log2 += 10;
  }
  if (unit == 0) return fmt::format("{} KiB", kib);
  const std::uint64_t one = std::uint64_t{1} << unit_pages_log2;
  const std::uint64_t tenths = (kib * 10 + (round_up ? one - 1 : one / 2)) >> unit_pages_log2;
  return fmt::format("{}.{} {}", tenths / 10, tenths % 10, kUnits[unit]);
}

// Room for chunks on each host. Index 0 is the main host.
struct Room {
  std::vector<std::uint64_t> chunks;
  // The host whose odd pages are to hold the partial last chunk, or -1: it is like any other.
  int last_chunk_host = -1;
};

// How the error about capacities that do not add up begins: "main host 1.0 GiB + sub-hosts ...".
std::string holdings_text(const SplitRequest& request, PageCount sub_hosts) {
  if (request.server_capacities.empty()) {
    return fmt::format("main host {}", size_text(request.main_capacity));
  }
  return fmt::format("main host {} + sub-hosts {}", size_text(request.main_capacity),
                     size_text(sub_hosts));
}

Error not_enough(const SplitRequest& request, PageCount sub_hosts, std::uint64_t usable_chunks,
                 std::uint64_t missing_chunks) {
  const PageCount total = request.main_capacity + sub_hosts;
  const PageCount missing{missing_chunks * request.chunk_pages.value};
  const char* what = request.server_capacities.empty()
                         ? "the main host's capacity, or add a sub-host,"
                         : "the main host's or a sub-host's capacity";
  if (total >= request.pages) {
    return make_error(ENOSPC,
                      "{} hold {} whole chunks of {} KiB, the VM has {}: make capacities multiples "
                      "of the chunk size, or raise {} by at least {}",
                      holdings_text(request, sub_hosts), usable_chunks,
                      to_bytes(request.chunk_pages).value >> 10, usable_chunks + missing_chunks,
                      what, size_text(missing, true));
  }
  std::string held = size_text(total);
  std::string wanted = size_text(request.pages);
  if (held == wanted) {  // the difference would not show
    held = fmt::format("{} KiB", to_bytes(total).value >> 10);
    wanted = fmt::format("{} KiB", to_bytes(request.pages).value >> 10);
  }
  return make_error(ENOSPC, "{} hold {}, the VM has {}: raise {} by at least {}",
                    holdings_text(request, sub_hosts), held, wanted, what,
                    size_text(missing, true));
}

Result<void> check_shape(const SplitRequest& request) {
  if (auto ok = check_chunk_pages(request.chunk_pages); !ok) return ok.error();
  if (request.pages.value == 0) return make_error(EINVAL, "the VM to split has no memory");
  if (request.pages > kMaxPlanPages) {
    return make_error(EINVAL, "a VM of {} is too large to split: at most {} are supported",
                      size_text(request.pages), size_text(kMaxPlanPages));
  }
  const std::uint64_t chunks =
      (request.pages.value + request.chunk_pages.value - 1) / request.chunk_pages.value;
  if (chunks > kMaxPlanChunks) {
    const PageCount least{
        std::bit_ceil((request.pages.value + kMaxPlanChunks - 1) / kMaxPlanChunks)};
    return make_error(EINVAL, "chunks of {} KiB are too small for a VM of {}: use at least {} KiB",
                      to_bytes(request.chunk_pages).value >> 10, size_text(request.pages),
                      to_bytes(least).value >> 10);
  }
  if (request.server_capacities.size() > kMaxServers) {
    return make_error(EINVAL, "{} sub-hosts are too many: use at most {}",
                      request.server_capacities.size(), kMaxServers);
  }
  return {};
}

Error too_little(const std::string& host, PageCount capacity, PageCount chunk,
                 const char* otherwise) {
  if (capacity.value == 0) {
    return make_error(EINVAL, "{} has capacity 0: give it at least one chunk of {} KiB{}", host,
                      to_bytes(chunk).value >> 10, otherwise);
  }
  return make_error(EINVAL, "{} has capacity {}, less than one chunk of {} KiB: raise it{}", host,
                    size_text(capacity), to_bytes(chunk).value >> 10, otherwise);
}

// How many chunks each host can hold, or why that is not enough.
Result<Room> find_room(const SplitRequest& request) {
  const std::uint64_t chunk = request.chunk_pages.value;
  const std::uint64_t full_chunks = request.pages.value / chunk;
  const std::uint64_t partial = request.pages.value % chunk;
  const std::uint64_t chunks = full_chunks + (partial != 0);

  if (request.main_capacity.value < chunk) {
    return too_little("the main host", request.main_capacity, request.chunk_pages, "");
  }
  Room room;
  room.chunks.push_back(std::min(request.main_capacity.value / chunk, chunks));
  std::uint64_t usable = room.chunks[0];
  PageCount sub_hosts{0};
  // The first host, the main host before all, whose pages beyond its whole chunks suffice.
  int odd_host = partial != 0 && request.main_capacity.value % chunk >= partial ? 0 : -1;
  for (std::size_t i = 0; i < request.server_capacities.size(); ++i) {
    const PageCount capacity = request.server_capacities[i];
    if (capacity.value < chunk) {
      return too_little(fmt::format("sub-host {}", i + 1), capacity, request.chunk_pages,
                        ", or leave the sub-host out");
    }
    const std::uint64_t host_chunks = std::min(capacity.value / chunk, chunks);
    room.chunks.push_back(host_chunks);
    usable += host_chunks;
    if (partial != 0 && odd_host < 0 && capacity.value % chunk >= partial) {
      odd_host = static_cast<int>(i + 1);
    }
    sub_hosts = sub_hosts + capacity;  // for messages; may wrap if all is well
  }
  if (usable >= chunks) return room;
  if (usable == full_chunks && odd_host >= 0) {
    room.last_chunk_host = odd_host;
    return room;
  }
  return not_enough(request, sub_hosts, usable, chunks - usable);
}

// Deals chunks to the servers, an extent at a time, so that at every moment each has had about its
// share of what was dealt.
class Dealer {
 public:
  // `chunks` in all, to servers with room for room[1], room[2], ... chunks.
  Dealer(const std::vector<std::uint64_t>& room, std::uint64_t chunks, PageCount chunk_pages)
      : extent_chunks_(
            std::max<std::uint64_t>(to_pages(kExtentBytes).value / chunk_pages.value, 1)),
        hands_(room.size()) {
    // shares[i] = chunks * room[i] / (sum of room), the rounding carried on to the next.
    std::uint64_t all_room = 0;
    for (std::size_t i = 1; i < room.size(); ++i) all_room += room[i];
    std::uint64_t room_before = 0;
    std::uint64_t share_before = 0;
    for (std::size_t i = 1; i < room.size(); ++i) {
      room_before += room[i];
      // Both factors are at most 63 * 2^30.
      const std::uint64_t share_until = wide(chunks) * room_before / all_room;
      hands_[i].share = share_until - share_before;
      share_before = share_until;
    }
  }

  // The owner of the next chunk.
  std::uint8_t next() {
    if (left_in_extent_ == 0) start_extent();
    --left_in_extent_;
    return current_;
  }

 private:
  struct Hand {
    std::uint64_t share = 0;
    std::uint64_t dealt = 0;
  };
  __extension__ using Wide = unsigned __int128;
  static Wide wide(std::uint64_t x) { return x; }

  void start_extent() {
    std::size_t best = 0;  // the one that has had the smallest part of its share
    for (std::size_t i = 1; i < hands_.size(); ++i) {
      const Hand& hand = hands_[i];
      if (hand.dealt == hand.share) continue;
      if (best == 0 ||
          wide(hand.dealt) * hands_[best].share < wide(hands_[best].dealt) * hand.share) {
        best = i;
      }
    }
    Hand& hand = hands_[best];
    current_ = static_cast<std::uint8_t>(best);
    left_in_extent_ = std::min(extent_chunks_, hand.share - hand.dealt);
    hand.dealt += left_in_extent_;
  }

  const std::uint64_t extent_chunks_;
  std::vector<Hand> hands_;
  std::uint64_t left_in_extent_ = 0;
  std::uint8_t current_ = 0;
};

// The rank down to which the main host takes chunks: all that are hotter, and the first `equals` of
// those that rank just so.
struct Threshold {
  std::uint32_t rank = 0;
  std::uint64_t equals = 0;
};

Threshold find_threshold(std::span<const std::uint16_t> ranks, std::uint64_t room) {
  constexpr std::uint32_t kRanks = 1U << 16;
  std::vector<std::uint64_t> counts(kRanks);
  for (const std::uint16_t rank : ranks) ++counts[rank];
  for (std::uint32_t rank = kRanks; rank-- > 0;) {
    if (counts[rank] >= room) return {rank, room};
    room -= counts[rank];
  }
  return {0, ranks.size()};  // the main host holds everything
}

template <typename T>
void put(std::vector<std::uint8_t>& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out.push_back(static_cast<std::uint8_t>(std::uint64_t{value} >> (8 * i)));
  }
}

std::uint64_t get(std::span<const std::uint8_t> bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) value |= std::uint64_t{bytes[at + i]} << (8 * i);
  return value;
}

void put_run(std::vector<std::uint8_t>& out, std::uint8_t owner, std::uint64_t count) {
  std::uint64_t value = (count - 1) << kOwnerBits | owner;
  for (; value > 0x7f; value >>= 7) out.push_back(static_cast<std::uint8_t>(value | 0x80));
  out.push_back(static_cast<std::uint8_t>(value));
}

struct Run {
  std::uint8_t owner;
  std::uint64_t chunks;
};

// Takes the next run off `bytes`. False if it is cut off, too long, or not as short as can be.
bool take_run(std::span<const std::uint8_t>& bytes, Run& run) {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < kMaxRunBytes && i < bytes.size(); ++i) {
    value |= std::uint64_t{bytes[i] & 0x7fU} << (7 * i);
    if ((bytes[i] & 0x80) != 0) continue;
    if (i > 0 && bytes[i] == 0) return false;
    run.owner = value & ((1U << kOwnerBits) - 1);
    run.chunks = (value >> kOwnerBits) + 1;
    bytes = bytes.subspan(i + 1);
    return true;
  }
  return false;
}

template <typename... Args>
Error damaged(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(EBADMSG, "the split plan received is damaged: {}",
                    fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

RankSource ranks_of(const AccessHistory& history, PageCount chunk_pages) {
  return [&history, chunk_pages](ChunkIndex first, std::span<std::uint16_t> out) {
    history.ranks(chunk_pages, first, out);
  };
}

Result<SplitPlan> plan_split(const SplitRequest& request, const RankSource& rank_source) {
  if (auto ok = check_shape(request); !ok) return ok.error();
  Result<Room> room = find_room(request);
  if (!room) return room.error();

  const std::uint64_t chunk = request.chunk_pages.value;
  const std::uint64_t chunks = (request.pages.value + chunk - 1) / chunk;
  // All but a last chunk whose place is settled compete for the main host.
  const bool last_settled = room->last_chunk_host >= 0;
  const std::uint64_t open = chunks - last_settled;

  // Read once: the history goes on changing meanwhile.
  std::vector<std::uint16_t> ranks(open);
  if (rank_source) rank_source(ChunkIndex{0}, ranks);

  const Threshold threshold = find_threshold(ranks, room->chunks[0]);
  Dealer dealer(room->chunks, open - std::min(open, room->chunks[0]), request.chunk_pages);
  SplitPlan plan(request.pages, std::countr_zero(chunk), request.server_capacities.size());
  plan.owners_.resize(chunks);
  std::uint64_t equals = threshold.equals;
  for (std::uint64_t i = 0; i < open; ++i) {
    bool hot = ranks[i] > threshold.rank;
    if (ranks[i] == threshold.rank && equals > 0) {
      hot = true;
      --equals;
    }
    plan.owners_[i] = hot ? kMainHost.value : dealer.next();
  }
  if (last_settled) plan.owners_[open] = static_cast<std::uint8_t>(room->last_chunk_host);
  plan.count_pages();
  return plan;
}

void SplitPlan::count_pages() {
  for_each_run([this](ServerId owner, PageIndex, PageCount count) {
    pages_on_[owner.value] = pages_on_[owner.value] + count;
  });
}

void SplitPlan::encode(std::vector<std::uint8_t>& out) const {
  put(out, kMagic);
  put(out, kVersion);
  put(out, static_cast<std::uint8_t>(chunk_shift_));
  put(out, static_cast<std::uint8_t>(servers()));
  put(out, pages_.value);
  for_each_chunk_run([&out](std::uint8_t owner, std::uint64_t, std::uint64_t count) {
    put_run(out, owner, count);
  });
}

Result<SplitPlan> SplitPlan::decode(std::span<const std::uint8_t> bytes, PageCount max_pages) {
  if (bytes.size() < kHeaderBytes) return damaged("only {} bytes", bytes.size());
  if (get(bytes, 0, 4) != kMagic) return damaged("it does not begin like one");
  if (const std::uint64_t version = get(bytes, 4, 2); version != kVersion) {
    return make_error(EPROTO,
                      "the split plan received has version {}, this host understands {}: use the "
                      "same Kintsugi version on both hosts",
                      version, kVersion);
  }
  const unsigned shift = get(bytes, 6, 1);
  const unsigned servers = get(bytes, 7, 1);
  const PageCount pages{get(bytes, 8, 8)};
  if (shift > static_cast<unsigned>(std::countr_zero(kMaxChunkPages.value))) {
    return damaged("chunks of 2^{} pages", shift);
  }
  if (servers > kMaxServers) return damaged("{} sub-hosts, more than {}", servers, kMaxServers);
  if (pages.value == 0 || pages > std::min(max_pages, kMaxPlanPages)) {
    return damaged("it is for {} pages, 1 to {} can be", pages.value,
                   std::min(max_pages, kMaxPlanPages).value);
  }
  const std::uint64_t chunks = ((pages.value - 1) >> shift) + 1;
  if (chunks > kMaxPlanChunks) return damaged("{} chunks", chunks);

  // Once to check, before memory for the chunks is allocated; once to fill it.
  const std::span<const std::uint8_t> runs = bytes.subspan(kHeaderBytes);
  std::span<const std::uint8_t> rest = runs;
  std::uint64_t named = 0;
  Run run{};
  for (unsigned before = 256; named < chunks; before = run.owner, named += run.chunks) {
    if (!take_run(rest, run)) {
      return damaged("chunk {} of {} is not named properly", named, chunks);
    }
    if (run.owner > servers) return damaged("chunk {} is on sub-host {}", named, run.owner);
    if (run.owner == before) return damaged("a run is cut at chunk {}", named);
    if (run.chunks > chunks - named) return damaged("it names more than {} chunks", chunks);
  }
  if (!rest.empty()) return damaged("{} bytes are left over", rest.size());

  SplitPlan plan(pages, shift, servers);
  plan.owners_.reserve(chunks);
  rest = runs;
  while (plan.owners_.size() < chunks && take_run(rest, run)) {
    plan.owners_.insert(plan.owners_.end(), run.chunks, run.owner);
  }
  plan.count_pages();
  return plan;
}

}  // namespace kintsugi
