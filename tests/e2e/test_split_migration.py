# SPDX-License-Identifier: GPL-2.0-or-later
"""Split migrations that succeed: not one byte of the guest's memory is ever wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from kintsugi.migrate import complete, query, use_multifd
from kintsugi.qmp import QmpError
from kintsugi.split import PAGE_OUT_METHODS, SplitSetup, query_remote, query_split
from kintsugi.util import PAGE_BYTES, poll_until
from kintsugi.vm import Vm, VmConfig

pytestmark = pytest.mark.split
MakeSetup = Callable[..., SplitSetup]


def check_paging(vm: Vm, limit_bytes: int) -> None:
    """The guest visits all its memory, pages both ways for that, and finds no error."""
    before = query_remote(vm)
    vm.guest.wait_passes(2)
    vm.guest.verify()
    after = query_remote(vm)
    assert after["active"]
    assert after["page-ins"] > before["page-ins"]
    assert after["page-outs"] > before["page-outs"]
    assert after["limit"] * PAGE_BYTES <= limit_bytes
    assert after["resident"] <= after["limit"]
    assert all(server["connected"] for server in after["servers"])
    assert not after["stopped"]


@pytest.mark.parametrize("page_out", PAGE_OUT_METHODS)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_split(make_setup: MakeSetup, page_out: str, transport: str) -> None:
    setup = make_setup(server_transport=transport)
    destination, _ = setup.split(transport, page_out=page_out)
    assert query_remote(destination)["page-out"] == page_out
    check_paging(destination, setup.main_bytes)


def test_auto_page_out_says_why(setup: SplitSetup) -> None:
    destination, _ = setup.split()
    info = query_remote(destination)
    # Emulated hosts run a kernel of ours.
    methods = ("pageout",) if "KINTSUGI_HOST" in os.environ else PAGE_OUT_METHODS
    assert info["page-out"] in methods
    assert info["page-out-reason"]
    check_paging(destination, setup.main_bytes)


@pytest.mark.parametrize("page_out", PAGE_OUT_METHODS)
def test_two_vcpus(make_setup: MakeSetup, config: VmConfig, page_out: str) -> None:
    setup = make_setup(replace(config, smp=2))
    destination, _ = setup.split(page_out=page_out)
    check_paging(destination, setup.main_bytes)


@pytest.mark.parametrize("chunk_size", [4096, 16384, 1 << 20])
def test_chunk_sizes(make_setup: MakeSetup, config: VmConfig, chunk_size: int) -> None:
    """The guest's hot runs are of 256 KiB: few enough to fit, even if each heats a whole chunk."""
    setup = make_setup(config.with_guest(hot=5))
    destination, _ = setup.split(chunk_size=chunk_size)
    assert query_split(setup.source)["chunk-size"] == chunk_size
    check_paging(destination, setup.main_bytes)


@pytest.mark.parametrize("policy", ["clock", "aging"])
def test_policies(make_setup: MakeSetup, config: VmConfig, policy: str) -> None:
    """Plan by the history of an access tracker of either policy."""
    tracker = f"access-tracker,id=at0,period=200,policy={policy}"
    setup = make_setup(replace(config, extra=("-object", tracker)))
    poll_until("the access tracker has scanned", lambda: any(
        info["scans"] >= 3 for info in setup.source.qmp.execute("query-access-tracker")), 20)
    destination, _ = setup.split(policy=policy)
    info = query_split(setup.source)
    assert info["policy"] == policy and info["history"]
    check_paging(destination, setup.main_bytes)


@pytest.mark.parametrize("servers", [1, 3])
def test_numbers_of_servers(make_setup: MakeSetup, servers: int) -> None:
    setup = make_setup(servers=servers)
    destination, _ = setup.split()
    assert len(query_remote(destination)["servers"]) == servers
    check_paging(destination, setup.main_bytes)


@pytest.mark.parametrize("main_percent", [25, 80])
def test_shares_of_the_main_host(make_setup: MakeSetup, main_percent: int) -> None:
    setup = make_setup(main_percent=main_percent)
    destination, _ = setup.split()
    check_paging(destination, setup.main_bytes)


def test_multifd(setup: SplitSetup) -> None:
    """The main host's part over several channels."""
    destination = setup.start_destination()
    use_multifd(2, setup.source, destination)
    setup.start_split(destination.listen())
    complete(setup.source, destination)
    check_paging(destination, setup.main_bytes)


def test_main_host_with_room_for_all(make_setup: MakeSetup) -> None:
    """More main memory than the VM has: nothing is remote, and it still works."""
    setup = make_setup()
    destination, _ = setup.split(main_memory=setup.config.ram_bytes * 2)
    destination.guest.wait_passes(1)
    destination.guest.verify()
    assert query_remote(destination)["remote"] == 0


def test_mostly_zero_guest(make_setup: MakeSetup, config: VmConfig) -> None:
    """Pages that turn to zero and back while they migrate and are paged."""
    setup = make_setup(config.with_guest(zero=80, zeroflip=40))
    destination, _ = setup.split()
    destination.guest.wait_passes(3)
    destination.guest.verify()
    assert query_remote(destination)["zero"] > 0


def test_idle_guest(setup: SplitSetup) -> None:
    """A guest that touches nothing during the migration and wakes up afterwards."""
    setup.source.guest.hold()
    destination, _ = setup.split()
    destination.guest.verify()
    destination.guest.go()
    check_paging(destination, setup.main_bytes)


def test_figures(setup: SplitSetup) -> None:
    """What is told about a migration adds up."""
    destination, figures = setup.split()
    assert figures.total_ms > 0 and figures.downtime_ms >= 0
    info = query_split(setup.source)
    assert info["phase"] == "completed"
    main, *subs = info["targets"]
    assert main["main"] and main["planned"] * PAGE_BYTES <= setup.main_bytes
    assert [sub["uri"] for sub in subs] == [server.uri for server in setup.servers]
    assert sum(target["planned"] for target in info["targets"]) == info["pages"]
    assert info["pages"] * PAGE_BYTES == setup.config.ram_bytes
    for sub in subs:
        assert sub["planned"] * PAGE_BYTES <= sub["capacity"] == setup.sub_bytes
        assert sub["sent"] * PAGE_BYTES <= sub["bytes"]
    remote = query_remote(destination)
    assert remote["pages"] == info["pages"]
    for server in setup.servers:
        assert server.reserved_bytes == setup.sub_bytes
    # Pages planned for a sub-host do not pass through the main stream.
    sent_to_subs = sum(sub["bytes"] for sub in subs)
    assert sent_to_subs > 0
    assert query(setup.source)["ram"]["transferred"] >= sent_to_subs


def test_source_never_runs_again(setup: SplitSetup) -> None:
    setup.split()
    assert setup.source.status() == "postmigrate"
    with pytest.raises(QmpError):
        setup.source.qmp.execute("cont")
    assert setup.source.status() == "postmigrate"


@pytest.mark.parametrize("how", ["guest-powers-off", "quit"])
def test_servers_are_empty_after_the_vm(setup: SplitSetup, how: str) -> None:
    destination, _ = setup.split()
    destination.guest.wait_beats()
    if how == "quit":
        destination.end()
    else:
        destination.guest.quit()
        destination.process.wait(20)
    for server in setup.servers:
        server.wait_empty()


def test_hmp(setup: SplitSetup) -> None:
    """The same by the human monitor."""
    destination = setup.start_destination()
    hosts = ",".join(f"{host['uri']}={host['capacity']}" for host in setup.sub_hosts())
    uri = destination.listen()
    answer = setup.source.hmp(f"migrate_split {uri} {setup.main_bytes}B {hosts}")
    assert "rror" not in answer, answer
    poll_until("the migration begins",
               lambda: query_split(setup.source)["phase"] != "connecting", 10)
    complete(setup.source, destination)
    assert "phase: completed" in setup.source.hmp("info migrate_split")
    text = destination.hmp("info remote_memory")
    for server in setup.servers:
        assert server.uri in text
    check_paging(destination, setup.main_bytes)
