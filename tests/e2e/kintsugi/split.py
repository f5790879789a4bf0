# SPDX-License-Identifier: GPL-2.0-or-later
"""A source, a destination and memory servers, and split migrations between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .memserver import MemServer
from .migrate import Figures, MigrationFailed, complete, failure_text, prepare, unhold
from .qmp import Json, QmpError
from .util import MIB, HarnessError, Work, poll_until
from .vm import Snapshots, Vm, VmConfig

PAGE_OUT_METHODS = ("move", "wp")


class SplitSetup:
    """Memory servers, a source whose guest runs, and on demand a destination.

    close() ends the guests before the servers, so that no pager ever waits for a server that the
    harness took away.
    """

    def __init__(self, work: Work, snapshots: Snapshots | None, config: VmConfig, *,
                 servers: int = 2, server_bytes: int | None = None, arena: bool = False,
                 server_transport: str = "tcp", main_percent: int = 40) -> None:
        self.work = work
        self.config = config
        self.main_bytes = config.ram_bytes * main_percent // 100 // MIB * MIB
        # Room for what the main host does not take and a tenth more, shared evenly.
        rest = config.ram_bytes - self.main_bytes + config.ram_bytes // 10
        self.sub_bytes = -(-rest // max(servers, 1) // MIB) * MIB
        self.servers: list[MemServer] = []
        self.vms: list[Vm] = []
        self._destinations = 0
        try:
            for index in range(servers):
                self.servers.append(MemServer(f"server{index}", work,
                                              server_bytes or self.sub_bytes, arena,
                                              server_transport))
            if snapshots:
                self.source = snapshots.start("source", config, work)
            else:
                self.source = Vm("source", config, work)
            self.vms.append(self.source)
            prepare(self.source)
        except HarnessError:
            self.close()
            raise

    def close(self) -> None:
        """End everything, guests first."""
        for vm in reversed(self.vms):
            vm.end()
        for server in self.servers:
            server.close()

    def start_destination(self, **changes: object) -> Vm:
        """Start a destination; it does not listen yet. `changes` are to its VmConfig."""
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        name = f"destination{self._destinations or ''}"
        self._destinations += 1
        vm = Vm(name, config, self.work, incoming=True)
        self.vms.append(vm)
        prepare(vm)
        return vm

    def sub_hosts(self, uris: Sequence[str] | None = None) -> list[Json]:
        """The sub-hosts argument for these URIs, or for our servers."""
        return [{"uri": uri, "capacity": self.sub_bytes}
                for uri in (uris or [server.uri for server in self.servers])]

    def send_split(self, uri: str, **arguments: object) -> None:
        """Send migrate-split, with sensible arguments that `arguments` may replace (_ for -).

        The answer is for source.qmp.finish().
        """
        self.source.qmp.send("migrate-split", {
            "uri": uri, "main-memory": self.main_bytes, "sub-hosts": self.sub_hosts(),
            **{name.replace("_", "-"): value for name, value in arguments.items()}})

    def start_split(self, uri: str, **arguments: object) -> None:
        """migrate-split, which the sub-hosts must agree to."""
        self.send_split(uri, **arguments)
        self.source.qmp.finish(60)
        poll_until("migrate-split has asked the sub-hosts",
                   lambda: query_split(self.source)["phase"] != "connecting", 60)
        phase = query_split(self.source)["phase"]
        if phase in ("failed", "cancelled"):
            raise MigrationFailed(f"the migration {phase}: {failure_text(self.source)}")

    def split(self, transport: str = "unix", seconds: float = 90.0,
              extra: tuple[str, ...] = (), **arguments: object) -> tuple[Vm, Figures]:
        """A whole split migration that must succeed; `extra` is for the destination's QEMU."""
        destination = self.start_destination(extra=self.config.extra + extra)
        self.start_split(destination.listen(transport), **arguments)
        return destination, complete(self.source, destination, seconds)

    def refused(self, destination: Vm | None = None, **arguments: object) -> str:
        """A split migration that must not happen; returns what the user is told.

        It may be refused by the command or fail soon after.
        """
        destination = destination or self.start_destination()
        self.send_split(destination.listen(), **arguments)
        return self.failed()

    def failed(self, seconds: float = 60.0, wanted: str = "failed") -> str:
        """Wait for the end of a migration that must not succeed, from send_split() on, and return
        what the user is told."""
        try:
            self.source.qmp.finish(seconds)
        except QmpError as error:
            return error.desc
        return self.failed_later(seconds, wanted)

    def failed_later(self, seconds: float = 60.0, wanted: str = "failed") -> str:
        """The same after migrate-split was answered."""
        phase = poll_until("the split migration ended", lambda: query_ended(self.source), seconds)
        if phase != wanted:
            raise HarnessError(f"the migration {phase}, but it should have {wanted}:"
                               f" {failure_text(self.source)}")
        return failure_text(self.source)

    def check_source_unharmed(self) -> None:
        """The source's guest runs, and all its memory is right; no server holds anything of it."""
        unhold(self.source)
        self.source.wait_status("running")
        self.source.guest.wait_beats()
        self.source.guest.verify()
        for server in self.servers:
            if server.process.alive:
                server.wait_empty()

    def check_retry_succeeds(self) -> None:
        """After whatever happened, the same split migration works."""
        for server in self.servers:
            if not server.process.alive:
                server.start()
        destination, _ = self.split()
        destination.guest.wait_beats()
        destination.guest.verify()


def query_split(vm: Vm) -> Json:
    """query-migrate-split, on the second monitor: the first may wait for migrate-split."""
    result: Json = vm.qmp2.execute("query-migrate-split")
    return result


def query_remote(vm: Vm) -> Json:
    """query-remote-memory."""
    result: Json = vm.qmp.execute("query-remote-memory")
    return result


def query_ended(vm: Vm) -> str | None:
    """How the last split migration ended; None while it has not."""
    phase = str(query_split(vm)["phase"])
    return phase if phase in ("completed", "failed", "cancelled", "in-doubt") else None


def wait_connecting(source: Vm) -> None:
    """Wait until migrate-split, sent and perhaps not answered, asks the sub-hosts."""
    poll_until("migrate-split connects", lambda: query_split(source)["phase"] == "connecting", 10)
