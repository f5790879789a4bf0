# SPDX-License-Identifier: GPL-2.0-or-later
"""The access tracker's sources: each sees what it says, and nothing that did not happen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kintsugi.migrate import Phase, complete, hold_in, query, speed_up, wait_phase
from kintsugi.qmp import Json, QmpError
from kintsugi.split import SplitSetup
from kintsugi.util import PAGE_BYTES, HarnessError, poll_until
from kintsugi.vm import Vm, VmConfig

pytestmark = pytest.mark.split
StartVm = Callable[..., Vm]
PERIOD_MS = 100
IDLE_BITMAP = Path("/sys/kernel/mm/page_idle/bitmap")
# Whether a source sees reads.
SOURCES = {"tcg": True, "kvm": True, "idle": True, "wp-async": False, "dirty-log": False}
NO_WRITES = ("idle",)  # it cannot tell them from reads


def why_not(source: str, config: VmConfig) -> str | None:
    """Why this machine cannot have a source, as far as it can be told without QEMU."""
    if source in ("tcg", "kvm") and config.accel != source:
        return f"guests run under {config.accel} here"
    if source == "idle" and not IDLE_BITMAP.exists():
        return "this kernel has no idle page tracking"
    return None


def tracker(vm: Vm) -> Json:
    """What query-access-tracker says of the only one."""
    found: Json = vm.qmp.execute("query-access-tracker")[0]
    return found


def next_scan(vm: Vm) -> int:
    """Wait for two scans more, so that one has begun and ended after now; their number."""
    wanted = tracker(vm)["scans"] + 2
    poll_until("the access tracker scans", lambda: tracker(vm)["scans"] >= wanted, 60)
    return int(tracker(vm)["scans"])


def pages_seen(record: Path, first_scan: int, last_scan: int, kinds: str = "rw") -> int:
    """Different pages that the scans after `first_scan`, up to `last_scan`, found.

    Of a trace that tells kinds of accesses apart, those of `kinds`.
    """
    pages: set[int] = set()
    scan = 0
    for line in record.read_text(encoding="ascii").splitlines():
        words = line.split()
        if words == ["scan"]:
            scan += 1
        elif scan and first_scan < scan <= last_scan:
            kind = words.pop(0) if words[0] in ("r", "w") else kinds
            if kind in kinds:
                pages.update(range(int(words[0]), int(words[0]) + int(words[1])))
    return len(pages)


def start(vms: StartVm, config: VmConfig, extra: str) -> Vm:
    """A guest with a tracker."""
    return vms("tracked", replace(config, extra=(
        "-object", f"access-tracker,id=at0,period={PERIOD_MS},{extra}")))


@pytest.mark.parametrize("source", SOURCES)
def test_what_a_source_sees(vms: StartVm, config: VmConfig, tmp_path: Path, source: str) -> None:
    if reason := why_not(source, config):
        pytest.skip(reason)
    record = tmp_path / "accesses"
    vm = start(vms, config, f"source={source},record={record}")
    pattern = config.pattern_mib * (1 << 20) // PAGE_BYTES
    poll_until("the source is used", lambda: tracker(vm).get("source") == source, 30)

    vm.guest.wait_passes(1)
    begin = next_scan(vm)
    vm.guest.wait_passes(2)
    end = next_scan(vm)
    # The guest reads all and rewrites at least its hot runs.
    busy = pages_seen(record, begin, end)
    assert busy >= (0.95 if SOURCES[source] else 0.1) * pattern
    first_line = record.read_text(encoding="ascii").splitlines()[0]
    assert first_line == f"kintsugi-access-trace {1 if source in NO_WRITES else 2}"
    if source not in NO_WRITES:
        # It rewrites one visit in ten of the cold pages, and half of those of the hot ones.
        assert 0.1 * pattern <= pages_seen(record, begin, end, "w") <= 0.75 * pattern

    vm.guest.hold()
    begin = next_scan(vm)
    end = next_scan(vm)
    held = pages_seen(record, begin, end)
    assert held <= 0.1 * pattern

    begin = next_scan(vm)
    vm.guest.sweep()
    end = next_scan(vm)
    read = pages_seen(record, begin, end)
    if SOURCES[source]:
        assert read >= 0.95 * pattern
    else:
        assert read <= 0.1 * pattern
    if source not in NO_WRITES:
        assert pages_seen(record, begin, end, "w") <= 0.1 * pattern


@pytest.mark.parametrize("source", SOURCES)
def test_scans_lose_no_write_to_a_migration(make_setup: Callable[..., SplitSetup],
                                            config: VmConfig, source: str) -> None:
    """Scans clear bits from which a migration learns what to send again, or that lie beside."""
    if reason := why_not(source, config):
        pytest.skip(reason)
    setup = make_setup(replace(config, extra=(
        "-object", f"access-tracker,id=at0,period=20,source={source}")))
    poll_until("the source is used", lambda: tracker(setup.source).get("source") == source, 30)
    destination = setup.start_destination()
    hold_in(setup.source, Phase.FIRST_PASS)
    setup.source.set_parameters(max_bandwidth=2 << 20)  # far longer than the scans take
    setup.start_split(destination.listen())
    wait_phase(setup.source, Phase.FIRST_PASS)
    before = tracker(setup.source)["scans"]
    poll_until("5 scans while the guest is migrated",
               lambda: tracker(setup.source)["scans"] >= before + 5, 60)
    assert query(setup.source)["status"] == "active"
    speed_up(setup.source)
    complete(setup.source, destination)
    destination.guest.wait_passes(1)
    destination.guest.verify()


def test_the_best_source_is_chosen(vms: StartVm, config: VmConfig) -> None:
    vm = start(vms, config, "policy=clock")
    poll_until("a source is used", lambda: "source" in tracker(vm), 30)
    info = tracker(vm)
    # A KVM without the series has to do with another, and must say why.
    better = list(SOURCES)[:list(SOURCES).index(info["source"])]
    assert [refusal["source"] for refusal in info["refused"]] == better
    assert all(refusal["reason"] for refusal in info["refused"])
    if config.accel == "tcg":
        assert info["source"] == "tcg"
    elif "KINTSUGI_HOST" in os.environ:  # an emulated host, whose kernel has the series
        assert info["source"] == "kvm"
    assert info["sees"] and info["misses"]
    text = vm.qmp.execute("human-monitor-command", {"command-line": "info access_tracker"})
    assert f"source {info['source']}" in text and "sees" in text


def test_a_source_that_is_not_there(vms: StartVm, config: VmConfig) -> None:
    missing = "kvm" if config.accel == "tcg" else "tcg"
    with pytest.raises(HarnessError, match=f"source={missing}: the VM does not run under"):
        start(vms, config, f"source={missing}")


def test_trackers_come_and_go(vms: StartVm, config: VmConfig) -> None:
    """Each source is begun and ended in a running VM, twice."""
    vm = vms("tracked", config)
    for _ in range(2):
        for source in SOURCES:
            if why_not(source, config):
                continue
            vm.qmp.execute("object-add", {"qom-type": "access-tracker", "id": "at1",
                                          "period": PERIOD_MS, "source": source})
            next_scan(vm)
            assert tracker(vm)["source"] == source
            with pytest.raises(QmpError, match="already"):
                vm.qmp.execute("object-add", {"qom-type": "access-tracker", "id": "at2"})
            vm.qmp.execute("object-del", {"id": "at1"})
    vm.guest.verify()
