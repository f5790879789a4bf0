# SPDX-License-Identifier: GPL-2.0-or-later
"""What operators and management tools do with a split migration: descriptors, ways without a way
back, refusals with their reasons, starting a VM that has gone."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from kintsugi.migrate import complete
from kintsugi.qmp import QmpError
from kintsugi.split import SplitSetup, query_split
from kintsugi.util import MIB


def connect_to(uri: str) -> socket.socket:
    """A connection to a destination that listens at unix:PATH."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(uri.removeprefix("unix:"))
    return connection


@pytest.mark.parametrize("how", ["getfd", "add-fd"])
def test_main_host_by_a_descriptor(setup: SplitSetup, how: str) -> None:
    """Management tools pass a connection. The migration begins after the monitor's command."""
    destination = setup.start_destination()
    with connect_to(destination.listen()) as connection:
        if how == "getfd":
            setup.source.qmp.execute_with_fd("getfd", {"fdname": "main"}, connection.fileno())
            uri = "fd:main"
        else:
            setup.source.qmp.execute_with_fd("add-fd", {"fdset-id": 7}, connection.fileno())
            uri = "fd:/dev/fdset/7"
    setup.start_split(uri)
    complete(setup.source, destination)
    destination.guest.go()
    destination.guest.wait_beats()
    destination.guest.verify()


def test_a_way_without_a_way_back_is_refused_at_once(setup: SplitSetup, tmp_path: Path) -> None:
    there, here = os.pipe()
    os.set_inheritable(here, True)
    setup.source.qmp.execute_with_fd("getfd", {"fdname": "pipe"}, here)
    os.close(here)
    for uri in ("exec:cat > /dev/null", f"file:{tmp_path}/state", "fd:pipe", "fd:none",
                "fd:/dev/fdset/99", "nothing"):
        with pytest.raises(QmpError) as refused:
            setup.start_split(uri)
        assert re.search("way back|has not been found|fdset|unknown migration protocol",
                         refused.value.desc), refused.value.desc
        assert query_split(setup.source)["phase"] == "none"
    os.close(there)
    assert not list(tmp_path.iterdir())
    setup.check_source_unharmed()
    setup.check_retry_succeeds()


def test_the_destinations_reason_reaches_the_source(setup: SplitSetup) -> None:
    """Another size, shared RAM, locked RAM, a server out of its reach."""
    more = setup.config.ram_mib + 64
    shared = setup.start_destination(ram="shared")
    sized = setup.start_destination(memory_mib=more)
    for destination, reason in ((sized, "same memory options"), (shared, "share=off|private")):
        text = setup.refused(destination)
        assert re.search(reason, text), text
        assert "the destination refused the VM" in text
        assert "Sibling" not in text
        setup.check_source_unharmed()
        destination.end()
    setup.check_retry_succeeds()


def test_main_memory_that_the_destination_would_refuse(setup: SplitSetup) -> None:
    with pytest.raises(QmpError, match="chunk-size"):
        setup.start_split("tcp:127.0.0.1:1", main_memory=48 * MIB, chunk_size=16 * MIB)
    assert query_split(setup.source)["phase"] == "none"


def test_gdb_cannot_continue_a_vm_that_has_gone(setup: SplitSetup, tmp_path: Path) -> None:
    """Every way to start a VM goes through one function, gdb's too."""
    setup.split()
    path = tmp_path / "gdb"
    setup.source.hmp(f"gdbserver unix:{path},server=on,wait=off")
    with socket.socket(socket.AF_UNIX) as gdb:
        gdb.settimeout(20)
        gdb.connect(str(path))
        for packet in (b"$?#3f", b"$c#63"):
            gdb.sendall(packet)
            assert gdb.recv(1) == b"+"
            if packet[1:2] == b"?":
                answer = b""
                while b"#" not in answer[:-2]:
                    answer += gdb.recv(100)
                gdb.sendall(b"+")
        status = setup.source.qmp.execute("query-status")
        assert not status["running"], status
    with pytest.raises(QmpError, match="never run"):
        setup.source.qmp.execute("cont")


def test_what_a_split_vm_cannot_have_is_refused(setup: SplitSetup) -> None:
    """At the moment of the command, and it goes on."""
    destination, _ = setup.split(page_out="wp")
    qmp = destination.qmp
    qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "more", "size": 128 * MIB})
    qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "cached"})
    for command, arguments, reason in (
            ("device_add", {"driver": "virtio-balloon-pci", "id": "b"}, "a balloon"),
            ("device_add", {"driver": "virtio-mem-pci", "id": "d", "memdev": "more"},
             "more memory"),
            ("blockdev-add", {"driver": "null-co", "node-name": "direct",
                              "cache": {"direct": True}}, "cache.direct=off"),
            ("blockdev-reopen", {"options": [{"driver": "null-co", "node-name": "cached",
                                              "cache": {"direct": True}}]}, "cache.direct=off"),
            *(("migrate-set-capabilities",
               {"capabilities": [{"capability": name, "state": True}]}, name)
              for name in ("postcopy-ram", "background-snapshot", "mapped-ram"))):
        with pytest.raises(QmpError, match=reason):
            qmp.execute(command, arguments)
    destination.guest.wait_beats()
    destination.guest.verify()


def test_preallocated_ram_at_the_destination(setup: SplitSetup) -> None:
    destination = setup.start_destination(extra=("-mem-prealloc",))
    text = setup.refused(destination)
    assert re.search("prealloc=off", text), text
    setup.check_source_unharmed()
