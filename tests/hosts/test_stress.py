# SPDX-License-Identifier: GPL-2.0-or-later
"""P4's first experiment, by the script of `make demo-tiering`: writes move to fast memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from emulated.initramfs import REPO

LIMIT_PAIRS, STRESS_PAGES = 1000, 8192
LIMIT_S = 1800.0


@pytest.mark.long
def test_writes_reach_fast_memory(logs, slower):
    done = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "demo-tiering"), "--output", str(logs)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=LIMIT_S * slower)
    print(done.stdout)
    assert done.returncode == 0
    figures = json.loads((logs / "figures.json").read_text(encoding="utf-8"))
    pairs = [decision["pairs"] for decision in figures["decisions"]]
    assert figures["swapper"] == "tiermem" and figures["source"] == "kvm"
    assert figures["errors"] == 0 and figures["pages"] == STRESS_PAGES
    assert max(pairs) <= LIMIT_PAIRS and sum(pairs) == figures["swapped"]
    assert figures["fast_share"]["before"] < 0.5
    assert figures["rested"] and figures["fast_share"]["steady"] >= 0.98
    for name in ("fig5", "fig6"):
        assert (logs / f"{name}.png").stat().st_size and (logs / f"{name}.svg").stat().st_size
