#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""P4's experiment inside an emulated host: a VM of two tiers whose guest rewrites a few MiB.

scripts/demo-tiering runs this there. RAM is as P4 lays it out: a memory-backend-container with
slow memory first and a little fast memory at the end, both physical ranges of /dev/tiermem. The
guest reads, checks and rewrites its pattern page after page, without end, as `stress` does with its
memory. Pages are first left alone (limit=0), then swapped.

Prints JSON, one object a line, as it happens: "phase" (each begins there), "tick" (what
query-memory-tiering and the guest say, every second), "swapped" (after each decision that swapped),
"result" (the guest's own check of every byte), or "failed".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

# pylint: disable=wrong-import-position
from kintsugi.qmp import Json  # noqa: E402
from kintsugi.util import HarnessError, Work  # noqa: E402
from kintsugi.vm import Vm, VmConfig  # noqa: E402

BOOT_S = 600.0
SWEEP_S = 300.0
TICK_S = 1.0
# Swapping has come to rest when so many decisions one after the other swapped next to nothing.
QUIET_DECISIONS, QUIET_SHARE = 3, 0.02


def emit(kind: str, **values: object) -> None:
    """A line for whoever started us."""
    print(json.dumps({"kind": kind, **values}), flush=True)


def config(args: argparse.Namespace) -> VmConfig:
    """The VM; its objects are those of P4's command line."""
    slow = args.memory_mib - args.fast_mib
    piece = "memory-backend-devmem,parent=ram0,path=/dev/tiermem"
    words = []
    for value in (
            f"memory-backend-container,id=ram0,size={args.memory_mib}M",
            f"{piece},id=slow0,phy-offset={args.slow_at:#x},offset=0,size={slow}M",
            f"{piece},id=fast0,phy-offset={args.fast_at:#x},offset={slow}M,size={args.fast_mib}M",
            "access-tracker,id=at0,period=1000",
            "memory-tiering,id=tier0,memdev=ram0,fast=fast0,limit=0,"
            f"policy={args.policy},interval={args.interval_ms}"):
        words += ["-object", value]
    words += ["-numa", "node,nodeid=0,memdev=ram0"]
    vm = VmConfig(accel="kvm", pattern_mib=args.stress_mib, memory_mib=args.memory_mib,
                  extra=tuple(words))
    return vm.with_guest(hold=1, hot=0, coldwrite=100, zero=0, zeroflip=0, beat_ms=1000)


class Experiment:
    """The VM and what happens to it."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self._events_seen = 0

    def tiering(self) -> Json:
        """What query-memory-tiering says."""
        found: Json = self.vm.qmp.execute("query-memory-tiering")[0]
        return found

    def limit(self, pairs: int) -> None:
        """Most pairs a decision, from the next one on."""
        self.vm.qmp.execute("qom-set", {"path": "/objects/tier0", "property": "limit",
                                        "value": pairs})

    def tick(self) -> Json:
        """Tell what happened since the last one."""
        info = self.tiering()
        events = self.vm.qmp.poll_events()
        for event in events[self._events_seen:]:
            if event["event"] == "MEMORY_TIERING_STOPPED":
                raise HarnessError(f"swapping has stopped: {event['data']['reason']}")
            if event["event"] == "MEMORY_TIERING_SWAPPED":
                data = event["data"]
                emit("swapped", pairs=data["swapped"], refused=data["refused"],
                     microseconds=data["time"])
        self._events_seen = len(events)
        beat = self.vm.console.last("beat")
        emit("tick", swapped=info["swapped"], decisions=info["decisions"],
             refused=sum(entry["pairs"] for entry in info["refused"]),
             rewritten_pages=beat["written"] if beat else 0)
        self.vm.guest.check_errors()
        return info

    def watch(self, phase: str, seconds: float, done: Callable[[Json], bool]) -> bool:
        """A phase: tick until `done`; False if that took longer than `seconds`."""
        emit("phase", name=phase)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            if done(self.tick()):
                return True
            time.sleep(TICK_S)
        return False


class Rest:
    """Whether swapping has come to rest."""

    def __init__(self, info: Json, limit: int) -> None:
        self._quiet_pairs = limit * QUIET_SHARE
        self._decisions, self._swapped = info["decisions"], info["swapped"]
        self._quiet = 0

    def __call__(self, info: Json) -> bool:
        new = info["decisions"] - self._decisions
        if new:
            swapped = info["swapped"] - self._swapped
            self._quiet = self._quiet + new if swapped <= self._quiet_pairs * new else 0
            self._decisions, self._swapped = info["decisions"], info["swapped"]
        return self._quiet >= QUIET_DECISIONS and info["swapped"] > 0


def run(args: argparse.Namespace, work: Work) -> None:
    """All phases."""
    def never(_: Json) -> bool:
        return False

    emit("phase", name="boot")
    vm = Vm("stress", config(args), work)
    try:
        experiment = Experiment(vm)
        vm.guest.wait_ready(BOOT_S)
        experiment.watch("idle", args.idle_s, never)
        vm.guest.go()
        experiment.watch("before", args.before_s, never)
        experiment.limit(args.limit)
        rested = experiment.watch("after", args.interval_ms / 1000 * args.decisions,
                                  Rest(experiment.tiering(), args.limit))
        experiment.watch("steady", args.steady_s, never)
        emit("phase", name="check")
        experiment.limit(0)
        vm.guest.hold()
        experiment.tick()
        sweep = vm.guest.sweep(SWEEP_S)
        info = experiment.tick()
        emit("result", rested=rested, pages=sweep.pages, errors=sweep.total_errors,
             swapper=info["swapper"], source=info["source"], swapped=info["swapped"],
             refused=info["refused"])
    finally:
        vm.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    for name in ("memory-mib", "fast-mib", "stress-mib", "interval-ms", "limit", "decisions"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("fast-at", "slow-at"):
        parser.add_argument(f"--{name}", type=lambda text: int(text, 0), required=True)
    for name in ("idle-s", "before-s", "steady-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--logs", type=Path, required=True)
    args = parser.parse_args()
    work = Work(args.logs)
    try:
        run(args, work)
    except HarnessError as error:
        emit("failed", reason=str(error))
        return 1
    finally:
        work.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
