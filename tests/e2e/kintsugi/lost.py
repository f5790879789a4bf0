# SPDX-License-Identifier: GPL-2.0-or-later
"""A split VM while a memory server is lost."""

from __future__ import annotations

from kintsugi.split import query_remote
from kintsugi.util import poll_until
from kintsugi.vm import Vm

LOST_S = 45.0   # a hang is noticed after the client's time-out
BACK_S = 45.0   # back-off is capped


def wait_lost(vm: Vm, uri: str) -> None:
    """The server is reported lost, and the VM stopped."""
    event = vm.qmp.wait_event("REMOTE_MEMORY_SERVER_LOST", LOST_S, lambda d: d["uri"] == uri)
    assert event["data"]["error-desc"]
    poll_until("the VM is stopped", lambda: not vm.qmp.execute("query-status")["running"], 10)
    info = query_remote(vm)
    assert info["stopped"]
    server = next(server for server in info["servers"] if server["uri"] == uri)
    assert not server["connected"] and server["error-desc"]


def wait_back(vm: Vm, uri: str) -> None:
    """The server is reported back."""
    vm.qmp.wait_event("REMOTE_MEMORY_SERVER_BACK", BACK_S, lambda d: d["uri"] == uri)


def check_goes_on(vm: Vm) -> None:
    """The VM runs, pages, and all its memory is right."""
    vm.wait_status("running")
    vm.guest.wait_passes(1)
    vm.guest.verify()
    info = query_remote(vm)
    assert not info["stopped"]
    assert all(server["connected"] for server in info["servers"])
