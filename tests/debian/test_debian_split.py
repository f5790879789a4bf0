# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian guest under load before, during and after a split."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from debian import (FIO_KEPT, OPT, DebianSetup, GuestFailed, check_content, check_files,
                    check_memory_layout)

MakeSetup = Callable[..., DebianSetup]


@pytest.mark.parametrize("aio, iothread", [("threads", False), ("native", False),
                                           ("io_uring", False), ("native", True),
                                           ("io_uring", True)])
def test_under_load(make_setup: MakeSetup, aio: str, iothread: bool) -> None:
    """Database, disk by direct I/O and network go on, and all of their content is right."""
    setup = make_setup(aio=aio, iothread=iothread)
    setup.debian.run(f"{OPT}/fioload.py write {FIO_KEPT}")
    setup.load.start(setup.debian)
    setup.load.wait_progress(setup.debian)
    setup.split()
    setup.load.wait_progress(setup.debian)
    setup.load.finish(setup.debian)
    setup.check_paged()
    check_memory_layout(setup.debian)
    check_content(setup.debian, setup.load)


def test_checks_find_damage(make_setup: MakeSetup) -> None:
    """What the tests compare would show one wrong value, byte or block."""
    setup = make_setup()
    debian = setup.debian
    debian.run(f"{OPT}/fioload.py write {FIO_KEPT}")
    check_content(debian, setup.load)

    debian.run("redis-cli setrange k77 2047 X")
    with pytest.raises(AssertionError, match="the database holds"):
        check_content(debian, setup.load)
    debian.run(f"{OPT}/dbload.py fill")

    debian.run("printf X | dd of=/srv/files/007 bs=1 seek=12345 conv=notrunc")
    with pytest.raises(AssertionError):
        check_files(debian)
    debian.run("rm /srv/files/007")
    with pytest.raises(AssertionError):
        check_files(debian)

    debian.run("dd if=/dev/zero of=/dev/disk/by-id/virtio-data bs=4k seek=99 count=1 oflag=direct")
    with pytest.raises(GuestFailed, match="fio"):
        debian.run(f"{OPT}/fioload.py verify {FIO_KEPT}")
