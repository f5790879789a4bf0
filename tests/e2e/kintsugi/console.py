# SPDX-License-Identifier: GPL-2.0-or-later
"""The serial console of a test guest, and the markers of tests/guest/patternguest.c on it."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .util import Deadline, DeadlineError, HarnessError

# A marker is believed only with its end: migration may cut a line in two.
MARKER_RE = re.compile(r"KG (?P<text>[a-zA-Z][^;]*?) ;")
FATAL_RE = re.compile(r"Kernel panic|KG DIED|BUG: |Oops: |Out of memory: ")


class GuestError(HarnessError):
    """The guest found an error in its memory, or died."""


@dataclass(frozen=True)
class Marker:
    """One line of the guest program: `KG <kind> key=value...`."""

    kind: str
    text: str
    at_s: float
    values: dict[str, int] = field(compare=False)

    def __getitem__(self, key: str) -> int:
        return self.values[key]


def parse_marker(text: str, at_s: float) -> Marker:
    """Read the text of a marker."""
    words = text.split()
    kind = " ".join(word for word in words if "=" not in word) or words[0]
    values: dict[str, int] = {}
    for word in words:
        key, _, value = word.partition("=")
        if value.lstrip("-").isdigit():
            values[key] = int(value)
    if words[0] in ("ERROR", "DIED"):
        kind = words[0]
    return Marker(kind, text, at_s, values)


class Console:
    """Reads the console in a thread, logs it, and keeps the markers."""

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self._socket = connection
        self._log = log
        self._changed = threading.Condition()
        self._closed = False
        self.markers: list[Marker] = []
        self.fatal: str | None = None
        self._thread = threading.Thread(target=self._read, name=f"console {log.name}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = ""
        with self._log.open("w", buffering=1, errors="replace") as log:
            while True:
                try:
                    data = self._socket.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    break
                text = data.decode(errors="replace").replace("\r", "")
                log.write(text)
                *lines, rest = (rest + text).split("\n")
                now_s = time.monotonic()
                with self._changed:
                    for line in lines:
                        for match in MARKER_RE.finditer(line):
                            self.markers.append(parse_marker(match["text"], now_s))
                        if self.fatal is None and FATAL_RE.search(line):
                            self.fatal = line
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def send(self, command: str) -> None:
        """Type a line."""
        self._socket.sendall(command.encode() + b"\n")

    def close(self) -> None:
        """Close it and end the thread; the markers stay."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join(5)
        self._socket.close()

    @property
    def position(self) -> int:
        """The number of markers so far: what comes later has this index or a higher one."""
        with self._changed:
            return len(self.markers)

    def last(self, kind: str) -> Marker | None:
        """The newest marker of a kind."""
        with self._changed:
            return next((m for m in reversed(self.markers) if m.kind == kind), None)

    def wait(self, kind: str, seconds: float, after: int = 0,
             where: Callable[[Marker], bool] = lambda marker: True) -> Marker:
        """The first marker of a kind at index `after` or later that satisfies `where`."""
        deadline = Deadline(seconds)
        seen = after
        with self._changed:
            while True:
                for marker in self.markers[seen:]:
                    if marker.kind == kind and where(marker):
                        return marker
                seen = max(seen, len(self.markers))
                if self.fatal is not None:
                    raise GuestError(f"while waiting for '{kind}': {self.fatal}; see {self._log}")
                if self._closed:
                    raise GuestError(f"the console closed before '{kind}'; see {self._log}")
                if not self._changed.wait(deadline.left_s) and deadline.over:
                    raise DeadlineError(f"no '{kind}' within {seconds:g} s; see {self._log}")


@dataclass(frozen=True)
class Sweep:
    """What a sweep of all pages found."""

    pages: int
    errors: int
    total_errors: int
    zero: int
    ms: int


class Guest:
    """The guest program as seen through the console of the VM that runs it now."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def wait_ready(self, seconds: float = 120.0) -> Marker:
        """Wait until memory is filled."""
        return self.console.wait("ready", seconds)

    def wait_beats(self, beats: int = 2, seconds: float = 30.0) -> Marker:
        """Wait for beats that come from now on and show progress; the guest must be error-free."""
        first = self.console.wait("beat", seconds, self.console.position)
        marker = first
        for _ in range(beats - 1):
            done = marker["checked"]
            marker = self.console.wait("beat", seconds, self.console.position,
                                       lambda m, done=done: m["checked"] > done)
        self.check_errors()
        return marker

    def wait_passes(self, passes: int, seconds: float = 60.0) -> Marker:
        """Wait until every page was visited `passes` more times."""
        start = self.console.wait("beat", seconds, self.console.position)
        return self.console.wait("beat", seconds, self.console.position,
                                 lambda m: m["pass"] >= start["pass"] + passes)

    def sweep(self, seconds: float = 120.0) -> Sweep:
        """Have all pages verified."""
        position = self.console.position
        self.console.send("sweep")
        m = self.console.wait("sweep done", seconds, position)
        return Sweep(m["pages"], m["errors"], m["total_errors"], m["zero"], m["ms"])

    def verify(self, seconds: float = 120.0) -> Sweep:
        """Sweep, and raise GuestError unless not one error was ever found."""
        result = self.sweep(seconds)
        if result.errors or result.total_errors:
            raise GuestError(f"the guest found {result.total_errors} bad pages: {self.errors()}")
        return result

    def errors(self) -> list[str]:
        """The error lines on this console."""
        return [m.text for m in list(self.console.markers) if m.kind == "ERROR"]

    def check_errors(self) -> None:
        """Raise GuestError if the guest has found any error."""
        beat = self.console.last("beat")
        if self.errors() or (beat and beat["errors"]):
            count = beat["errors"] if beat else len(self.errors())
            raise GuestError(f"the guest found {count} bad pages: {self.errors()}")

    def hold(self, seconds: float = 30.0) -> None:
        """Make it touch no pattern page until go()."""
        position = self.console.position
        self.console.send("hold")
        self.console.wait("held", seconds, position)

    def go(self, seconds: float = 30.0) -> None:
        """End a hold()."""
        position = self.console.position
        self.console.send("go")
        self.console.wait("going", seconds, position)

    def rate(self, visits_per_s: int, seconds: float = 30.0) -> None:
        """Limit the visits a second of each worker; 0 is no limit."""
        position = self.console.position
        self.console.send(f"rate {visits_per_s}")
        self.console.wait(f"rate {visits_per_s}", seconds, position)

    def quit(self, seconds: float = 30.0) -> Marker:
        """Power off; returns the final line."""
        position = self.console.position
        self.console.send("quit")
        return self.console.wait("quit", seconds, position)
