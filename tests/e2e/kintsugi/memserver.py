# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a memory server, hurt it, and ask it what it holds."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path

from .util import (PAGE_BYTES, HarnessError, Process, Work, memserver_binary, poll_until)
from .wire import ServerSpace, server_space

START_S = 20.0
METRIC_RE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})? (?P<value>\S+)")


class MemServer:
    """One memserver process, listening on TCP and on a unix socket.

    A restart keeps both addresses, and the arena file if there is one.
    """

    def __init__(self, name: str, work: Work, capacity: int, arena: bool = False,
                 transport: str = "tcp", extra: tuple[str, ...] = ()) -> None:
        self.name = name
        self.capacity = capacity
        self.transport = transport
        self.unix_uri = f"unix:{work.temp}/{name}.sock"
        self.tcp_uri = "tcp:127.0.0.1:0"
        # On tmpfs, where an arena must be.
        self.arena: Path | None = Path(f"/dev/shm/{work.temp.name}-{name}.arena") if arena else None
        self._metrics = "127.0.0.1:0"
        self._work = work
        self._extra = extra
        self._process: Process | None = None
        self.start()

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None
        return self._process

    @property
    def uri(self) -> str:
        """The address for a sub-host entry."""
        return self.unix_uri if self.transport == "unix" else self.tcp_uri

    def start(self) -> None:
        """Start it, and wait until it serves."""
        port_file = self._work.temp / f"{self.name}.ports"
        port_file.unlink(missing_ok=True)
        arguments: list[str | Path] = [
            memserver_binary(), "--listen", self.tcp_uri, "--listen", self.unix_uri,
            "--capacity", str(self.capacity), "--metrics", self._metrics,
            "--port-file", port_file, "--log-level", "info", *self._extra]
        if self.arena:
            arguments += ["--arena", self.arena]
        process = Process(self.name, arguments, self._work.logs / f"{self.name}.log")
        self._process = process

        def ready() -> bool:
            if not process.alive:
                raise HarnessError(process.describe())
            return port_file.exists()

        try:
            poll_until(f"{self.name} serves", ready, START_S)
            self._read_ports(port_file.read_text())
        except HarnessError as error:
            process.kill()
            raise HarnessError(f"{error}; {process.describe()}") from error

    def _read_ports(self, text: str) -> None:
        """Learn what port 0 became, so that a restart listens there again."""
        ports = json.loads(text)
        self.tcp_uri = next(uri for uri in ports["listen"] if uri.startswith("tcp:"))
        self._metrics = ports["metrics"]

    def kill(self) -> None:
        """SIGKILL: a host that loses power."""
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP: a host that hangs. Its addresses still accept connections."""
        self.process.stop()

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.signal(signal.SIGCONT)

    def end(self, seconds: float = 10.0) -> int:
        """SIGTERM: an orderly end. Returns the exit status."""
        self.process.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def close(self) -> None:
        """Be rid of it, whatever its state; what it holds is of no use any more."""
        if self._process:
            self._process.kill()
        self.forget()

    def forget(self) -> None:
        """Remove the arena file of a server that is not running: its pages are lost."""
        if self.arena:
            self.arena.unlink(missing_ok=True)

    def space(self) -> ServerSpace:
        """What it has and what is free of it."""
        return server_space(self.uri)

    def wait_empty(self, seconds: float = 15.0) -> None:
        """Wait until no session has anything reserved here."""
        try:
            poll_until(f"{self.name} has no session",
                       lambda: self.space().free_pages == self.space().capacity_pages, seconds)
        except HarnessError as error:
            raise HarnessError(f"{error}; it says {self.space()}; see {self.process.log}") from None

    @property
    def reserved_bytes(self) -> int:
        """Bytes that sessions have reserved."""
        space = self.space()
        return (space.capacity_pages - space.free_pages) * PAGE_BYTES

    def metrics(self) -> dict[str, float]:
        """Its Prometheus metrics, summed over labels."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        values: dict[str, float] = {}
        for line in text.splitlines():
            match = METRIC_RE.match(line)
            if match:
                values[match["name"]] = values.get(match["name"], 0.0) + float(match["value"])
        return values
