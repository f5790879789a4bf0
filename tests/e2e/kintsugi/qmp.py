# SPDX-License-Identifier: GPL-2.0-or-later
"""A small synchronous QMP client."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from .util import Deadline, DeadlineError, HarnessError

Json = dict[str, Any]
COMMAND_TIMEOUT_S = 30.0


class QmpError(HarnessError):
    """QEMU answered a command with an error."""

    def __init__(self, command: str, error: Json) -> None:
        super().__init__(f"{command}: {error.get('desc')}")
        self.error_class: str = error.get("class", "")
        self.desc: str = error.get("desc", "")


class QmpGone(HarnessError):
    """QEMU closed the connection."""


class Qmp:
    """One QMP connection over a connected socket.

    Events are kept in `events` in order of arrival until wait_event() takes them. Not for use
    from several threads.
    """

    def __init__(self, connection: socket.socket, oob: bool = False) -> None:
        """With `oob`, commands can be executed out of band."""
        self._socket = connection
        self._buffer = b""
        self._next_id = 0
        self._pending = ""
        self.events: list[Json] = []
        greeting = self._receive(Deadline(COMMAND_TIMEOUT_S))
        if "QMP" not in greeting:
            raise HarnessError(f"not a QMP greeting: {greeting}")
        self.version: Json = greeting["QMP"]["version"]["qemu"]
        self.execute("qmp_capabilities", {"enable": ["oob"]} if oob else None)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self, deadline: Deadline) -> Json:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(deadline.left_s, 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise DeadlineError(f"nothing from QMP for {deadline.seconds:g} s") from None
            except OSError as error:
                raise QmpGone(f"QMP connection lost: {error}") from error
            if not data:
                raise QmpGone("QEMU closed the QMP connection")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: Json = json.loads(line)
        return message

    def send(self, command: str, arguments: Json | None = None, oob: bool = False) -> None:
        """Send a command without waiting; finish() must take its answer before the next one."""
        self._next_id += 1
        self._pending = command
        request: Json = {"exec-oob" if oob else "execute": command, "id": self._next_id}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.settimeout(COMMAND_TIMEOUT_S)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpGone(f"QMP connection lost: {error}") from error

    def finish(self, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Wait for the answer to send(), and return what it returns; raises QmpError."""
        deadline = Deadline(timeout_s)
        while True:
            try:
                message = self._receive(deadline)
            except DeadlineError:
                raise DeadlineError(
                    f"{self._pending} was not answered in {timeout_s:g} s") from None
            if "event" in message:
                self.events.append(message)
            elif message.get("id") == self._next_id:
                if "error" in message:
                    raise QmpError(self._pending, message["error"])
                return message["return"]

    def execute(self, command: str, arguments: Json | None = None,
                timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Run a command and return what it returns; raises QmpError."""
        self.send(command, arguments)
        return self.finish(timeout_s)

    def execute_oob(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Run a command out of band: QEMU's main loop has no part in it."""
        self.send(command, oob=True)
        return self.finish(timeout_s)

    def execute_with_fd(self, command: str, arguments: Json, fd: int) -> Any:
        """Run a command that takes a descriptor."""
        self._next_id += 1
        self._pending = command
        request = {"execute": command, "id": self._next_id, "arguments": arguments}
        socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], [fd])
        return self.finish()

    def poll_events(self) -> list[Json]:
        """Take in the events that have arrived, without waiting, and return all that are kept."""
        while True:
            self._socket.settimeout(0.0)
            if b"\n" not in self._buffer:
                try:
                    data = self._socket.recv(65536)
                except (BlockingIOError, TimeoutError):
                    return self.events
                except OSError:
                    return self.events
                if not data:
                    return self.events
                self._buffer += data
                continue
            message = self._receive(Deadline(COMMAND_TIMEOUT_S))
            if "event" in message:
                self.events.append(message)

    def wait_event(self, name: str, seconds: float = COMMAND_TIMEOUT_S,
                   where: Callable[[Json], bool] = lambda data: True) -> Json:
        """Take and return the first event `name` whose data satisfies `where`."""
        deadline = Deadline(seconds)
        seen = 0
        while True:
            for index in range(seen, len(self.events)):
                event = self.events[index]
                if event["event"] == name and where(event.get("data", {})):
                    return self.events.pop(index)
            seen = len(self.events)
            try:
                message = self._receive(deadline)
            except DeadlineError:
                kept = [event["event"] for event in self.events]
                raise DeadlineError(
                    f"no event {name} within {seconds:g} s; others: {kept}") from None
            if "event" in message:
                self.events.append(message)

    def event_time_s(self, name: str) -> float | None:
        """The host's time of the last kept event `name`, which stays kept."""
        for event in reversed(self.poll_events()):
            if event["event"] == name:
                stamp = event["timestamp"]
                return float(stamp["seconds"]) + stamp["microseconds"] / 1e6
        return None

    def has_command(self, command: str) -> bool:
        """Whether this QEMU knows a command."""
        return any(entry["name"] == command for entry in self.execute("query-commands"))
