# SPDX-License-Identifier: GPL-2.0-or-later
"""One measured migration of a busy guest: what the demo shows and the benchmark repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from .console import Guest
from .migrate import Figures, complete, query, start_stock, use_multifd
from .qmp import Json
from .split import SplitSetup, query_remote, query_split
from .util import PAGE_BYTES
from .vm import Vm

# "split-multifd" is split, with multifd for the main host's part.
KINDS = ("split", "precopy", "split-multifd", "multifd")
MULTIFD_CHANNELS = 4


@dataclass(frozen=True)
class Share:
    """What one host got."""

    host: str
    planned_pages: int
    sent_bytes: int
    zero_pages: int


@dataclass(frozen=True)
class Progress:
    """A look at a running migration."""

    status: str
    done_percent: float
    main_bytes: int
    sub_bytes: list[int]
    passes: int


@dataclass
class Outcome:
    """What a migration took, and what the guest says of its memory."""

    kind: str
    figures: Figures
    shares: list[Share] = field(default_factory=list)
    remote: Json | None = None
    beats: int = 0
    guest_errors: int = -1

    def as_json(self) -> Json:
        """For a file."""
        return asdict(self)


def is_split(kind: str) -> bool:
    """Whether memory servers take part."""
    return kind.startswith("split")


def progress_of(kind: str, source: Vm, info: Json) -> Progress:
    """Make sense of query-migrate and query-migrate-split."""
    ram = info.get("ram", {})
    total = ram.get("total", 0)
    percent = 100.0 * (total - ram.get("remaining", total)) / total if total else 0.0
    main_bytes = ram.get("transferred", 0)
    sub_bytes: list[int] = []
    if is_split(kind):
        targets = query_split(source).get("targets", [])
        main_bytes = sum(target["bytes"] for target in targets if target["main"])
        sub_bytes = [target["bytes"] for target in targets if not target["main"]]
    status = info.get("status", "none")
    return Progress(status, 100.0 if status == "completed" else percent, main_bytes, sub_bytes,
                    ram.get("dirty-sync-count", 0))


def migrate(kind: str, setup: SplitSetup, *, transport: str = "tcp", seconds: float = 300.0,
            on_progress: Callable[[Progress], None] | None = None,
            **arguments: object) -> tuple[Vm, Outcome]:
    """Migrate the setup's source; `arguments` are for migrate-split."""
    source = setup.source
    destination = setup.start_destination()
    if kind.endswith("multifd"):
        use_multifd(MULTIFD_CHANNELS, source, destination)
    uri = destination.listen(transport)
    if is_split(kind):
        setup.start_split(uri, **arguments)
    else:
        start_stock(source, uri)

    def look(info: Json) -> None:
        if on_progress:
            on_progress(progress_of(kind, source, info))

    outcome = Outcome(kind, complete(source, destination, seconds, look))
    if is_split(kind):
        for target in query_split(source)["targets"]:
            outcome.shares.append(Share("main host" if target["main"] else target["uri"],
                                        target["planned"], target["bytes"], target["zero"]))
    else:
        ram = query(source)["ram"]
        outcome.shares.append(Share("destination", ram["total"] // PAGE_BYTES,
                                    ram["transferred"], ram.get("duplicate", 0)))
    return destination, outcome


def settle(destination: Vm, outcome: Outcome, passes: int, seconds: float,
           on_beat: Callable[[Guest], None] | None = None) -> None:
    """Let the guest go on for some passes, sweep all its memory, and note what it found."""
    guest = destination.guest
    start = guest.console.wait("beat", seconds)
    while passes:
        beat = guest.console.wait("beat", seconds, guest.console.position)
        if on_beat:
            on_beat(guest)
        if beat["pass"] >= start["pass"] + passes:
            break
    sweep = guest.sweep(seconds)
    outcome.guest_errors = max(sweep.total_errors, len(guest.errors()))
    outcome.beats = sum(1 for m in list(guest.console.markers) if m.kind == "beat")
    if is_split(outcome.kind):
        outcome.remote = query_remote(destination)
