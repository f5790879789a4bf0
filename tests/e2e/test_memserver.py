# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory server as a process: what clients can do to it, and what it keeps."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from kintsugi.memserver import MemServer
from kintsugi.util import MIB, PAGE_BYTES, Work, poll_until
from kintsugi.wire import (HEADER, HELLO_REPLY, MAGIC, SESSION_REPLY, Client, Frame, Op, Status,
                           connect, receive_frame)

pytestmark = pytest.mark.split
SESSION = bytes(range(16))
MakeServer = Callable[..., MemServer]


@pytest.fixture
def make_server(work: Work) -> Iterator[MakeServer]:
    """Start servers of 16 MiB."""
    started: list[MemServer] = []

    def make(**options: object) -> MemServer:
        server = MemServer(f"server{len(started)}", work, 16 * MIB,
                           **options)  # type: ignore[arg-type]
        started.append(server)
        return server

    yield make
    for server in started:
        server.close()


@pytest.fixture
def server(make_server: MakeServer) -> MemServer:
    """One server."""
    return make_server()


def client_of(server: MemServer) -> Client:
    """A connection that has said Hello."""
    client = Client(server.uri)
    assert client.hello().status == Status.OK
    return client


def page(fill: int) -> bytes:
    """A page's content."""
    return bytes([fill]) * PAGE_BYTES


def stored(reply: Frame) -> bytes | None:
    """The content of the first page of a Get reply, None if it is not stored."""
    assert reply.status == Status.OK
    return reply.payload[8:8 + PAGE_BYTES] if reply.payload[0] & 1 else None


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_pages_are_kept(make_server: MakeServer, transport: str) -> None:
    server = make_server(transport=transport)
    with client_of(server) as client:
        assert client.open(SESSION, 1024).status == Status.OK
        assert server.reserved_bytes == 1024 * PAGE_BYTES
        assert client.put(5, page(7) + page(8)).status == Status.OK
        assert stored(client.get(5)) == page(7)
        assert stored(client.get(6)) == page(8)
        assert stored(client.get(7)) is None
        assert server.metrics()["kintsugi_memserver_used_pages"] == 2
        assert client.drop().status == Status.OK
    server.wait_empty()
    assert server.metrics()["kintsugi_memserver_used_pages"] == 0


def test_older_put_is_ignored(server: MemServer) -> None:
    with client_of(server) as client:
        client.open(SESSION, 16)
        client.put(1, page(2), version=20)
        assert client.put(1, page(1), version=10).status == Status.OK
        assert stored(client.get(1)) == page(2)


def test_capacity_is_enforced(server: MemServer) -> None:
    total = 16 * MIB // PAGE_BYTES
    with client_of(server) as first, client_of(server) as second:
        assert first.open(SESSION, total + 1).status == Status.FULL
        assert first.open(SESSION, total - 10).status == Status.OK
        assert second.open(SESSION, 1, ticket=b"x" * 16).status == Status.EXISTS
        assert second.open(bytes(16), 11).status == Status.FULL
        assert second.open(bytes(16), 10).status == Status.OK


def test_other_protocol_versions(server: MemServer) -> None:
    with Client(server.uri) as client:
        reply = client.hello(7, 9)
        assert reply.status == Status.VERSION
        version, oldest, *_ = HELLO_REPLY.unpack(reply.payload)
        assert oldest <= version < 7
    with Client(server.uri) as client:
        assert client.hello(0, 9).status == Status.OK


def test_stale_epoch_is_fenced(server: MemServer) -> None:
    with client_of(server) as source, client_of(server) as more, client_of(server) as destination:
        source.open(SESSION, 16)
        assert more.attach(SESSION, source.epoch).status == Status.OK
        source.put(3, page(1))
        assert destination.claim(SESSION, source.epoch, b"x" * 16).status == Status.FENCED
        assert destination.claim(SESSION, source.epoch).status == Status.OK
        assert destination.epoch > source.epoch
        for stale in (source, more):
            try:
                assert stale.put(3, page(9), version=99).status == Status.FENCED
            except (EOFError, ConnectionError):
                pass  # fenced by closing is as good
        assert stored(destination.get(3)) == page(1)
        assert destination.commit().status == Status.OK
        with client_of(server) as late:
            assert late.reclaim(SESSION, source.epoch).status == Status.COMMITTED
        with client_of(server) as late:
            assert late.attach(SESSION, source.epoch).status == Status.FENCED


def test_restart_with_arena(make_server: MakeServer) -> None:
    server = make_server(arena=True)
    client = client_of(server)
    client.open(SESSION, 1024)
    client.claim(SESSION, client.epoch)
    client.commit()
    for index in range(100):
        client.put(index, page(index), version=index + 1)
    server.kill()
    client.close()
    server.start()
    with client_of(server) as again:
        assert again.reclaim(SESSION, client.epoch - 1).status == Status.COMMITTED
        reply = again.attach(SESSION, client.epoch)
        assert reply.status == Status.OK
        capacity, used, _, _, committed, version = SESSION_REPLY.unpack(reply.payload)
        assert (capacity, used, committed, version) == (1024, 100, 1, 100)
        for index in range(100):
            assert stored(again.get(index)) == page(index)


def test_orderly_end(make_server: MakeServer) -> None:
    """SIGTERM ends it with status 0, clients or not, and removes its unix socket."""
    server = make_server(transport="unix")
    with client_of(server) as client:
        client.open(SESSION, 16)
        assert server.end() == 0
    assert not os.path.exists(server.unix_uri.removeprefix("unix:"))


def test_restart_without_arena(server: MemServer) -> None:
    with client_of(server) as client:
        client.open(SESSION, 16)
    server.kill()
    server.start()
    with client_of(server) as client:
        assert client.attach(SESSION, 1).status == Status.NO_SESSION


def test_session_of_a_vanished_source_is_dropped(make_server: MakeServer) -> None:
    server = make_server(extra=("--orphan-timeout", "1"))
    with client_of(server) as client:
        client.open(SESSION, 16)
    server.wait_empty()


def bad_clients() -> dict[str, bytes]:
    """What no client should send first."""
    hello = Frame(Op.HELLO, payload=bytes(8))
    huge = bytearray(hello.pack())
    huge[8:12] = b"\xff" * 4
    return {
        "garbage": os.urandom(4096),
        "http": b"GET / HTTP/1.1\r\n\r\n" + bytes(64),
        "huge-length": bytes(huge),
        "wrong-magic": Frame(Op.HELLO, payload=bytes(8), magic=MAGIC ^ 1).pack(),
        "put-before-hello": Frame(Op.PUT, count=1, payload=page(1)).pack(),
        "reply-as-request": Frame(Op.HELLO, flags=1, payload=bytes(8)).pack(),
        "half-a-header": hello.pack()[:HEADER.size // 2],
        "unknown-op": Frame(999).pack(),
    }


@pytest.mark.parametrize("kind", sorted(bad_clients()))
def test_bad_client(server: MemServer, kind: str) -> None:
    """It is refused or dropped, and others are served as before."""
    with client_of(server) as good:
        good.open(SESSION, 16)
        good.put(1, page(1))
        bad = connect(server.uri)
        bad.sendall(bad_clients()[kind])
        bad.shutdown(socket.SHUT_WR)
        try:
            while True:
                assert receive_frame(bad).status != Status.OK
        except (EOFError, ConnectionError):
            pass
        bad.close()
        assert stored(good.get(1)) == page(1)
    assert server.process.alive


def test_pages_out_of_bounds(server: MemServer) -> None:
    """Page numbers beyond the session's are refused, whatever the arithmetic."""
    with client_of(server) as client:
        client.open(SESSION, 16)
        for first in (16, 1 << 32, (1 << 64) - 2):
            try:
                assert client.put(first, page(1)).status == Status.BAD_REQUEST
            except (EOFError, ConnectionError):
                client = client_of(server)
                client.attach(SESSION, 1)
    assert server.process.alive


def test_many_connections(make_server: MakeServer) -> None:
    """Beyond its bound it refuses, and serves again when there is room."""
    server = make_server(extra=("--max-connections", "8"))
    clients = []
    for _ in range(8):
        clients.append(client_of(server))
    with pytest.raises((EOFError, OSError, AssertionError)):
        client_of(server)
    for client in clients:
        client.close()

    def served() -> bool:
        try:
            client_of(server).close()
            return True
        except (EOFError, OSError, AssertionError):
            return False
    poll_until("the server serves again", served, 10)
