# SPDX-License-Identifier: GPL-2.0-or-later
"""A proxy between a VM's host and a memory server that understands frames.

It notes each connection's session and epoch, keeps connections to the server open after the
client has gone, and can speak on them as the client: a stale source that still wants to write.
It can also cut or block the way to the server, as a network that fails, and call back when a frame
passes, so that a fault can be put at an exact point of the protocol.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from .util import HarnessError
from .wire import HEADER, Frame, Op, Status, connect, receive_exactly, receive_frame


@dataclass
class Tap:
    """One proxied connection."""

    client: socket.socket
    server: socket.socket
    binding: Op | None = None        # Open, Attach or Claim
    session: bytes = b""
    epoch: int = 0                   # what the binding answer named
    refused: list[tuple[Op, Status]] = field(default_factory=list)
    put_pages: list[tuple[int, int]] = field(default_factory=list)   # (first page, count)
    client_ended: bool = False       # its side was closed; replies may still be read
    client_gone: threading.Event = field(default_factory=threading.Event)
    pending: dict[int, int] = field(default_factory=dict)            # seq -> op of bindings


class WireTap:
    """Listens on a TCP port of its own, `uri`, and forwards to `target`."""

    MAX_NOTED_PUTS = 1000

    def __init__(self, target: str) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self.taps: list[Tap] = []
        self._lock = threading.Lock()
        self._open_way = threading.Event()   # cleared: bytes wait
        self._open_way.set()
        self._refuse = False
        # Called in a proxy thread before a request of that op, or an OK reply to one, is passed
        # on; if it returns False the frame is swallowed.
        self.on_request: dict[Op, Callable[[Tap], bool]] = {}
        self.on_reply: dict[Op, Callable[[Tap], bool]] = {}
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and close everything."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._open_way.set()
        self.cut()
        for tap in self._all():
            _shut(tap.server)
        self._thread.join(5)

    def _all(self) -> list[Tap]:
        with self._lock:
            return list(self.taps)

    def block(self) -> None:
        """Let no byte through, and keep connections open: a network that swallows packets."""
        self._open_way.clear()

    def unblock(self) -> None:
        """End a block()."""
        self._open_way.set()

    def refuse(self) -> None:
        """Refuse new connections until mend()."""
        self._refuse = True

    def cut(self) -> None:
        """Close all connections and refuse new ones until mend()."""
        self.refuse()
        for tap in self._all():
            _shut(tap.client)
            _shut(tap.server)

    def mend(self) -> None:
        """End a cut() or refuse()."""
        self._refuse = False

    def bound(self, op: Op) -> list[Tap]:
        """The connections that bound themselves by `op`."""
        return [tap for tap in self._all() if tap.binding == op]

    def stale_call(self, tap: Tap, frame: Frame) -> Frame:
        """Speak on a connection whose client has gone, in its old epoch."""
        if not tap.client_gone.wait(10):
            raise HarnessError("the client of that connection is still there")
        frame.seq = 1 << 50
        tap.server.settimeout(10)
        tap.server.sendall(frame.pack())
        while True:
            reply = receive_frame(tap.server)
            if reply.seq == frame.seq:
                return reply

    @staticmethod
    def _ask(hooks: dict[Op, Callable[[Tap], bool]], op: int, tap: Tap) -> bool:
        hook = hooks.get(Op(op)) if op in iter(Op) else None
        return hook is None or hook(tap)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuse:
                client.close()
                continue
            try:
                server = connect(self.target)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            tap = Tap(client, server)
            with self._lock:
                self.taps.append(tap)
            threading.Thread(target=self._requests, args=(tap,), daemon=True).start()
            threading.Thread(target=self._replies, args=(tap,), daemon=True).start()

    def _requests(self, tap: Tap) -> None:
        try:
            while True:
                head = receive_exactly(tap.client, HEADER.size)
                self._open_way.wait()
                fields = HEADER.unpack(head)
                op, length, seq = fields[1], fields[3], fields[5]
                payload = receive_exactly(tap.client, length) if length else b""
                if op in (Op.OPEN, Op.ATTACH, Op.CLAIM, Op.RECLAIM):
                    tap.pending[seq] = op
                    tap.session = payload[:16]
                elif op == Op.PUT and len(tap.put_pages) < self.MAX_NOTED_PUTS:
                    tap.put_pages.append((fields[7], fields[8]))
                if self._ask(self.on_request, op, tap):
                    tap.server.sendall(head + payload)
        except (OSError, EOFError):
            pass
        # The way to the server stays open for stale_call(); the reply thread must stop reading it.
        tap.client_ended = True
        _shut(tap.client)

    def _replies(self, tap: Tap) -> None:
        try:
            while True:
                if not select.select([tap.server], [], [], 0.1)[0]:
                    if tap.client_ended:
                        break
                    continue
                head = receive_exactly(tap.server, HEADER.size)
                self._open_way.wait()
                fields = HEADER.unpack(head)
                length, status, seq, epoch = fields[3], fields[4], fields[5], fields[6]
                payload = receive_exactly(tap.server, length) if length else b""
                if status != Status.OK:
                    tap.refused.append((Op(fields[1]), Status(status)))
                if seq in tap.pending and status == Status.OK:
                    tap.binding = Op(tap.pending.pop(seq))
                    tap.epoch = epoch
                if status != Status.OK or self._ask(self.on_reply, fields[1], tap):
                    tap.client.sendall(head + payload)
        except (OSError, EOFError):
            pass
        _shut(tap.client)
        tap.client_gone.set()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
