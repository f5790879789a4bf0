# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input and bad luck before completion.

Each ends in a clear error, with the source VM running and all its memory right, and with nothing
left on the servers.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from kintsugi.badserver import BadServer
from kintsugi.memserver import MemServer
from kintsugi.migrate import Phase, complete, go_on, hold_in, speed_up, wait_end, wait_phase
from kintsugi.qmp import QmpError
from kintsugi.split import SplitSetup, query_split, wait_connecting
from kintsugi.util import MIB, DeadlineError, Work, poll_until
from kintsugi.vm import VmConfig
from kintsugi.wire import Op, Status
from kintsugi.wiretap import Tap, WireTap

pytestmark = pytest.mark.split
MakeSetup = Callable[..., SplitSetup]
LATER_PHASES = (Phase.FIRST_PASS, Phase.ITERATION, Phase.BEFORE_COMPLETION)
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


def assert_names(text: str, *patterns: str) -> None:
    """The error names what to change."""
    for pattern in patterns:
        assert re.search(pattern, text, re.IGNORECASE), f"{pattern!r} is not in: {text}"


# ---- Arguments -----------------------------------------------------------------------------------

def test_capacities_do_not_add_up(setup: SplitSetup) -> None:
    small = [{"uri": server.uri, "capacity": 16 * MIB} for server in setup.servers]
    assert_names(setup.refused(sub_hosts=small), "capacit|main-memory")
    setup.check_source_unharmed()
    setup.check_retry_succeeds()


@pytest.mark.parametrize("size", [0, 3000, 2048, 65536 + 4096, 3 << 20])
def test_chunk_size_not_a_power_of_two(setup: SplitSetup, size: int) -> None:
    assert_names(setup.refused(chunk_size=size), "chunk", "power of two|4096")
    setup.check_source_unharmed()


@pytest.mark.parametrize("uri", ["", "tcp:", "tcp:127.0.0.1", "tcp:127.0.0.1:99999", "udp:a:1",
                                 "unix:", "unix:/" + "x" * 200])
def test_bad_server_uri(setup: SplitSetup, uri: str) -> None:
    hosts = setup.sub_hosts([setup.servers[0].uri, uri])
    assert_names(setup.refused(sub_hosts=hosts), "tcp:HOST:PORT|unix:PATH|port|path|address")
    setup.check_source_unharmed()


def test_no_sub_hosts(setup: SplitSetup) -> None:
    assert_names(setup.refused(sub_hosts=[]), "sub-host")
    setup.check_source_unharmed()


def test_too_many_sub_hosts(setup: SplitSetup) -> None:
    hosts = [{"uri": f"tcp:127.0.0.1:{port}", "capacity": MIB} for port in range(1000, 1064)]
    assert_names(setup.refused(sub_hosts=hosts), "63")
    setup.check_source_unharmed()


def test_same_server_twice(setup: SplitSetup) -> None:
    hosts = setup.sub_hosts([setup.servers[0].uri] * 2)
    assert_names(setup.refused(sub_hosts=hosts), re.escape(setup.servers[0].uri))
    setup.check_source_unharmed()


@pytest.mark.parametrize("main_memory", [0, 4096])
def test_too_little_main_memory(make_setup: MakeSetup, main_memory: int) -> None:
    """A VM cannot run on nothing, even if the sub-hosts could hold it all."""
    setup = make_setup(servers=1, main_percent=1)
    assert_names(setup.refused(main_memory=main_memory), "main-memory|main host|memory")
    setup.check_source_unharmed()


def test_second_migration_at_once(setup: SplitSetup) -> None:
    destination = setup.start_destination()
    hold_in(setup.source, Phase.BEFORE_COMPLETION)
    setup.start_split(destination.listen())
    wait_phase(setup.source, Phase.BEFORE_COMPLETION)
    with pytest.raises(QmpError, match="progress|already"):
        setup.start_split("tcp:127.0.0.1:1")
    setup.source.qmp.execute("migrate_cancel")
    setup.failed_later(wanted="cancelled")
    setup.check_source_unharmed()


# ---- What cannot be paged remotely ---------------------------------------------------------------

def test_balloon(make_setup: MakeSetup, config: VmConfig) -> None:
    setup = make_setup(replace(config, devices=("virtio-balloon-pci,id=balloon0",)))
    assert_names(setup.refused(), "balloon")
    setup.check_source_unharmed()


def test_device_that_pins_memory(setup: SplitSetup) -> None:
    """VFIO and vDPA devices pin all guest memory, and tell QEMU so, which counts them.

    There is no such device without hardware, so a debugger counts one in the source. (It sets the
    counter: a call into the process would need the debugger to know all of its registers.)
    """
    def count(devices: int) -> None:
        counter = "*(unsigned *)&ram_block_discard_disabled_cnt"
        done = subprocess.run(
            ["gdb", "-q", "-batch", "-p", str(setup.source.process.pid), "-ex",
             f"set var {counter} = {devices}", "-ex", f"print {counter}"],
            capture_output=True, text=True, check=False)
        assert f"$1 = {devices}" in done.stdout, done.stdout + done.stderr

    count(1)
    assert_names(setup.refused(), "VFIO", "unplug")
    setup.check_source_unharmed()
    count(0)
    setup.check_retry_succeeds()


def test_locked_memory(make_setup: MakeSetup, config: VmConfig) -> None:
    setup = make_setup(replace(config, extra=("-overcommit", "mem-lock=on")))
    assert_names(setup.refused(), "mem-lock")
    setup.check_source_unharmed()


def test_postcopy(setup: SplitSetup) -> None:
    destination = setup.start_destination()
    setup.source.set_capabilities(postcopy_ram=True)
    assert_names(setup.refused(destination), "postcopy")
    setup.source.set_capabilities(postcopy_ram=False)
    setup.check_source_unharmed()
    setup.check_retry_succeeds()


def test_postcopy_at_the_destination(setup: SplitSetup) -> None:
    """Only the source decides on postcopy: the capability at the destination alone does no harm."""
    destination = setup.start_destination()
    destination.set_capabilities(postcopy_ram=True)
    setup.start_split(destination.listen())
    complete(setup.source, destination)
    destination.guest.verify()


def test_shared_ram(make_setup: MakeSetup, config: VmConfig) -> None:
    setup = make_setup(replace(config, ram="shared"))
    assert_names(setup.refused(), "shared?")
    setup.check_source_unharmed()


def test_shared_ram_at_the_destination(setup: SplitSetup) -> None:
    setup.refused(setup.start_destination(ram="shared"))
    setup.check_source_unharmed()


def test_direct_io_with_write_protection(make_setup: MakeSetup, config: VmConfig) -> None:
    """Write protection does not see pages that direct I/O has pinned; MOVE does."""
    disk = ("-blockdev", "driver=null-co,node-name=disk0,cache.direct=on")
    setup = make_setup(replace(config, extra=disk))
    destination = setup.start_destination()
    assert_names(setup.refused(destination, page_out="wp"), "disk0", "page-out",
                 "cache.direct=off")
    setup.check_source_unharmed()
    setup.check_retry_succeeds()


@pytest.mark.skipif("KINTSUGI_HOST" in os.environ, reason="the kernel here has UFFDIO_PAGEOUT")
def test_page_out_that_the_kernel_lacks(setup: SplitSetup) -> None:
    destination = setup.start_destination()
    assert_names(setup.refused(destination, page_out="pageout"), "UFFDIO_PAGEOUT", "kernel")
    setup.check_source_unharmed()
    setup.check_retry_succeeds()


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """Have so many free 2 MiB pages for a while; skip the test where that cannot be had."""
    control = HUGE_PAGES / "nr_hugepages"
    try:
        before = int(control.read_text())
        free = int((HUGE_PAGES / "free_hugepages").read_text())
        wanted = before + max(0, count - free)
        control.write_text(str(wanted))
    except OSError as error:
        pytest.skip(f"huge pages cannot be reserved: {error}")
    try:
        if int((HUGE_PAGES / "free_hugepages").read_text()) < count:
            pytest.skip(f"the kernel has no {count} huge pages")
        yield
    finally:
        control.write_text(str(before))


@pytest.mark.parametrize("side", ["source", "destination"])
def test_huge_page_ram(make_setup: MakeSetup, config: VmConfig, side: str) -> None:
    with huge_pages(config.ram_mib // 2 + 1):
        huge = replace(config, ram="hugetlb")
        setup = make_setup(huge if side == "source" else config)
        destination = setup.start_destination(ram="hugetlb" if side == "destination"
                                              else "default")
        text = setup.refused(destination)
        if side == "source":
            assert_names(text, "huge")
        setup.check_source_unharmed()
        setup.close()  # before the huge pages are given back


# ---- Servers that say no, or nothing -------------------------------------------------------------

@pytest.mark.parametrize("which", [0, 1])
def test_server_without_capacity(make_setup: MakeSetup, work: Work, which: int) -> None:
    setup = make_setup()
    small = MemServer("small", work, setup.sub_bytes // 2)
    try:
        uris = [server.uri for server in setup.servers]
        uris[which] = small.uri
        text = setup.refused(sub_hosts=setup.sub_hosts(uris))
        assert_names(text, re.escape(small.uri), "capacity|memory free")
        small.wait_empty()
        setup.check_source_unharmed()
        setup.check_retry_succeeds()
    finally:
        for vm in setup.vms:
            vm.end()
        small.close()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["tcp-port-closed", "unix-path-missing", "unknown-host"])
def test_server_unreachable(setup: SplitSetup, work: Work, which: int, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed_port = listener.getsockname()[1]
    uri = {"tcp-port-closed": f"tcp:127.0.0.1:{closed_port}",
           "unix-path-missing": f"unix:{work.temp}/missing.sock",
           "unknown-host": "tcp:no-such-host.invalid:1"}[how]
    uris = [server.uri for server in setup.servers]
    uris[which] = uri
    assert_names(setup.refused(sub_hosts=setup.sub_hosts(uris)), re.escape(uri))
    setup.check_source_unharmed()


BAD_SERVERS = {
    "version": "version",
    "newer": "version",
    "close": "closed|reset",
    "close-hello": "closed|reset",
    "close-open": "closed|reset",
    "close-put": "closed|reset",
    "never": "answer|time|second",
    "never-put": "answer|time|second",
    "garbage": "protocol|magic",
    "huge": "protocol|bytes|bound",
    "wrong-seq": "sequence|seq|answer|asked",
    "full": "capacity|memory free",
    "put-full": "capacity|memory",
    "internal": "log|inside",
}


@pytest.mark.parametrize("mode", sorted(BAD_SERVERS))
def test_bad_server(setup: SplitSetup, mode: str) -> None:
    """A server that does not keep to the protocol, as the second of two."""
    bad = BadServer(mode)
    try:
        text = setup.refused(sub_hosts=setup.sub_hosts([setup.servers[0].uri, bad.uri]))
        assert bad.connections > 0
        assert_names(text, re.escape(bad.uri), BAD_SERVERS[mode])
        setup.check_source_unharmed()
    finally:
        bad.close()


# ---- Deaths and cancellation in each phase -------------------------------------------------------

def inject(setup: SplitSetup, fault: str) -> None:
    """Make one of the faults happen."""
    if fault == "cancel":
        setup.source.qmp2.execute("migrate_cancel")
    elif fault == "destination-dies":
        setup.vms[-1].kill()
    else:
        setup.servers[int(fault[-1])].kill()


FAULTS = ("cancel", "destination-dies", "server-dies-0", "server-dies-1")


@pytest.mark.parametrize("phase", LATER_PHASES, ids=lambda phase: phase.value)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault(setup: SplitSetup, phase: Phase, fault: str) -> None:
    destination = setup.start_destination()
    hold_in(setup.source, phase)
    setup.start_split(destination.listen())
    wait_phase(setup.source, phase)
    inject(setup, fault)
    if fault != "cancel" and phase is Phase.BEFORE_COMPLETION:
        go_on(setup.source)
    wanted = "cancelled" if fault == "cancel" else "failed"
    text = setup.failed_later(wanted=wanted)
    assert query_split(setup.source)["phase"] == wanted
    if fault.startswith("server"):
        assert_names(text, re.escape(setup.servers[int(fault[-1])].uri))
    setup.check_source_unharmed()
    destination.end()
    setup.check_retry_succeeds()


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_while_connecting(setup: SplitSetup, fault: str) -> None:
    """A server hangs, so that the source is still asking when the fault comes."""
    destination = setup.start_destination()
    hanging = setup.servers[0 if fault == "server-dies-0" else 1]
    hanging.freeze()
    setup.send_split(destination.listen())
    wait_connecting(setup.source)
    inject(setup, fault)
    if fault == "destination-dies":
        hanging.thaw()
    text = setup.failed(wanted="cancelled" if fault == "cancel" else "failed")
    if fault.startswith("server"):
        assert_names(text, re.escape(hanging.uri))
    elif fault == "cancel":
        hanging.thaw()
    setup.check_source_unharmed()


def test_server_hangs_in_the_first_pass(setup: SplitSetup) -> None:
    """A server that stops answering is taken for dead after a while, and given up."""
    destination = setup.start_destination()
    hold_in(setup.source, Phase.FIRST_PASS)
    setup.start_split(destination.listen())
    wait_phase(setup.source, Phase.FIRST_PASS)
    setup.servers[1].freeze()
    text = setup.failed_later()
    assert_names(text, re.escape(setup.servers[1].uri))
    setup.servers[1].thaw()
    setup.check_source_unharmed()


def test_many_failures_in_a_row(setup: SplitSetup) -> None:
    """What a failure leaves behind would show in the next one."""
    for fault in ("cancel", "destination-dies") * 4:
        destination = setup.start_destination()
        hold_in(setup.source, Phase.FIRST_PASS)
        setup.start_split(destination.listen())
        wait_phase(setup.source, Phase.FIRST_PASS)
        inject(setup, fault)
        setup.failed_later(wanted="cancelled" if fault == "cancel" else "failed")
        setup.source.wait_status("running")
        destination.end()
    setup.check_source_unharmed()
    setup.check_retry_succeeds()


# ---- At exact points of the handover -------------------------------------------------------------
#
# The first server decides who owns the VM, so these go through a proxy in front of it.

@pytest.fixture
def handover(setup: SplitSetup) -> Iterator[tuple[SplitSetup, WireTap]]:
    """A setup whose first server is reached through a WireTap."""
    tap = WireTap(setup.servers[0].uri)
    yield setup, tap
    for vm in reversed(setup.vms):
        vm.end()
    tap.close()


def start_through(setup: SplitSetup, tap: WireTap) -> None:
    """Start a split migration with the tap's address as that of the first server."""
    destination = setup.start_destination()
    setup.start_split(destination.listen(),
                      sub_hosts=setup.sub_hosts([tap.uri, setup.servers[1].uri]))


def test_retry_waits_for_what_the_failure_gives_back(
        handover: tuple[SplitSetup, WireTap]) -> None:
    """A server that is slow to drop the old session has no room for the new one until then."""
    setup, tap = handover
    may_drop = Event()
    opened: list[bool] = []

    def drop(_: object) -> bool:
        return may_drop.wait(60)

    def open_session(_: object) -> bool:
        opened.append(may_drop.is_set())
        return True

    setup.source.guest.hold()
    hold_in(setup.source, Phase.FIRST_PASS)
    start_through(setup, tap)
    wait_phase(setup.source, Phase.FIRST_PASS)
    tap.on_request[Op.DROP] = drop
    tap.on_request[Op.OPEN] = open_session
    setup.source.qmp.execute("migrate_cancel")
    setup.failed_later(wanted="cancelled")
    speed_up(setup.source)
    destination = setup.start_destination()
    setup.send_split(destination.listen(),
                     sub_hosts=setup.sub_hosts([tap.uri, setup.servers[1].uri]))
    setup.source.qmp.finish(60)
    phases = {query_split(setup.source)["phase"] for _ in range(500)}
    may_drop.set()
    assert phases == {"connecting"}
    poll_until("the servers are asked",
               lambda: query_split(setup.source)["phase"] != "connecting", 60)
    complete(setup.source, destination)
    assert opened == [True]
    destination.guest.go()
    destination.guest.wait_beats()


@pytest.mark.parametrize("when", ["claim-asked", "claim-answered", "commit-asked"])
def test_destination_dies_before_it_owns_the_vm(handover: tuple[SplitSetup, WireTap],
                                                when: str) -> None:
    """The source takes the VM back, and fences the destination."""
    setup, tap = handover

    hooks = tap.on_reply if when == "claim-answered" else tap.on_request

    def die(_: object) -> bool:
        hooks.clear()   # the source is to get through
        setup.vms[-1].process.kill()
        return False

    hooks[Op.COMMIT if when == "commit-asked" else Op.CLAIM] = die
    start_through(setup, tap)
    setup.failed_later()
    setup.check_source_unharmed()
    setup.check_retry_succeeds()


def test_destination_dies_once_it_owns_the_vm(handover: tuple[SplitSetup, WireTap]) -> None:
    """The destination committed and died before it could say so: the source must not run."""
    setup, tap = handover

    def die(_: object) -> bool:
        setup.vms[-1].process.kill()
        return False

    tap.on_reply[Op.COMMIT] = die
    start_through(setup, tap)
    wait_end(setup.source)
    with pytest.raises(DeadlineError):
        setup.source.wait_status("running", 2)
    with pytest.raises(QmpError):
        setup.source.qmp.execute("cont")


def test_nobody_knows_who_owns_the_vm(handover: tuple[SplitSetup, WireTap]) -> None:
    """The destination and the deciding server are lost at once: in doubt, the source waits."""
    setup, tap = handover

    def vanish(_: object) -> bool:
        tap.refuse()    # before the source asks
        setup.vms[-1].process.kill()
        tap.cut()
        return False

    tap.on_request[Op.CLAIM] = vanish
    start_through(setup, tap)
    poll_until("the migration is in doubt",
               lambda: query_split(setup.source)["phase"] == "in-doubt", 60)
    assert not setup.source.qmp.execute("query-status")["running"]
    assert query_split(setup.source)["error-desc"]
    with pytest.raises(QmpError, match="migrate-split-take-back"):
        setup.source.qmp.execute("cont")
    # The operator knows that the destination is dead.
    setup.source.qmp.execute("migrate-split-take-back")
    setup.source.wait_status("running", 60)
    assert query_split(setup.source)["phase"] == "failed"
    setup.source.guest.wait_beats()
    setup.source.guest.verify()
    with pytest.raises(QmpError, match="no doubt"):
        setup.source.qmp.execute("migrate-split-take-back")


@pytest.mark.parametrize("owner", ["source", "destination"])
def test_a_source_in_doubt_asks_until_it_is_answered(handover: tuple[SplitSetup, WireTap],
                                                     owner: str) -> None:
    """The stream breaks and the deciding server is out of reach: when it is back, so is the VM, or
    the source learns that it runs elsewhere."""
    setup, tap = handover

    def vanish(_: object) -> bool:
        tap.refuse()    # before the source asks
        setup.vms[-1].process.kill()
        tap.cut()
        return False

    if owner == "source":
        tap.on_request[Op.CLAIM] = vanish
    else:
        tap.on_reply[Op.COMMIT] = vanish
    start_through(setup, tap)
    poll_until("the migration is in doubt",
               lambda: query_split(setup.source)["phase"] == "in-doubt", 60)
    assert not setup.source.qmp.execute("query-status")["running"]
    tap.mend()
    if owner == "source":
        setup.source.wait_status("running", 60)
        assert query_split(setup.source)["phase"] == "failed"
        setup.source.guest.wait_beats()
        setup.source.guest.verify()
        return
    setup.source.wait_status("postmigrate", 60)
    assert query_split(setup.source)["phase"] == "completed"
    with pytest.raises(QmpError, match="never run"):
        setup.source.qmp.execute("cont")


def test_a_late_destination_cannot_commit(handover: tuple[SplitSetup, WireTap]) -> None:
    """The stream breaks while the destination's first Claim is on its way: the source takes the VM
    back and runs it, and only then the Claim reaches the server."""
    setup, tap = handover
    resumed = Event()
    late: list[Tap] = []

    def hold(claim: Tap) -> bool:
        tap.on_request.pop(Op.CLAIM)
        late.append(claim)
        setup.source.qmp.execute("migrate_cancel")
        setup.source.wait_status("running", 60)
        resumed.set()
        return True

    tap.on_request[Op.CLAIM] = hold
    start_through(setup, tap)
    assert resumed.wait(60)
    poll_until("the Claim is answered", lambda: bool(late[0].refused), 60)
    op, status = late[0].refused[0]
    assert op == Op.CLAIM and status in (Status.FENCED, Status.GONE)
    setup.source.guest.wait_beats()
    setup.source.guest.verify()
    setup.check_retry_succeeds()
