# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory servers that are killed, or hang, at random moments under a loaded Debian guest."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from debian import FIO_KEPT, OPT, DebianSetup, check_content
from kintsugi.lost import wait_back, wait_lost
from kintsugi.split import query_remote

MakeSetup = Callable[..., DebianSetup]
ROUNDS = 4
MOMENT_S = 3.0
SEED = int(os.environ.get("KINTSUGI_SEED", "1"))


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_server_at_random(make_setup: MakeSetup, how: str) -> None:
    """It comes back each time, with its pages, and the guest notices nothing.

    KINTSUGI_SEED draws other moments.
    """
    drawn = random.Random(f"{how} {SEED}")
    setup = make_setup(aio="io_uring", iothread=True, arena=True)
    setup.debian.run(f"{OPT}/fioload.py write {FIO_KEPT}")
    setup.load.start(setup.debian)
    setup.load.wait_progress(setup.debian)
    setup.split()
    for _ in range(ROUNDS):
        server = drawn.choice(setup.setup.servers)
        time.sleep(drawn.uniform(0, MOMENT_S))
        if how == "killed":
            server.kill()
            wait_lost(setup.vm, server.uri)
            server.start()
        else:
            server.freeze()
            wait_lost(setup.vm, server.uri)
            server.thaw()
        wait_back(setup.vm, server.uri)
        setup.vm.wait_status("running")
        setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    setup.check_paged()
    assert sum(server["reconnects"] for server in query_remote(setup.vm)["servers"]) >= ROUNDS
    check_content(setup.debian, setup.load)
