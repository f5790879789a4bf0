# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a database and a disk are after a split, by the main host's share, beside the same guest
after an ordinary migration. Figures go to build/results/debian-figures.json.

The share is of what the guest has in use when the session's guest has booted: the rest of its
5 GiB is zeroes, which no host has to keep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from debian import OPT, Booted, DebianSetup, check_content
from kintsugi.split import query_remote
from kintsugi.util import BUILD

pytestmark = pytest.mark.long
MakeSetup = Callable[..., DebianSetup]
SECONDS = 20
FIO_MEASURED = "128M 64M"
RESULTS = BUILD / "results" / "debian-figures.json"


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, dict[str, float]]]:
    """All rows, written and printed at the end."""
    rows: dict[str, dict[str, float]] = {}
    yield rows
    write(rows, RESULTS)
    print("\n" + "\n".join(f"{name:9} " + "  ".join(f"{key} {value:.6g}"
                                                    for key, value in row.items())
                           for name, row in rows.items()))


def write(rows: dict[str, dict[str, float]], path: Path) -> None:
    """By one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".new")
    half.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    half.rename(path)


@pytest.mark.parametrize("percent", [None, 100, 60, 40, 25])
def test_throughput(make_setup: MakeSetup, booted: Booted, percent: int | None,
                    figures: dict[str, dict[str, float]]) -> None:
    """One row."""
    setup = make_setup(aio="native", iothread=True, main_percent=percent or 100)
    setup.load.start(setup.debian)
    setup.load.wait_progress(setup.debian)
    moved = setup.split() if percent else setup.migrate()
    setup.load.finish(setup.debian)

    debian = setup.debian
    debian.run(f"{OPT}/fioload.py write {FIO_MEASURED}")
    debian.start("dbload", f"{OPT}/dbload.py load 100 '{json.dumps(setup.load.database)}'")
    debian.run(f"sleep {SECONDS}", SECONDS * 5)
    database = debian.finish("dbload")
    setup.load.database.append((100, int(database["operations"])))
    disk = json.loads(debian.run(f"{OPT}/fioload.py measure {FIO_MEASURED} {SECONDS}"))
    row = {"database_per_second": database["per_second"],
           "fio_read_per_second": disk["read_per_second"],
           "fio_write_per_second": disk["write_per_second"],
           "migration_ms": moved.total_ms, "stopped_ms": moved.stopped_ms,
           "used_bytes": booted.used_bytes}
    if percent:
        info = query_remote(setup.vm)
        row.update(main_bytes=setup.setup.main_bytes, page_ins=info["page-ins"],
                   page_outs=info["page-outs"])
    figures["migrated" if percent is None else f"split {percent}"] = row
    check_content(debian, setup.load, fio=False)
    assert row["database_per_second"] > 0 and row["fio_read_per_second"] > 0
