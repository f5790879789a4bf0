#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Record which pages a guest touches, scan by scan, for the placement benchmark.

A real guest runs under TCG with an access tracker that records. Its workload has a hot set that is
visited at random and a cold rest that is walked slowly. Prints the scan at which to split: the
scans before are history, those after are judged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

# pylint: disable=wrong-import-position
from kintsugi.util import BUILD, Work, poll_until  # noqa: E402
from kintsugi.vm import Vm, VmConfig  # noqa: E402

PERIOD_MS = 500
HISTORY_SCANS = 40
JUDGED_SCANS = 40


def scans(vm: Vm) -> int:
    """Scans that the tracker has done."""
    trackers = vm.qmp.execute("query-access-tracker")
    return int(trackers[0]["scans"]) if trackers else 0


def main() -> int:
    """Run the guest and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, help="where to write the trace")
    parser.add_argument("--pattern-mib", type=int, default=512)
    options = parser.parse_args()
    work = Work(BUILD / "bench" / "trace-logs")
    config = VmConfig(accel="tcg", pattern_mib=options.pattern_mib, extra=(
        "-object", f"access-tracker,id=at0,period={PERIOD_MS},record={options.trace}")).with_guest(
            hot=25, coldevery=32, rate=20000)
    vm = Vm("recorder", config, work)
    try:
        vm.guest.wait_ready()
        split_at = scans(vm) + HISTORY_SCANS
        end = split_at + JUDGED_SCANS
        poll_until(f"{end} scans are recorded", lambda: scans(vm) >= end,
                   10 * (HISTORY_SCANS + JUDGED_SCANS) * PERIOD_MS / 1000)
    finally:
        vm.end()
        work.close()
    print(split_at)
    return 0


if __name__ == "__main__":
    sys.exit(main())
