# SPDX-License-Identifier: GPL-2.0-or-later
"""The page protocol of lib/wire/protocol.h, spoken from Python: enough to inspect a server and to
behave badly towards one."""

from __future__ import annotations

import enum
import socket
import struct
from dataclasses import dataclass

from .util import PAGE_BYTES, HarnessError

MAGIC = 0x3147534B
VERSION = 2
HEADER = struct.Struct("<IHHIIQQQIIQQ")
HELLO_REQUEST = struct.Struct("<HHI")
HELLO_REPLY = struct.Struct("<HHIQQ16s")
OPEN_REQUEST = struct.Struct("<16sQQII64s16s256s")
BIND_REQUEST = struct.Struct("<16s16s")
SESSION_REPLY = struct.Struct("<QQQIIQ")
FLAG_REPLY = 1
NO_TICKET = bytes(16)
assert HEADER.size == 64 and HELLO_REPLY.size == 40 and OPEN_REQUEST.size == 376


class Op(enum.IntEnum):
    """What a frame asks for or answers."""

    HELLO = 1
    OPEN = 2
    ATTACH = 3
    CLAIM = 4
    COMMIT = 5
    PUT = 6
    GET = 7
    DISCARD = 8
    DROP = 9
    STAT = 10
    OFFER = 11
    RECLAIM = 12


class Status(enum.IntEnum):
    """How a server answers."""

    OK = 0
    VERSION = 1
    BAD_REQUEST = 2
    NO_SESSION = 3
    EXISTS = 4
    FULL = 5
    QUOTA = 6
    FENCED = 7
    COMMITTED = 8
    TOO_MANY = 9
    INTERNAL = 10
    STALE = 11
    GONE = 12


@dataclass
class Frame:
    """A header and its payload. Fields as in FrameHeader."""

    op: int
    flags: int = 0
    status: int = 0
    seq: int = 0
    epoch: int = 0
    page: int = 0
    count: int = 0
    version: int = 0
    payload: bytes = b""
    magic: int = MAGIC

    def pack(self) -> bytes:
        """The bytes on the wire."""
        return HEADER.pack(self.magic, self.op, self.flags, len(self.payload), self.status,
                           self.seq, self.epoch, self.page, self.count, 0, self.version,
                           0) + self.payload


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Receive `size` bytes; raises EOFError if the peer closes before."""
    data = bytearray()
    while len(data) < size:
        more = connection.recv(min(size - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def receive_frame(connection: socket.socket) -> Frame:
    """Receive one frame."""
    (magic, op, flags, length, status, seq, epoch, page, count, _, version,
     _) = HEADER.unpack(receive_exactly(connection, HEADER.size))
    if magic != MAGIC:
        raise HarnessError(f"bad magic {magic:#x}")
    payload = receive_exactly(connection, length) if length else b""
    return Frame(op, flags, status, seq, epoch, page, count, version, payload, magic)


def connect(uri: str, timeout_s: float = 5.0) -> socket.socket:
    """Connect to tcp:HOST:PORT or unix:PATH."""
    kind, _, rest = uri.partition(":")
    if kind == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(rest)
        except OSError:
            connection.close()
            raise
        return connection
    host, _, port = rest.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Client:
    """A connection to a memory server; each call returns the answer frame, whatever its status."""

    def __init__(self, uri: str) -> None:
        self.connection = connect(uri)
        self.epoch = 0
        self._seq = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def call(self, frame: Frame) -> Frame:
        """Send a request and receive its answer."""
        self._seq += 1
        frame.seq = self._seq
        self.connection.sendall(frame.pack())
        return receive_frame(self.connection)

    def hello(self, min_version: int = VERSION, max_version: int = VERSION) -> Frame:
        """Say which versions we speak."""
        return self.call(Frame(Op.HELLO, payload=HELLO_REQUEST.pack(min_version, max_version, 0)))

    def _bound(self, reply: Frame) -> Frame:
        if reply.status == Status.OK:
            self.epoch = reply.epoch
        return reply

    def open(self, session: bytes, pages: int, name: str = "test",
             ticket: bytes = NO_TICKET) -> Frame:
        """Create a session of `pages` pages, offered to whoever has the ticket."""
        return self._bound(self.call(Frame(Op.OPEN, payload=OPEN_REQUEST.pack(
            session, pages, pages, 0, 0, name.encode(), ticket, b""))))

    def attach(self, session: bytes, epoch: int) -> Frame:
        """Bind to a session in an epoch."""
        return self._bind(Op.ATTACH, session, epoch, NO_TICKET)

    def _bind(self, op: Op, session: bytes, epoch: int, ticket: bytes) -> Frame:
        return self._bound(self.call(Frame(op, epoch=epoch,
                                           payload=BIND_REQUEST.pack(session, ticket))))

    def claim(self, session: bytes, epoch: int, ticket: bytes = NO_TICKET) -> Frame:
        """Take a session over that is offered in an epoch."""
        return self._bind(Op.CLAIM, session, epoch, ticket)

    def reclaim(self, session: bytes, epoch: int) -> Frame:
        """Take it back. In epoch 0: only ask."""
        return self._bind(Op.RECLAIM, session, epoch, NO_TICKET)

    def commit(self) -> Frame:
        """Own it for good."""
        return self.call(Frame(Op.COMMIT, epoch=self.epoch))

    def put(self, page: int, content: bytes, version: int = 1) -> Frame:
        """Store pages."""
        return self.call(Frame(Op.PUT, epoch=self.epoch, page=page,
                               count=len(content) // PAGE_BYTES, version=version, payload=content))

    def get(self, page: int, count: int = 1) -> Frame:
        """Read pages."""
        return self.call(Frame(Op.GET, epoch=self.epoch, page=page, count=count))

    def drop(self) -> Frame:
        """End the session."""
        return self.call(Frame(Op.DROP, epoch=self.epoch))

    def stat(self) -> Frame:
        """Figures of the session."""
        return self.call(Frame(Op.STAT, epoch=self.epoch))


@dataclass(frozen=True)
class ServerSpace:
    """What a server says in its Hello."""

    capacity_pages: int
    free_pages: int


def server_space(uri: str) -> ServerSpace:
    """Ask a server how much it has and how much of that no session has reserved."""
    with Client(uri) as client:
        reply = client.hello()
        if reply.status != Status.OK:
            raise HarnessError(f"{uri} answered Hello with {Status(reply.status).name}")
        _, _, _, capacity, free, _ = HELLO_REPLY.unpack(reply.payload)
        return ServerSpace(capacity, free)
