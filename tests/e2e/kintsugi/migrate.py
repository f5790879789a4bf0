# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive a migration between two VMs and measure it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from .qmp import Json, QmpError, QmpGone
from .util import DeadlineError, HarnessError, poll_until
from .vm import Vm

UNLIMITED_BANDWIDTH = 1 << 40
ENDED = ("completed", "failed", "cancelled")


class MigrationFailed(HarnessError):
    """A migration that should complete did not."""


class Phase(enum.Enum):
    """Where in a migration something is made to happen."""

    CONNECTING = "connecting"   # split only: see split.wait_connecting()
    FIRST_PASS = "first-pass"
    ITERATION = "iteration"
    BEFORE_COMPLETION = "before-completion"


@dataclass(frozen=True)
class Figures:
    """What a completed migration took."""

    total_ms: int
    setup_ms: int
    downtime_ms: int           # as the source reports it
    stopped_ms: float          # from the source's STOP event to the destination's RESUME event
    transferred_bytes: int
    passes: int


def query(vm: Vm) -> Json:
    """query-migrate."""
    result: Json = vm.qmp.execute("query-migrate")
    return result


def failure_text(vm: Vm) -> str:
    """Everything the source says about why a migration failed."""
    texts = []
    for command in ("query-migrate", "query-migrate-split"):
        try:
            texts.append(str(vm.qmp.execute(command).get("error-desc", "")))
        except QmpError:
            pass  # a stock QEMU
    return "; ".join(dict.fromkeys(text for text in texts if text))


def wait_end(source: Vm, seconds: float = 60.0,
             progress: Callable[[Json], None] | None = None) -> Json:
    """Wait until the migration has ended, however, and return query-migrate's answer."""
    def ended() -> Json | None:
        info = query(source)
        if progress:
            progress(info)
        return info if info.get("status") in ENDED else None
    try:
        return poll_until("the migration ended", ended, seconds)
    except DeadlineError as error:
        raise DeadlineError(f"{error}; it is {query(source).get('status')}") from None


def prepare(*vms: Vm) -> None:
    """The settings that every migration here uses: events, and no limit of bandwidth."""
    for vm in vms:
        vm.set_capabilities(events=True)
        vm.set_parameters(max_bandwidth=UNLIMITED_BANDWIDTH)


def use_multifd(channels: int, *vms: Vm) -> None:
    """Send over several channels."""
    for vm in vms:
        vm.set_capabilities(multifd=True)
        vm.set_parameters(multifd_channels=channels)


def start_stock(source: Vm, uri: str) -> None:
    """Start a plain migration."""
    source.qmp.execute("migrate", {"uri": uri})


def complete(source: Vm, destination: Vm, seconds: float = 60.0,
             progress: Callable[[Json], None] | None = None) -> Figures:
    """Wait for success, check that the guest runs over there, and return what it took."""
    info = wait_end(source, seconds, progress)
    if info["status"] != "completed":
        raise MigrationFailed(f"the migration {info['status']}: {failure_text(source)};"
                              f" {destination.process.describe()}")
    destination.wait_status("running")
    stop_s = source.qmp.event_time_s("STOP")
    resume_s = destination.qmp.event_time_s("RESUME")
    if stop_s is None or resume_s is None:
        raise HarnessError("no STOP event at the source or no RESUME event at the destination")
    return Figures(info["total-time"], info.get("setup-time", 0), info.get("downtime", 0),
                   (resume_s - stop_s) * 1000, info["ram"]["transferred"],
                   info["ram"].get("dirty-sync-count", 0))


def hold_in(source: Vm, phase: Phase) -> None:
    """Set up the source so that its next migration stays in `phase` long enough to be hurt."""
    if phase is Phase.FIRST_PASS:
        source.set_parameters(max_bandwidth=24 << 20)
    elif phase is Phase.ITERATION:
        # The first pass is over soon, and the guest's hot set never fits the allowed downtime.
        source.set_parameters(max_bandwidth=128 << 20, downtime_limit=1)
    elif phase is Phase.BEFORE_COMPLETION:
        source.set_capabilities(pause_before_switchover=True)


def unhold(source: Vm) -> None:
    """Undo hold_in(), when nothing is being migrated."""
    speed_up(source)
    source.set_capabilities(pause_before_switchover=False)


def speed_up(source: Vm) -> None:
    """Let a migration that is held in its first pass or its iterations go on."""
    source.set_parameters(max_bandwidth=UNLIMITED_BANDWIDTH, downtime_limit=300)


def wait_phase(source: Vm, phase: Phase, seconds: float = 30.0) -> None:
    """Wait until the migration is in `phase`."""
    def reached() -> bool:
        info = query(source)
        status = info.get("status")
        if status in ENDED:
            raise HarnessError(f"the migration {status} before {phase.value}:"
                               f" {failure_text(source)}")
        ram = info.get("ram", {})
        if phase is Phase.BEFORE_COMPLETION:
            return status == "pre-switchover"
        if status != "active":
            return False
        if phase is Phase.FIRST_PASS:
            return ram.get("dirty-sync-count", 0) <= 1 and ram.get("remaining", 0) < ram["total"]
        return ram.get("dirty-sync-count", 0) >= 3
    poll_until(f"the migration is in {phase.value}", reached, seconds)


def go_on(source: Vm) -> None:
    """Let a migration that waits before completion complete, if it still waits."""
    try:
        source.qmp.execute("migrate-continue", {"state": "pre-switchover"})
    except (QmpError, QmpGone):
        pass  # it has noticed already
