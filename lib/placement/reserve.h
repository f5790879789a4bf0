// SPDX-License-Identifier: GPL-2.0-or-later
// What paging itself takes of the memory that the main host may spend on a VM: one formula for the
// command, the source, the destination and the pager.
#pragma once

#include "base/result.h"
#include "base/types.h"

namespace kintsugi {

// Pages of `limit`, which the main host may have resident, that are kept free, so that a page-in
// finds room before anything was evicted: 1/64 of it, at least 1 MiB and at least two chunks.
[[nodiscard]] PageCount paging_reserve(PageCount limit, PageCount chunk_pages);

// What paging takes beside the pages that are resident: location map and history (three bytes a
// page of the VM), the page tables of the process and, under KVM, those of the guest (eight bytes a
// page each, once the guest has touched all of its memory), the eviction queue, and buffers.
[[nodiscard]] Bytes paging_memory(PageCount vm_pages, std::size_t servers, Bytes eviction_queue);

// Whether paging can work within `limit`: it must hold the reserve twice. EINVAL says how much it
// takes.
[[nodiscard]] Result<void> check_main_limit(PageCount limit, PageCount chunk_pages);

}  // namespace kintsugi
