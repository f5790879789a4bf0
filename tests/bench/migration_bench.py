#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare split migration with stock precopy and with stock multifd, on the same guest.

The fork migrates the guest to a main host that may hold part of its memory, and to memory servers
that hold the rest, with one main stream and with multifd for the main host's part; stock QEMU
(KINTSUGI_QEMU_STOCK: the Debian build of the same version, or the unpatched tree) migrates it to a
host with room for all of it. Rounds are interleaved, so that all kinds meet the same noise, and
medians are compared. Every guest is checked whole after its migration; a wrong byte ends the
benchmark.

Times are QEMU's own total-time. Downtime is from the source's STOP event to the destination's
RESUME event, by one clock, as all hosts are on one machine.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

# pylint: disable=wrong-import-position
from kintsugi import measure  # noqa: E402
from kintsugi.accel import probe_accelerator  # noqa: E402
from kintsugi.split import SplitSetup  # noqa: E402
from kintsugi.util import (BUILD, HarnessError, Work, qemu_binary,  # noqa: E402
                           stock_qemu_binary)
from kintsugi.vm import Snapshots, VmConfig  # noqa: E402

SINGLE_STREAM_GOAL = 1.0
MULTIFD_GOAL = 1.1
DOWNTIME_GOAL_MS = 10.0
AFTER_S = 600.0


@dataclass(frozen=True)
class Result:
    """One figure of build/bench/results.json. `ratio` is a difference where the goal says so."""

    name: str
    value: float
    unit: str
    compared_with: str
    ratio: float
    goal: str
    met: bool


@dataclass(frozen=True)
class Sample:
    """One migration."""

    total_ms: float
    downtime_ms: float


def version(binary: Path) -> str:
    """The version number that a QEMU says it has."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HarnessError(f"{binary} --version: {error}") from error
    match = re.search(r"version (\S+)", done.stdout)
    return match[1] if match else done.stdout


def check_same_version() -> None:
    """The rival must be the same release: others differ in speed, and lose guest memory under TCG
    (7.2 does)."""
    ours, stock = version(qemu_binary()), version(stock_qemu_binary())
    if ours != stock:
        raise HarnessError(f"{qemu_binary()} is version {ours} and {stock_qemu_binary()} is"
                           f" {stock}: set KINTSUGI_QEMU_STOCK to an unpatched {ours}"
                           " (make qemu-stock)")


def one(kind: str, config: VmConfig, snapshots: Snapshots, work: Work,
        options: argparse.Namespace, idle: bool) -> Sample:
    """Start a guest, migrate it, check it."""
    binary = qemu_binary() if measure.is_split(kind) else stock_qemu_binary()
    config = replace(config, binary=binary)
    setup = SplitSetup(work, snapshots, config, main_percent=options.main_percent,
                       servers=2 if measure.is_split(kind) else 0)
    try:
        setup.source.set_parameters(downtime_limit=options.downtime_limit)
        if idle:
            setup.source.guest.hold()
        destination, outcome = measure.migrate(kind, setup)
        measure.settle(destination, outcome, 0, AFTER_S)
        if outcome.guest_errors:
            raise HarnessError(f"after a {kind} migration the guest found {outcome.guest_errors}"
                               f" errors; logs: {work.logs}")
        return Sample(outcome.figures.total_ms, outcome.figures.stopped_ms)
    finally:
        setup.close()


def compare(samples: dict[str, list[Sample]], guest: str) -> list[Result]:
    """The figures and whether they reach their goals, from all rounds."""
    def median(kind: str, name: str) -> float:
        return statistics.median(getattr(sample, name) for sample in samples[kind])

    results = []
    channels = f"{measure.MULTIFD_CHANNELS} channels"
    for ours, rival, label, goal in (
            ("split", "precopy", "stock precopy, one stream", SINGLE_STREAM_GOAL),
            ("split-multifd", "multifd", f"stock multifd, {channels}", MULTIFD_GOAL)):
        how = f"{guest} guest" + (f", {channels}" if ours == "split-multifd" else "")
        total, rival_total = median(ours, "total_ms"), median(rival, "total_ms")
        ratio = total / rival_total
        results.append(Result(f"split migration total time, {how}", total, "ms",
                              f"{label}: {rival_total:.0f} ms", round(ratio, 3),
                              f"<= {goal} x", ratio <= goal))
        downtime, rival_downtime = median(ours, "downtime_ms"), median(rival, "downtime_ms")
        difference = downtime - rival_downtime
        results.append(Result(f"split migration downtime, {how}", round(downtime, 1), "ms",
                              f"{label}: {rival_downtime:.1f} ms", round(difference, 1),
                              f"<= +{DOWNTIME_GOAL_MS:.0f} ms", difference <= DOWNTIME_GOAL_MS))
    return results


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, metavar="N",
                        help="migrations of each kind (%(default)s)")
    parser.add_argument("--pattern-mib", type=int, default=1024, metavar="N",
                        help="MiB that the guest fills and checks (%(default)s)")
    parser.add_argument("--main-percent", type=int, default=40, metavar="P",
                        help="percent of the memory on the main host (%(default)s)")
    parser.add_argument("--guest", choices=("idle", "busy", "both"), default="both",
                        help="held during the migration, or rewriting its memory (%(default)s)")
    parser.add_argument("--hot", type=int, default=5, metavar="P",
                        help="percent of the pattern that a busy guest rewrites often"
                        " (%(default)s)")
    parser.add_argument("--rate", type=int, default=50000, metavar="N",
                        help="page visits a second of a busy guest (%(default)s)")
    parser.add_argument("--downtime-limit", type=int, default=10, metavar="MS",
                        help="QEMU's parameter: what it believes to fit in this is left for the"
                        " downtime, so it bounds the noise in it (%(default)s)")
    parser.add_argument("--kinds", default=",".join(measure.KINDS), metavar="LIST",
                        help="some of %(default)s; without split nothing is compared")
    parser.add_argument("--json", type=Path, default=BUILD / "bench" / "migration.json",
                        metavar="FILE", help="where results go (build/bench/migration.json)")
    options = parser.parse_args()
    options.kinds = options.kinds.split(",")
    if not set(options.kinds) <= set(measure.KINDS):
        parser.error(f"--kinds takes some of {','.join(measure.KINDS)}")
    if options.rounds < 1 or options.pattern_mib < 1:
        parser.error("sizes and counts must be at least 1")
    return options


def main() -> int:
    """Run the benchmark."""
    options = parse_arguments()
    results: list[Result] = []
    session = Work(BUILD / "bench" / "migration-logs")
    try:
        check_same_version()
        accelerator = probe_accelerator(session)
        print(f"guests run under {accelerator.reason}", flush=True)
        snapshots = Snapshots(session)
        config = VmConfig(accel=accelerator.name, pattern_mib=options.pattern_mib).with_guest(
            hot=options.hot, rate=options.rate)
        for guest in ("idle", "busy"):
            if options.guest not in (guest, "both"):
                continue
            samples: dict[str, list[Sample]] = {kind: [] for kind in options.kinds}
            for number in range(options.rounds):
                # Another first one each time: it is the one that finds memory cold.
                turn = number % len(options.kinds)
                for kind in options.kinds[turn:] + options.kinds[:turn]:
                    work = Work(session.logs / f"{guest}-{number}-{kind}")
                    try:
                        sample = one(kind, config, snapshots, work, options, guest == "idle")
                    finally:
                        work.close()
                    samples[kind].append(sample)
                    print(f"{guest} guest, round {number + 1}, {kind:13}"
                          f" {sample.total_ms:8.0f} ms total {sample.downtime_ms:8.1f} ms downtime",
                          flush=True)
            if set(options.kinds) == set(measure.KINDS):
                results += compare(samples, guest)
    except HarnessError as error:
        print(f"migration_bench: {error}", file=sys.stderr)
        return 1
    finally:
        session.close()
    if not results:
        return 0
    for result in results:
        print(f"{result.name}: {result.value:g} {result.unit}; {result.compared_with};"
              f" {result.ratio:g}, goal {result.goal}: {'met' if result.met else 'MISSED'}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=options.json.parent, delete=False) as file:
        json.dump([asdict(result) for result in results], file, indent=2)
    Path(file.name).chmod(0o644)
    Path(file.name).rename(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
