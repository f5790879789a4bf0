# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM of fast and slow memory.

KINTSUGI_TIERS says what kinds these are, in a host that has them:

  tiermem:FAST:SLOW, mem:FAST:SLOW   /dev/tiermem or /dev/mem from these physical addresses on
  nodes:FAST:SLOW                    these NUMA nodes

Without it, tiers are files in memory.
"""

from __future__ import annotations

import os

# How pages of each kind are swapped.
SWAPPERS = {"files": "stop", "mem": "stop", "tiermem": "tiermem", "nodes": "move-pages"}


def kind() -> str:
    """files, tiermem, mem or nodes."""
    return _where()[0]


def swapper() -> str:
    """How query-memory-tiering must say that pages are swapped."""
    return SWAPPERS[kind()]


def slow_address() -> int:
    """Where in physical memory the slow memory begins."""
    return int(_where()[2], 0)


def _where() -> tuple[str, str, str]:
    what, fast, slow = os.environ.get("KINTSUGI_TIERS", "files::").split(":")
    return what, fast, slow


def fast_mib(ram_mib: int) -> int:
    """How much of the RAM is fast."""
    return ram_mib // 8


def ram_arguments(ram_mib: int) -> list[str]:
    """QEMU's arguments for the backend pc.ram: much memory called slow, and little called fast.

    The fast memory comes last, as in P4.
    """
    what, fast_at, slow_at = _where()
    fast = fast_mib(ram_mib)
    slow = ram_mib - fast
    if what == "nodes":
        objects = [f"memory-backend-ram,id=pc.ram,size={ram_mib}M"]
    else:
        objects = [f"memory-backend-container,id=pc.ram,size={ram_mib}M"]
        piece = "memory-backend-devmem,parent=pc.ram"
        if what == "files":
            for name, size in (("slow", slow), ("fast", fast)):
                objects.insert(0, f"memory-backend-memfd,id={name}-file,size={size}M,share=on")
            objects += [f"{piece},id=slow,memdev=slow-file,size={slow}M",
                        f"{piece},id=fast,memdev=fast-file,offset={slow}M"]
        else:
            objects += [f"{piece},id=slow,path=/dev/{what},phy-offset={slow_at},size={slow}M",
                        f"{piece},id=fast,path=/dev/{what},phy-offset={fast_at},size={fast}M,"
                        f"offset={slow}M"]
    return [word for value in objects for word in ("-object", value)]


def tiering_arguments(ram_mib: int, options: str) -> list[str]:
    """QEMU's arguments for an object, mt, that swaps pages more often than in earnest."""
    what, fast, slow = _where()
    where = (f"fast-nodes={fast},slow-nodes={slow},fast-size={fast_mib(ram_mib)}M"
             if what == "nodes" else "fast=fast")
    return ["-object", "access-tracker,id=at,period=100", "-object",
            f"memory-tiering,id=mt,memdev=pc.ram,{where},interval=300{options}"]
