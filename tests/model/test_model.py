# SPDX-License-Identifier: GPL-2.0-or-later
"""Searches handover.pml, the model of the ownership protocol (docs/ownership.md), with spin.

Every configuration is searched to its end without an error; every broken rule must be caught by one
of the configurations named for it. A trace of an error: see docs/development.md.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("handover.pml")
MEMORY_MIB = 3500
SEARCH_S = 600
long = pytest.mark.long

# What is violated, by the assertion's text in pan's output. The first that matches counts.
INVARIANTS = [
    ("I1", "tmp<=1"),
    ("I2", "lc[i]&"),
    ("I2", "violated 0 "),
    ("I2", "(lc[0]&"),
    ("I2", "lc[0]=="),
    ("I2", "lc[h]"),
    ("I3", "violated (((rn[0]||"),
    ("I4", "ce[0]!=0"),
    ("I3", "(!rn["),
    ("I3", "!(rn["),
    ("I3", "!((rn["),
    ("I2", "my["),
    ("bound of epochs", "<12"),
]


class Search:
    """One run of spin: how it ended, and what it found."""

    def __init__(self, directory: Path, defines: str, compact: bool = False) -> None:
        def run(*command: str) -> str:
            done = subprocess.run(["nice", *command], cwd=directory, capture_output=True, text=True,
                                  timeout=SEARCH_S, check=False)
            return done.stdout + done.stderr

        model = run("spin", "-a", *defines.split(), str(MODEL))
        assert (directory / "pan.c").exists(), model
        flags = ["-DSAFETY", f"-DMEMLIM={MEMORY_MIB}", "-DVECTORSZ=512", "-DNOREDUCE", "-DNOFAIR"]
        if compact:
            flags.append("-DHC4")  # states by a hash of 64 bits
        built = run("gcc", "-O2", "-w", *flags, "-o", "pan", "pan.c")
        assert (directory / "pan").exists(), built
        self.output = run("./pan", "-m200000", "-w22")
        found = re.search(r"^pan:\d+: (.*)$", self.output, re.MULTILINE)
        self.violation = found.group(1) if found else None
        states = re.search(r"^\s*([\d.e+]+) states, stored", self.output, re.MULTILINE)
        self.states = float(states.group(1)) if states else 0.0
        self.complete = "errors: 0" in self.output and not re.search(
            r"too small|memory limit|out of memory|interrupted", self.output, re.IGNORECASE)
        print(f"{defines}: {self.states:.0f} states, {self.invariant or 'no error'}")

    @property
    def invariant(self) -> str | None:
        """Which invariant is violated."""
        if self.violation is None:
            return None
        for name, text in INVARIANTS:
            if text in self.violation:
                return name
        return self.violation


# ---- The rules hold ------------------------------------------------------------------------------

CONFIGURATIONS = {
    "second": "-DNATT=1 -DBREAKS=2 -DCRASH=2 -DLATE=2 -DRESTART=1",
    "first": "-DFIRST -DNATT=1 -DBREAKS=2 -DCRASH=2 -DLATE=2 -DRESTART=1",
    "cont": "-DCONT -DNATT=1 -DBREAKS=2 -DCRASH=2 -DLATE=2 -DRESTART=1",
    "first-cont": "-DCONT -DFIRST -DNATT=1 -DBREAKS=2 -DCRASH=1 -DLATE=2 -DRESTART=1",
    "first-merge": "-DMERGE -DFIRST -DNATT=1 -DBREAKS=2 -DCRASH=1 -DLATE=2",
    "new-arbiter": "-DMIX=0 -DNATT=1 -DBREAKS=2 -DCRASH=2 -DLATE=2 -DRESTART=1",
    "new-server": "-DMIX=1 -DNATT=1 -DBREAKS=2 -DCRASH=2 -DLATE=2 -DRESTART=1",
    "device-reads": "-DREADIN -DNATT=1 -DBREAKS=2 -DCRASH=1 -DLATE=2",
    "arena-lost": "-DLOSE -DNATT=1 -DBREAKS=1 -DCRASH=1 -DRESTART=1",
    "first-arena-lost": "-DLOSE -DFIRST -DNATT=1 -DBREAKS=1 -DCRASH=1 -DRESTART=1",
    "paging": "-DPAGING -DREADIN -DNATT=1 -DBREAKS=0 -DCRASH=0 -DW=2 -DP=2 -DD=2",
    "twice": "-DNATT=2 -DBREAKS=1 -DCRASH=1",
    "twice-restart": "-DNATT=2 -DBREAKS=0 -DCRASH=1 -DRESTART=1",
    "twice-merge": "-DMERGE -DNATT=2 -DBREAKS=1 -DCRASH=0",
    "twice-cont": "-DCONT -DNATT=2 -DBREAKS=1 -DCRASH=1",
    "paging-by-epoch":
        "-DPAGING -DREADIN -DVERSION_BY_EPOCH -DNATT=1 -DBREAKS=0 -DCRASH=0 -DW=2 -DP=2 -DD=1",
}
# Of these the states are told apart by a hash.
LARGE = {
    "first-paging": "-DPAGING -DFIRST -DNATT=1 -DBREAKS=1 -DCRASH=1 -DW=1 -DP=1 -DD=1",
    "paging-break": "-DPAGING -DREADIN -DNATT=1 -DBREAKS=1 -DCRASH=0 -DW=1 -DP=2 -DD=1",
    "paging-crash": "-DPAGING -DREADIN -DNATT=1 -DBREAKS=1 -DCRASH=1 -DW=1 -DP=1 -DD=1",
    "first-twice": "-DFIRST -DNATT=2 -DBREAKS=2 -DCRASH=1 -DLATE=2",
    "first-twice-merge": "-DMERGE -DFIRST -DNATT=2 -DBREAKS=2 -DCRASH=0 -DLATE=2",
    "twice-late": "-DNATT=2 -DBREAKS=2 -DCRASH=0 -DLATE=2",
    "twice-breaks": "-DNATT=2 -DBREAKS=2 -DCRASH=1 -DLATE=1",
    "twice-paging": "-DPAGING -DNATT=2 -DBREAKS=0 -DCRASH=0 -DW=1 -DP=1 -DD=0",
}
QUICK = ("first-merge", "device-reads", "arena-lost", "first-arena-lost", "new-server",
         "twice-restart", "paging-by-epoch")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else long)
                                  for n in CONFIGURATIONS])
def test_rules_hold(name: str, tmp_path: Path) -> None:
    search = Search(tmp_path, CONFIGURATIONS[name])
    assert search.invariant is None
    assert search.complete, search.output


@long
@pytest.mark.parametrize("name", LARGE)
def test_rules_hold_in_larger_worlds(name: str, tmp_path: Path) -> None:
    search = Search(tmp_path, LARGE[name], compact=True)
    assert search.invariant is None
    assert search.complete, search.output


# Each of these says that something never happens, and must be refuted: the searches come by it.
@pytest.mark.parametrize("claim", ["V1", "V7", "V8", "V9"])
def test_the_search_comes_by(claim: str, tmp_path: Path) -> None:
    search = Search(tmp_path, f"-DNATT=2 -DBREAKS=1 -DCRASH=0 -DMERGE -D{claim}")
    assert search.violation is not None


# ---- No rule is idle -----------------------------------------------------------------------------

ONE = "-DNATT=1 -DBREAKS=1 -DCRASH=1"
FIRST = "-DFIRST -DNATT=1 -DBREAKS=1 -DCRASH=1"
TWICE = "-DNATT=2 -DBREAKS=1 -DCRASH=1"
TWICE_BREAKS = "-DNATT=2 -DBREAKS=2 -DCRASH=0"
RESTART = "-DNATT=1 -DBREAKS=0 -DCRASH=1 -DRESTART=1"
FIRST_RESTART = f"-DFIRST {RESTART}"
CONT = "-DCONT -DNATT=1 -DBREAKS=1 -DCRASH=1"
MERGE = "-DFIRST -DMERGE -DNATT=1 -DBREAKS=0 -DCRASH=0"
PAGING = "-DPAGING -DREADIN -DNATT=1 -DBREAKS=1 -DCRASH=0 -DW=1 -DP=1 -DD=1"
PAGING_MORE = "-DPAGING -DREADIN -DNATT=1 -DBREAKS=0 -DCRASH=0 -DW=2 -DP=2 -DD=1"
DEVICES = "-DREADIN -DNATT=1 -DBREAKS=0 -DCRASH=0"

# Broken rules: where each is caught; the first that does counts.
BROKEN = {
    "BEFORE": [FIRST],
    "M_CLAIM_ANY": [ONE, FIRST],
    "M_CLAIM_ONCE": [ONE],
    "M_CLAIM_TICKET+M_RECLAIM_NOCLOSE": [ONE],
    "M_RECLAIM_ALWAYS": [ONE],
    "M_RECLAIM_NOEPOCH": [ONE],
    "M_RECLAIM_COMMITS": [ONE],
    "M_RECLAIM_LOOSE": [ONE, TWICE, TWICE_BREAKS],
    "M_OFFER_ANY": [ONE, TWICE],
    "M_COMMIT_ANY": [ONE],
    "M_DROP_CLAIMED": [ONE],
    "M_WRITE_CLAIMED": [PAGING],
    "M_WRITE_IF_COMMITTED": [ONE],
    "M_PUT_NOFENCE+M_VER_RESET": [PAGING, PAGING_MORE],
    "M_DISC_NOVERSION": [PAGING, PAGING_MORE],
    "M_VER_RESET": [PAGING, PAGING_MORE],
    "M_DISC_NOTHELD": [PAGING],
    "M_PUT_NOTAWAITED": [PAGING],
    "M_READ_FENCED": [DEVICES],
    "M_ORPHAN": [FIRST],
    "M_NOGC": [FIRST],
    "M_NOTOMB": [FIRST],
    "M_NOTOMB_RUN": [MERGE],
    "M_OPEN_TOMB": ["-DFIRST -DNATT=1 -DBREAKS=2 -DCRASH=0 -DLATE=2"],
    "M_TOMB_NOCE": [MERGE],
    "M_GONE_SUPER": [FIRST],
    "M_STALE_SUPER": [ONE],
    "M_COMMIT_AGAIN": [TWICE, TWICE_BREAKS],
    "M_FORGETS_EPOCH": [RESTART, FIRST_RESTART],
    "M_FORGETS_TICKET": [RESTART, FIRST_RESTART],
    "M_FORGETS_CLAIMED": [RESTART, FIRST_RESTART],
    "M_FORGETS_TOMB": [RESTART, FIRST_RESTART],
    "M_NOASK": [ONE],
    "M_ASKB": [ONE],
    "M_ASKONCE": [ONE],
    "M_ANYORDER": [ONE],
    "M_NOWITHDRAW": [TWICE],
    "M_COMMIT_EARLY": [ONE],
    "M_COMMIT_B_FIRST": [ONE],
    "M_RUN_EARLY": [ONE],
    "M_GIVEUP": [ONE],
    "M_TELL_EARLY": [ONE],
    "M_CONT_NOASK": [CONT],
    "M_COMMIT_AT_LOAD": [CONT],
}
# Another rule covers each of these, so that it is a second line: no search catches it.
COVERED = {
    "M_CLAIM_TICKET": "an offer is closed by the epoch too",
    "M_CLAIM_EPOCH": "the ticket is of one attempt",
    "M_RECLAIM_NOCLOSE": "the raised epoch closes the offer",
    "M_PUT_NOFENCE": "versions go on over epochs",
    "M_DISC_NOFENCE": "a Discard has a version",
}
QUICK_BROKEN = ("BEFORE", "M_CLAIM_ANY", "M_RECLAIM_NOEPOCH", "M_NOASK", "M_RUN_EARLY", "M_GIVEUP",
                "M_COMMIT_EARLY", "M_NOTOMB", "M_READ_FENCED")


def broken(rule: str, configuration: str) -> str:
    return " ".join(f"-D{name}" for name in rule.split("+")) + " " + configuration


@pytest.mark.parametrize("rule", [pytest.param(r, marks=[] if r in QUICK_BROKEN else long)
                                  for r in BROKEN])
def test_a_broken_rule_is_caught(rule: str, tmp_path: Path) -> None:
    for number, configuration in enumerate(BROKEN[rule]):
        directory = tmp_path / str(number)
        directory.mkdir()
        search = Search(directory, broken(rule, configuration))
        if search.violation is not None:
            return
        assert search.complete, search.output
    pytest.fail(f"{rule} is not caught")


@long
@pytest.mark.parametrize("rule", COVERED)
def test_a_second_line_is_not_needed(rule: str, tmp_path: Path) -> None:
    """If one is caught one day, it has become a first line, and belongs to the list above."""
    search = Search(tmp_path, broken(rule, PAGING_MORE if "FENCE" in rule else TWICE))
    assert search.invariant is None
    assert search.complete, search.output
