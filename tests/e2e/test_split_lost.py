# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator or a management tool does while a memory server is lost or hangs."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kintsugi.lost import LOST_S, check_goes_on, wait_back, wait_lost
from kintsugi.migrate import query, speed_up
from kintsugi.qmp import Json, QmpError
from kintsugi.split import SplitSetup, query_remote
from kintsugi.util import poll_until
from kintsugi.vm import Vm

pytestmark = pytest.mark.split
MakeSetup = Callable[..., SplitSetup]
TRACED = ("-trace", "vm_state_notify")
SLEEP = "o/w 0x604 0x2400"   # what the guest's ACPI driver writes


@pytest.fixture
def kept(make_setup: MakeSetup) -> SplitSetup:
    """Servers that keep their pages in an arena file."""
    return make_setup(arena=True)


def notified(vm: Vm) -> list[bool]:
    """What devices were told since the VM came: that it runs, or no longer runs."""
    log = (vm.work.logs / f"{vm.name}.log").read_text()
    return [state == "1" for state in re.findall(r"vm_state_notify running (\d)", log)]


def lose_server(setup: SplitSetup, extra: tuple[str, ...] = ()) -> Vm:
    """A split VM whose second server has just been killed."""
    destination, _ = setup.split(extra=TRACED + extra)
    destination.guest.wait_beats()
    assert notified(destination) == [True]
    setup.servers[1].kill()
    wait_lost(destination, setup.servers[1].uri)
    return destination


def bring_back(setup: SplitSetup, destination: Vm) -> None:
    """The server comes back with its pages."""
    setup.servers[1].start()
    wait_back(destination, setup.servers[1].uri)


# ---- stop and cont -------------------------------------------------------------------------------

def test_devices_do_not_hear_of_a_loss(kept: SplitSetup) -> None:
    """A VM that goes on by itself: nothing that waits for vCPUs is done meanwhile."""
    destination = lose_server(kept)
    bring_back(kept, destination)
    check_goes_on(destination)
    assert notified(destination) == [True]


def test_stop_while_a_server_is_lost(kept: SplitSetup) -> None:
    """The VM stays stopped, and devices are told once it is: only so is `cont` right, which sets
    the guest's clock to what it was then."""
    destination = lose_server(kept)
    destination.qmp.execute("stop")
    with pytest.raises(QmpError, match="in the middle of what it does"):
        destination.qmp.execute("migrate", {"uri": "unix:/nobody"})
    bring_back(kept, destination)
    poll_until("devices are told", lambda: notified(destination) == [True, False], 20)
    assert destination.status() == "io-error"
    assert not query_remote(destination)["stopped"]
    destination.qmp.execute("cont")
    check_goes_on(destination)
    assert notified(destination) == [True, False, True]


def test_cont_while_a_server_is_lost(kept: SplitSetup) -> None:
    """What management tools do on an I/O error: it takes effect when the server is back."""
    destination = lose_server(kept)
    destination.qmp.execute("cont")
    assert destination.status() == "io-error"
    destination.qmp.execute("stop")
    destination.qmp.execute("cont")
    assert destination.status() == "io-error"
    assert query_remote(destination)["stopped"]
    bring_back(kept, destination)
    check_goes_on(destination)
    assert notified(destination) == [True]


def test_cont_of_a_vm_that_was_stopped_before(kept: SplitSetup) -> None:
    """Stopped by the operator, then a server is lost: `cont` waits for it too."""
    destination, _ = kept.split(extra=TRACED)
    destination.guest.wait_beats()
    destination.qmp.execute("stop")
    kept.servers[1].kill()
    destination.qmp.wait_event("REMOTE_MEMORY_SERVER_LOST", LOST_S)
    with pytest.raises(QmpError, match="memory server is lost"):
        destination.qmp.execute("migrate", {"uri": "unix:/nobody"})
    destination.qmp.execute("cont")
    assert destination.status() == "paused"
    assert query_remote(destination)["stopped"]
    bring_back(kept, destination)
    check_goes_on(destination)
    assert notified(destination) == [True, False, True]


def test_reset_while_a_server_is_lost(kept: SplitSetup) -> None:
    """A reset waits for the vCPUs, and these for the server; then the VM boots anew and runs."""
    destination = lose_server(kept, extra=("-action", "reboot=reset"))
    destination.qmp.send("system_reset")  # may wait
    kept.servers[1].start()
    destination.qmp.finish()
    wait_back(destination, kept.servers[1].uri)
    destination.qmp.wait_event("RESET")
    destination.wait_status("running")
    assert notified(destination) == [True, False, True]
    destination.guest.wait_ready()


def test_asleep_while_a_server_is_lost(kept: SplitSetup) -> None:
    """Asked to sleep when it is stopped halfway, a VM does so once it goes on; one in S3 is not
    woken without its memory."""
    destination = lose_server(kept)
    destination.hmp(SLEEP)
    assert destination.status() == "io-error"
    bring_back(kept, destination)
    destination.wait_status("suspended")

    kept.servers[1].kill()
    destination.qmp.wait_event("REMOTE_MEMORY_SERVER_LOST", LOST_S)
    with pytest.raises(QmpError, match="memory server is lost"):
        destination.qmp.execute("system_wakeup")
    assert destination.status() == "suspended"
    bring_back(kept, destination)
    destination.qmp.execute("system_wakeup")
    destination.qmp.wait_event("WAKEUP")


def test_cancelled_switchover_while_a_server_is_lost(kept: SplitSetup) -> None:
    """The VM is not left in a state in which `stop` and `cont` do nothing."""
    destination, _ = kept.split()
    destination.guest.wait_beats()
    other = kept.start_destination()
    destination.set_capabilities(pause_before_switchover=True)
    speed_up(destination)
    destination.qmp.execute("migrate", {"uri": other.listen()})
    poll_until("it is stopped for the switch-over",
               lambda: query(destination)["status"] == "pre-switchover", 60)
    kept.servers[1].kill()
    destination.qmp.wait_event("REMOTE_MEMORY_SERVER_LOST", LOST_S)
    destination.qmp.execute("migrate_cancel")
    destination.wait_status("paused")
    destination.qmp.execute("stop")
    bring_back(kept, destination)
    assert destination.status() == "paused"
    destination.qmp.execute("cont")
    check_goes_on(destination)


# ---- The main loop waits for a page --------------------------------------------------------------

def main_wait(info: Json, uri: str) -> Json | None:
    """What the main loop waits for from a server."""
    return next((wait for wait in info["waits"]
                 if wait["thread"] == "main" and wait.get("uri") == uri), None)


def wait_in_main_loop(setup: SplitSetup) -> tuple[Vm, Json]:
    """The main loop of a split VM waits for a page of a server that hangs: pmemsave is under way.
    Returns what is told out of band."""
    destination, _ = setup.split()
    destination.guest.wait_beats()
    setup.servers[0].freeze()
    destination.qmp.send("pmemsave", {"val": 0, "size": setup.config.ram_bytes,
                                      "filename": "/dev/null"})

    def waits() -> Json | None:
        info = destination.qmp2.execute_oob("query-remote-memory")
        return info if main_wait(info, setup.servers[0].uri) else None

    return destination, poll_until("the main loop waits", waits, 30)


def test_queries_are_answered_while_the_main_loop_waits(setup: SplitSetup) -> None:
    destination, info = wait_in_main_loop(setup)
    wait = main_wait(info, setup.servers[0].uri)
    assert wait
    assert wait["block"] == "pc.ram" and wait["offset"] % 4096 == 0
    assert wait["thread-id"] == destination.process.pid
    assert info["waiting"] >= 1

    def lost() -> bool:
        info = destination.qmp2.execute_oob("query-remote-memory")
        return not info["servers"][0]["connected"]

    poll_until("the server is lost", lost, LOST_S)
    later = main_wait(destination.qmp2.execute_oob("query-remote-memory"), setup.servers[0].uri)
    assert later and later["duration"] > wait["duration"]
    assert destination.qmp2.execute_oob("query-status")["status"] == "running"
    setup.servers[0].thaw()
    destination.qmp.finish(60)
    wait_back(destination, setup.servers[0].uri)
    check_goes_on(destination)
    info = query_remote(destination)
    assert info["page-in-max"] >= later["duration"]


def test_quit_while_the_main_loop_waits(setup: SplitSetup) -> None:
    destination, _ = wait_in_main_loop(setup)
    destination.qmp2.execute_oob("quit")
    assert destination.process.wait(LOST_S) == 0
    assert "as by a power cut" in Path(destination.work.logs / "destination.log").read_text()


def test_terminated_while_the_main_loop_waits(setup: SplitSetup) -> None:
    destination, _ = wait_in_main_loop(setup)
    destination.process.signal(signal.SIGTERM)
    assert destination.process.wait(LOST_S) == 0
