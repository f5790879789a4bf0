# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad luck after completion: servers that go away and come back, and a source that is stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kintsugi.lost import LOST_S, check_goes_on, wait_back, wait_lost
from kintsugi.qmp import QmpError
from kintsugi.split import PAGE_OUT_METHODS, SplitSetup, query_remote
from kintsugi.util import PAGE_BYTES, DeadlineError, poll_until
from kintsugi.vm import Vm
from kintsugi.wire import Client, Frame, Op, Status
from kintsugi.wiretap import WireTap

pytestmark = pytest.mark.split
MakeSetup = Callable[..., SplitSetup]
STAYS_S = 3.0   # how long something must not happen


@pytest.fixture
def kept(make_setup: MakeSetup) -> SplitSetup:
    """Servers that keep their pages in an arena file."""
    return make_setup(arena=True)


@pytest.mark.parametrize("page_out", PAGE_OUT_METHODS)
def test_server_killed_and_restarted_with_its_arena(kept: SplitSetup, page_out: str) -> None:
    destination, _ = kept.split(page_out=page_out)
    destination.guest.wait_beats()
    kept.servers[1].kill()
    wait_lost(destination, kept.servers[1].uri)
    kept.servers[1].start()
    wait_back(destination, kept.servers[1].uri)
    check_goes_on(destination)
    server = query_remote(destination)["servers"][1]
    assert server["reconnects"] >= 1


def test_server_hangs_and_goes_on(setup: SplitSetup) -> None:
    destination, _ = setup.split()
    destination.guest.wait_beats()
    setup.servers[0].freeze()
    wait_lost(destination, setup.servers[0].uri)
    setup.servers[0].thaw()
    wait_back(destination, setup.servers[0].uri)
    check_goes_on(destination)


def test_short_hang_stops_nothing(setup: SplitSetup) -> None:
    """A server that pauses for a moment costs that moment."""
    destination, _ = setup.split()
    destination.guest.wait_beats()
    setup.servers[0].freeze()
    with pytest.raises(DeadlineError):
        destination.qmp.wait_event("REMOTE_MEMORY_SERVER_LOST", 1.0)
    setup.servers[0].thaw()
    check_goes_on(destination)


def test_all_servers_lost(kept: SplitSetup) -> None:
    """The VM goes on only when the last of them is back."""
    destination, _ = kept.split()
    destination.guest.wait_beats()
    for server in kept.servers:
        server.kill()
    for server in kept.servers:
        wait_lost(destination, server.uri)
    kept.servers[0].start()
    wait_back(destination, kept.servers[0].uri)
    assert not destination.qmp.execute("query-status")["running"]
    assert query_remote(destination)["stopped"]
    kept.servers[1].start()
    wait_back(destination, kept.servers[1].uri)
    check_goes_on(destination)


def test_server_back_without_its_pages(setup: SplitSetup) -> None:
    """A server that has lost the pages is never taken for one that is back: the VM stays stopped,
    and whoever manages it is told once."""
    destination, _ = setup.split()
    destination.guest.wait_beats()
    setup.servers[1].kill()
    wait_lost(destination, setup.servers[1].uri)
    setup.servers[1].start()
    event = destination.qmp.wait_event("REMOTE_MEMORY_PAGES_LOST", 20)
    assert event["data"]["uri"] == setup.servers[1].uri
    assert "another memory server" in event["data"]["error-desc"]
    with pytest.raises(DeadlineError):
        destination.qmp.wait_event("REMOTE_MEMORY_SERVER_BACK", STAYS_S)
    status = destination.qmp.execute("query-status")
    assert (status["status"], status["running"]) == ("io-error", False)
    lost = [server for server in query_remote(destination)["servers"] if server["pages-lost"]]
    assert [server["uri"] for server in lost] == [setup.servers[1].uri]
    # What a management tool does by itself is harmless.
    with pytest.raises(QmpError, match="lost pages of this VM"):
        destination.qmp.execute("cont")
    assert destination.status() == "io-error"


def test_stopped_vm_can_be_quit(setup: SplitSetup) -> None:
    """Threads that wait for a lost server do not keep QEMU from ending."""
    destination, _ = setup.split()
    destination.guest.wait_beats()
    for server in setup.servers:
        server.kill()
    wait_lost(destination, setup.servers[0].uri)
    destination.qmp2.execute("quit")
    assert destination.process.wait(20) == 0


def test_server_restarted_again_and_again(kept: SplitSetup) -> None:
    destination, _ = kept.split()
    for _ in range(3):
        destination.guest.wait_beats()
        kept.servers[0].kill()
        wait_lost(destination, kept.servers[0].uri)
        kept.servers[0].start()
        wait_back(destination, kept.servers[0].uri)
    check_goes_on(destination)


def test_orderly_server_restart(kept: SplitSetup) -> None:
    """SIGTERM instead of SIGKILL: an upgrade of the server."""
    destination, _ = kept.split()
    destination.guest.wait_beats()
    kept.servers[1].end()
    wait_lost(destination, kept.servers[1].uri)
    kept.servers[1].start()
    wait_back(destination, kept.servers[1].uri)
    check_goes_on(destination)


# ---- Through a proxy -----------------------------------------------------------------------------

@pytest.fixture
def tapped(make_setup: MakeSetup) -> Iterator[tuple[SplitSetup, WireTap]]:
    """A setup whose first server, which decides on ownership, is reached through a WireTap.

    A WireTap passes some hundred pages in the time of thousands, so few are on the servers.
    """
    setup = make_setup(main_percent=60)
    tap = WireTap(setup.servers[0].uri)
    yield setup, tap
    for vm in reversed(setup.vms):
        vm.end()
    tap.close()


def split_through(setup: SplitSetup, tap: WireTap) -> Vm:
    """A split migration with the tap's address as that of the first server.

    The guest is held until it has moved: a tap may be slower than a guest writes, and then no
    migration ends.
    """
    hosts = setup.sub_hosts([tap.uri, setup.servers[1].uri])
    setup.source.guest.hold()
    destination, _ = setup.split(sub_hosts=hosts)
    destination.guest.go()
    destination.guest.wait_beats()
    return destination


def test_network_cut(tapped: tuple[SplitSetup, WireTap]) -> None:
    setup, tap = tapped
    destination = split_through(setup, tap)
    tap.cut()
    wait_lost(destination, tap.uri)
    tap.mend()
    wait_back(destination, tap.uri)
    check_goes_on(destination)


def test_network_swallows_packets(tapped: tuple[SplitSetup, WireTap]) -> None:
    """Requests that were sent and never answered are repeated after the reconnection."""
    setup, tap = tapped
    destination = split_through(setup, tap)
    tap.block()
    wait_lost(destination, tap.uri)
    tap.cut()
    tap.unblock()
    tap.mend()
    wait_back(destination, tap.uri)
    check_goes_on(destination)


def test_stale_source_is_fenced(tapped: tuple[SplitSetup, WireTap]) -> None:
    """After the handover nothing that the source still sends reaches the pages."""
    setup, tap = tapped
    destination = split_through(setup, tap)
    source_taps = tap.bound(Op.OPEN) + [
        attached for attached in tap.bound(Op.ATTACH)
        if attached.epoch == tap.bound(Op.OPEN)[0].epoch]
    assert tap.bound(Op.CLAIM), "the destination claimed no session through the tap"
    assert tap.bound(Op.CLAIM)[0].epoch > source_taps[0].epoch
    page = next(page for attached in source_taps for page, _ in attached.put_pages)
    setup.source.end()

    # On a connection that the source itself had bound: closed by the server, or fenced.
    poison = b"\xee" * PAGE_BYTES
    answers = []
    for attached in source_taps:
        try:
            answers.append(tap.stale_call(attached, Frame(
                Op.PUT, epoch=attached.epoch, page=page, count=1, version=1 << 60,
                payload=poison)).status)
        except (OSError, EOFError):
            answers.append(int(Status.FENCED))
    assert set(answers) == {int(Status.FENCED)}

    # On a new connection in the old epoch, and with the destination's epoch guessed.
    session, old = source_taps[0].session, source_taps[0].epoch
    with Client(setup.servers[0].uri) as client:
        client.hello()
        assert client.attach(session, old).status == Status.FENCED
    with Client(setup.servers[0].uri) as client:
        client.hello()
        assert client.claim(session, old).status == Status.FENCED
        assert client.claim(session, old + 1).status == Status.FENCED
        assert client.reclaim(session, old).status == Status.COMMITTED
    check_goes_on(destination)
