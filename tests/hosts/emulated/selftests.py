# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of the kernel's selftests that run in emulated hosts: tests/hosts/selftests.txt."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from .initramfs import REPO

TABLE = REPO / "tests" / "hosts" / "selftests.txt"
BUILT = REPO / "build" / "selftests"
HOSTS = {"amd", "intel"}
COLUMNS = 5
SKIPPED = 4   # exit status of a selftest that cannot run


class TableError(Exception):
    """A line of the table says something that cannot be; the text says which."""


@dataclass(frozen=True)
class Selftest:
    """One line of the table."""

    collection: str
    program: str
    hosts: frozenset[str]
    cpus: int
    timeout_s: float
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people, and for pytest's -k."""
        return " ".join((f"{self.collection}/{self.program}", *self.arguments))

    @property
    def path(self) -> Path:
        """The program."""
        return BUILT / self.collection / self.program


def parse_table(text: str) -> list[Selftest]:
    """The lines of a table; TableError names one that is wrong."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        where = f"selftests.txt:{number}"
        if len(words) < COLUMNS:
            raise TableError(f"{where}: fewer than {COLUMNS} columns")
        collection, program, hosts, cpus, limit, *arguments = words
        if not set(hosts.split(",")) <= HOSTS:
            raise TableError(f"{where}: no such host: {hosts}")
        if not re.fullmatch(r"[1-9]\d*", cpus):
            raise TableError(f"{where}: {cpus} is no number of processors")
        if not re.fullmatch(r"\d+", limit):
            raise TableError(f"{where}: {limit} is no number of seconds")
        rows.append(Selftest(collection, program, frozenset(hosts.split(",")), int(cpus),
                             float(limit), tuple(arguments)))
    names = [(host, row.name) for row in rows for host in row.hosts]
    if len(set(names)) < len(names):
        raise TableError("selftests.txt: the same test twice")
    return rows


def read_table(path: Path = TABLE) -> list[Selftest]:
    """The table of the repository."""
    return parse_table(path.read_text(encoding="utf-8"))
