// SPDX-License-Identifier: GPL-2.0-or-later
// How an arena comes to be: made anew, opened again, or handed over, and what is refused.
#include <fcntl.h>
#include <linux/magic.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>

#include "base/memory_limit.h"
#include "memserver/arena.h"
#include "memserver/text.h"

namespace kintsugi::memserver {
namespace {

constexpr std::uint64_t kArenaMagic = 0x616e6572414b5347;  // "GSKArena"
constexpr std::uint32_t kLayoutVersion = 3;

struct Superblock {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t page_bytes;
  std::array<std::uint8_t, 16> server_id;
  std::uint64_t capacity_pages;
  std::uint64_t slots;
  std::uint32_t max_tag_bytes;
  std::uint32_t max_sessions;
  std::uint64_t alignment;
  std::uint64_t total_bytes;
  char boot_id[40];  // of the boot that it was made in
};
static_assert(sizeof(Superblock) == 112);

std::string machine_boot_id(const std::string& path) {
  std::ifstream file(path);
  std::string id;
  file >> id;
  return id;
}

std::span<std::uint8_t> bytes_of(Superblock& s) {
  return {reinterpret_cast<std::uint8_t*>(&s), sizeof(s)};
}

}  // namespace

Result<std::unique_ptr<Arena>> Arena::open(const ArenaOptions& options, ArenaMemory* memory) {
  std::unique_ptr<Arena> arena(new Arena);
  if (!memory) {
    arena->own_memory_ = std::make_unique<ArenaMemory>();
    memory = arena->own_memory_.get();
  }
  arena->memory_ = memory;
  if (Result<void> mapped = arena->map(options); !mapped) return mapped.error();
  return arena;
}

const std::array<std::uint8_t, 16>& Arena::server_id() const {
  return reinterpret_cast<const Superblock*>(base_)->server_id;
}

Result<void> Arena::map(const ArenaOptions& options) {
  path_ = options.path;
  if (options.capacity &&
      (options.capacity->value == 0 || options.capacity->value > kMaxCapacityPages)) {
    return make_error(EINVAL, "a capacity of {} is out of range: give --capacity from 4K to {}",
                      size_text(to_bytes(*options.capacity)),
                      size_text(to_bytes(PageCount{kMaxCapacityPages})));
  }
  boot_id_ = options.boot_id.empty() ? machine_boot_id(options.boot_id_file) : options.boot_id;
  if (boot_id_.empty()) {
    return make_error(EIO,
                      "cannot read {}, by which an old arena is told from this boot's: is the "
                      "service kept from seeing it (ProcSubset=pid)?",
                      options.boot_id_file);
  }
  Result<void> mapped;
  if (options.fd >= 0) {
    mapped = map_handed_over(options);
  } else if (path_.empty()) {
    mapped = map_anonymous(options);
  } else {
    mapped = map_file(options);
  }
  if (!mapped) return mapped;
  records_ = reinterpret_cast<SessionRecord*>(base_ + records_at_);
  meta_ = reinterpret_cast<SlotMeta*>(base_ + meta_at_);
  tags_ = base_ + tags_at_;
  pages_ = base_ + pages_at_;
  // Guest memory has no place in a core dump.
  madvise(base_, bytes_, MADV_DONTDUMP);
  if (const int code = memory_->populate(base_, meta_at_); code != 0) {
    return make_error(code, "no memory for the arena's tables: {}; lower --capacity or free some",
                      errno_text(code));
  }
  if (recovered_) {
    if (Result<void> checked = check_records(); !checked) return checked;
  } else {
    write_superblock();
  }
  allocator_ = std::make_unique<SlotAllocator>(
      extents_, [this](std::uint32_t e) { return populate_extent(e); },
      [this](std::uint32_t e) { release_extent(e); });
  if (options.prefault) {
    if (const int code = memory_->populate(base_, bytes_); code != 0) {
      return make_error(code,
                        "cannot take {} of memory at start (--prefault): {}; lower --capacity",
                        size_text(Bytes{bytes_}), errno_text(code));
    }
  }
  return {};
}

void Arena::lay_out(PageCount capacity, std::uint32_t max_tag_bytes, std::uint32_t max_sessions,
                    std::size_t alignment) {
  capacity_ = capacity;
  max_tag_bytes_ = max_tag_bytes;
  max_sessions_ = max_sessions;
  alignment_ = std::max(alignment, kExtentBytes);
  const std::uint64_t slots = round_up(capacity.value + kSpareSlots, SlotAllocator::kExtentSlots);
  extents_ = static_cast<std::uint32_t>(slots / SlotAllocator::kExtentSlots);
  records_at_ = kPageSize;
  meta_at_ = round_up(records_at_ + std::size_t{max_sessions} * sizeof(SessionRecord), alignment_);
  tags_at_ = round_up(meta_at_ + slots * sizeof(SlotMeta), alignment_);
  pages_at_ = round_up(tags_at_ + slots * max_tag_bytes, alignment_);
  bytes_ = round_up(pages_at_ + slots * kPageSize, alignment_);
}

Result<void> Arena::map_bytes(int fd) {
  // One alignment more, so that extents can be huge pages.
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* at = mmap(nullptr, bytes_ + alignment_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    return make_error(errno, "cannot reserve {} of addresses: {}", size_text(Bytes{bytes_}),
                      errno_text(errno));
  }
  const auto start = reinterpret_cast<std::uintptr_t>(at);
  const std::uintptr_t aligned = round_up(start, alignment_);
  if (aligned > start) munmap(at, aligned - start);
  if (const std::size_t tail = start + alignment_ - aligned; tail > 0) {
    munmap(reinterpret_cast<void*>(aligned + bytes_), tail);
  }
  void* mapped = mmap(reinterpret_cast<void*>(aligned), bytes_, PROT_READ | PROT_WRITE,
                      flags | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) {
    const int code = errno;
    munmap(reinterpret_cast<void*>(aligned), bytes_);
    return make_error(code,
                      "cannot map {} for the arena: {}; lower --capacity, or give the machine (or "
                      "its hugetlb pool) more memory",
                      size_text(Bytes{bytes_}), errno_text(code));
  }
  base_ = static_cast<std::uint8_t*>(mapped);
  return {};
}

Result<void> Arena::map_anonymous(const ArenaOptions& options) {
  if (!options.capacity) {
    return make_error(EINVAL, "how much memory may be lent? give --capacity, 16G say");
  }
  lay_out(*options.capacity, options.max_tag_bytes, options.max_sessions, kExtentBytes);
  if (Result<void> fits = check_limit(options); !fits) return fits;
  if (options.memfd) {
    fd_ = memfd_create("kintsugi-arena", MFD_CLOEXEC);
    if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(bytes_)) != 0) {
      return make_error(errno, "cannot make a memfd of {}: {}", size_text(Bytes{bytes_}),
                        errno_text(errno));
    }
  }
  if (Result<void> mapped = map_bytes(fd_); !mapped) return mapped;
  madvise(base_, bytes_, MADV_HUGEPAGE);
  return {};
}

// Beyond the limit a page that was promised would end in the OOM killer, and all others with it.
Result<void> Arena::check_limit(const ArenaOptions& options) const {
  const MemoryLimit limit = options.limit ? *options.limit : memory_limit();
  // Tags take memory only where VMs have some.
  const Bytes tags{pages_at_ - tags_at_};
  const Bytes need{bytes_ - tags.value};
  const Bytes most = Bytes{bytes_} + to_bytes(max_table_pages()) + options.other_memory;
  if (need.value > limit.bytes.value) {
    return make_error(ENOMEM,
                      "--capacity {} takes {} with its tables, and {} is {}: lower --capacity, or "
                      "raise the limit to {} or more",
                      size_text(to_bytes(capacity_)), size_text(need), limit.where,
                      size_text(limit.bytes), size_text(most));
  }
  if (most.value > limit.bytes.value) {
    spdlog::warn(
        "{} is {}, and may not do: {} for pages, up to {} for tags, {} for page tables of VMs, {} "
        "for connections; {} is enough for all",
        limit.where, size_text(limit.bytes), size_text(need), size_text(tags),
        size_text(to_bytes(max_table_pages())), size_text(options.other_memory), size_text(most));
  }
  return {};
}

Result<void> Arena::map_handed_over(const ArenaOptions& options) {
  path_.clear();
  fd_ = options.fd;
  fcntl(fd_, F_SETFD, FD_CLOEXEC);
  struct stat st {};
  if (fstat(fd_, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
    return make_error(EINVAL, "the descriptor {} that was handed over is no arena", fd_);
  }
  ArenaOptions as_it_is = options;
  as_it_is.capacity.reset();
  if (Result<void> adopted = adopt_file(as_it_is); !adopted) return adopted;
  if (!recovered_) return make_error(EINVAL, "the arena that was handed over is empty");
  const bool other_capacity = options.capacity && *options.capacity != capacity_;
  if (!other_capacity && options.path.empty()) return {};
  const auto* records = reinterpret_cast<const SessionRecord*>(base_ + records_at_);
  const bool in_use = std::any_of(records, records + max_sessions_,
                                  [](const SessionRecord& r) { return r.state == kRecordLive; });
  if (in_use) {
    spdlog::warn(
        "there are sessions in memory that the process before handed over, so it is used as it "
        "is, with {}: {} takes effect with a start without sessions",
        size_text(to_bytes(capacity_)), options.path.empty() ? "--capacity" : "--arena");
    return {};
  }
  munmap(base_, bytes_);
  base_ = nullptr;
  close(fd_);
  fd_ = -1;
  recovered_ = false;
  path_ = options.path;
  return path_.empty() ? map_anonymous(options) : map_file(options);
}

Result<void> Arena::map_file(const ArenaOptions& options) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
  const bool is_new = fd_ < 0 && errno == ENOENT;
  if (is_new) fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd_ < 0) {
    return make_error(errno, "cannot open the arena file {}: {}", path_, errno_text(errno));
  }
  Result<void> mapped = map_open_file(options);
  // Of a creation that failed nothing is left.
  if (!mapped && is_new) unlink(path_.c_str());
  return mapped;
}

Result<void> Arena::map_open_file(const ArenaOptions& options) {
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    return make_error(errno,
                      "the arena file {} is in use by another memory server: stop that one or "
                      "give another --arena",
                      path_);
  }
  struct stat st {};
  if (fstat(fd_, &st) != 0 || !S_ISREG(st.st_mode)) {
    return make_error(
        EINVAL, "the arena {} is not a file: give --arena a path on tmpfs or hugetlbfs", path_);
  }
  struct statfs fs {};
  if (fstatfs(fd_, &fs) != 0) {
    return make_error(errno, "statfs {}: {}", path_, errno_text(errno));
  }
  if (fs.f_type != TMPFS_MAGIC && fs.f_type != HUGETLBFS_MAGIC) {
    return make_error(EINVAL,
                      "the arena {} is on a disk, where guests' memory would be kept and be slow: "
                      "give --arena a path on tmpfs (/dev/shm, say) or hugetlbfs",
                      path_);
  }
  // st_size alone does not tell an arena from the rest of a failed creation: the magic does.
  if (st.st_size > 0) return adopt_file(options);
  return create_file(options, static_cast<std::uint64_t>(st.st_blocks) * 512);
}

Result<void> Arena::create_file(const ArenaOptions& options, std::uint64_t on_disk_bytes) {
  if (!options.capacity) {
    return make_error(EINVAL, "the arena file {} is new: give --capacity, 16G say", path_);
  }
  struct statfs fs {};
  if (fstatfs(fd_, &fs) != 0) {
    return make_error(errno, "statfs {}: {}", path_, errno_text(errno));
  }
  lay_out(*options.capacity, options.max_tag_bytes, options.max_sessions,
          static_cast<std::size_t>(fs.f_bsize));
  if (fs.f_type == TMPFS_MAGIC) {  // hugetlbfs has a pool of its own
    if (Result<void> fits = check_limit(options); !fits) return fits;
  }
  const std::uint64_t room =
      static_cast<std::uint64_t>(fs.f_bavail) * static_cast<std::uint64_t>(fs.f_bsize) +
      on_disk_bytes;
  if (bytes_ > room && fs.f_blocks > 0) {
    return make_error(
        ENOSPC,
        "the arena file {} needs {}, its file system has {} free: lower --capacity or "
        "enlarge the file system (mount -o remount,size=... for tmpfs)",
        path_, size_text(Bytes{bytes_}), size_text(Bytes{room}));
  }
  if (ftruncate(fd_, static_cast<off_t>(bytes_)) != 0) {
    return make_error(errno, "cannot make the arena file {} {} long: {}", path_,
                      size_text(Bytes{bytes_}), errno_text(errno));
  }
  Result<void> mapped = map_bytes(fd_);
  if (!mapped) (void)ftruncate(fd_, 0);
  return mapped;
}

Result<void> Arena::adopt_file(const ArenaOptions& options) {
  Superblock super{};
  // hugetlbfs cannot be read by pread before 2.6.x, but can be mapped: always map.
  struct stat st {};
  fstat(fd_, &st);
  struct statfs fs {};
  fstatfs(fd_, &fs);
  const std::size_t head =
      std::max(kPageSize, static_cast<std::size_t>(std::max<long>(fs.f_bsize, 0)));
  const auto damaged = [&](const char* why) {
    if (options.fd >= 0) {
      return make_error(EINVAL,
                        "the memory that the process before handed over {}: start the memserver "
                        "again that made it, or lose the pages in it: systemctl stop, and from "
                        "systemd 254 on systemctl clean --what=fdstore",
                        why);
    }
    return make_error(EINVAL,
                      "the arena file {} {}: name another file with --arena, or remove this one, "
                      "which loses the pages in it",
                      path_, why);
  };
  if (static_cast<std::size_t>(st.st_size) < head) return damaged("is too short for an arena");
  void* at = mmap(nullptr, head, PROT_READ, MAP_SHARED, fd_, 0);
  if (at == MAP_FAILED) return make_error(errno, "cannot map {}: {}", path_, errno_text(errno));
  std::memcpy(bytes_of(super).data(), at, sizeof(super));
  munmap(at, head);
  if (super.magic == 0) {
    // A server died between making the file and writing the superblock: nothing was in it yet.
    if (ftruncate(fd_, 0) != 0) return damaged("cannot be emptied");
    return create_file(options, 0);
  }
  if (super.magic != kArenaMagic) return damaged("is not a memory server's arena");
  if (super.layout_version != kLayoutVersion || super.page_bytes != kPageSize) {
    return damaged("was made by another release of memserver");
  }
  if (std::string_view(super.boot_id, strnlen(super.boot_id, sizeof(super.boot_id))) != boot_id_) {
    return damaged("is of another boot of a machine, so what is in it is old");
  }
  if (options.capacity && options.capacity->value != super.capacity_pages) {
    return make_error(EINVAL,
                      "the arena file {} holds {}, --capacity says {}: leave --capacity out, or "
                      "remove the file, which loses the pages in it",
                      path_, size_text(to_bytes(PageCount{super.capacity_pages})),
                      size_text(to_bytes(*options.capacity)));
  }
  if (super.capacity_pages == 0 || super.capacity_pages > kMaxCapacityPages ||
      super.max_tag_bytes > wire::kMaxTagBytes || super.max_sessions == 0 ||
      super.max_sessions > (1U << 20) || super.alignment > (std::uint64_t{1} << 34) ||
      super.alignment < kExtentBytes || (super.alignment & (super.alignment - 1)) != 0) {
    return damaged("is damaged");
  }
  lay_out(PageCount{super.capacity_pages}, super.max_tag_bytes, super.max_sessions,
          super.alignment);
  if (bytes_ != super.total_bytes || static_cast<std::uint64_t>(st.st_size) != bytes_) {
    return damaged("does not have the length that its superblock tells");
  }
  recovered_ = true;
  return map_bytes(fd_);
}

void Arena::write_superblock() {
  auto* super = reinterpret_cast<Superblock*>(base_);
  super->layout_version = kLayoutVersion;
  super->page_bytes = kPageSize;
  std::strncpy(super->boot_id, boot_id_.c_str(), sizeof(super->boot_id) - 1);
  while (getrandom(super->server_id.data(), super->server_id.size(), 0) < 0) {
  }
  super->capacity_pages = capacity_.value;
  super->slots = std::uint64_t{extents_} * SlotAllocator::kExtentSlots;
  super->max_tag_bytes = max_tag_bytes_;
  super->max_sessions = max_sessions_;
  super->alignment = alignment_;
  super->total_bytes = bytes_;
  std::atomic_ref(super->magic).store(kArenaMagic, std::memory_order_release);
}

Result<void> Arena::check_records() const {
  std::uint64_t reserved = 0;
  for (std::uint32_t i = 0; i < max_sessions_; i++) {
    const SessionRecord& r = records_[i];
    if (r.state == kRecordFree || r.state == kRecordTombstone) continue;
    if (r.state != kRecordLive || r.capacity_pages > capacity_.value - reserved ||
        r.tag_bytes > max_tag_bytes_ || r.vm_pages == 0 || r.vm_pages > kMaxVmPages ||
        r.ownership.state >> 1 == 0) {
      return make_error(EINVAL,
                        "the arena file {} is damaged (session record {}): remove it, which loses "
                        "the pages in it",
                        path_, i);
    }
    reserved += r.capacity_pages;
  }
  return {};
}

}  // namespace kintsugi::memserver
