#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads the Redis of the guest, and knows what must be in it. The host imports this too.

Every key has a version that each SET raises by one, and what its value is follows from both. The
operations follow from a seed, so the host can say what the database holds after any number.

    dbload.py fill            set every key to version 0
    dbload.py load SEED       read and write until SIGTERM; print {"operations": N, ...}
    dbload.py digest          print the SHA-256 of all values in the order of keys
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator

KEYS = 1 << 14
VALUE_BYTES = 2048
BATCH = 32          # operations on their way at once
PROGRESS = "/run/kintsugi/dbload.operations"


def value(key: int, version: int) -> bytes:
    """What a key holds in a version."""
    return hashlib.shake_128(b"%d %d" % (key, version)).digest(VALUE_BYTES)


def operations(seed: int) -> Iterator[tuple[int, bool]]:
    """(key, whether it is written), without end."""
    bits = random.Random(seed).getrandbits
    while True:
        drawn = bits(15)
        yield drawn >> 1, bool(drawn & 1)


def versions_after(loads: list[tuple[int, int]]) -> list[int]:
    """Of each key, after a fill and these loads, each (seed, operations)."""
    versions = [0] * KEYS
    for seed, count in loads:
        drawn = operations(seed)
        for _ in range(count):
            key, written = next(drawn)
            versions[key] += written
    return versions


def expected_digest(loads: list[tuple[int, int]]) -> str:
    """What `digest` prints after a fill and these loads."""
    digest = hashlib.sha256()
    for key, version in enumerate(versions_after(loads)):
        digest.update(value(key, version))
    return digest.hexdigest()


class Redis:
    """A connection on which commands are sent in batches."""

    def __init__(self) -> None:
        connection = socket.create_connection(("127.0.0.1", 6379), 600)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._file = connection.makefile("rb")

    def send(self, commands: list[tuple[bytes, ...]]) -> None:
        """Send them all."""
        self._connection.sendall(b"".join(
            b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word)
                                               for word in words) for words in commands))

    def reply(self) -> bytes:
        """The next answer: of a bulk string its content, else the line."""
        line = self._file.readline()
        if line[:1] != b"$":
            return line.strip()
        return self._file.read(int(line[1:]) + 2)[:-2] if line != b"$-1\r\n" else b"(nil)"


def set_command(key: int, version: int) -> tuple[bytes, ...]:
    """SET."""
    return b"SET", b"k%d" % key, value(key, version)


def fill() -> None:
    """Set every key."""
    redis = Redis()
    for first in range(0, KEYS, BATCH):
        redis.send([set_command(key, 0) for key in range(first, first + BATCH)])
        for _ in range(BATCH):
            assert redis.reply() == b"+OK"


def digest() -> str:
    """Over all values, in the order of keys."""
    redis = Redis()
    redis.send([(b"DBSIZE",)])
    assert redis.reply() == b":%d" % KEYS
    result = hashlib.sha256()
    for first in range(0, KEYS, BATCH):
        redis.send([(b"GET", b"k%d" % key) for key in range(first, first + BATCH)])
        for _ in range(BATCH):
            result.update(redis.reply())
    return result.hexdigest()


def load(seed: int, before: list[tuple[int, int]]) -> dict[str, object]:
    """Read and write until SIGTERM; every value that is read is compared.

    `before`: the loads there were since the fill.
    """
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    versions = versions_after(before)
    redis = Redis()
    drawn = operations(seed)
    done = 0
    start_s = time.monotonic()
    with open(PROGRESS, "w", encoding="ascii") as progress:
        while not stop:
            commands: list[tuple[bytes, ...]] = []
            wanted: list[tuple[int, bytes]] = []
            for key, written in (next(drawn) for _ in range(BATCH)):
                versions[key] += written
                commands.append(set_command(key, versions[key]) if written
                                else (b"GET", b"k%d" % key))
                wanted.append((key, b"+OK" if written else value(key, versions[key])))
            redis.send(commands)
            for key, right in wanted:
                got = redis.reply()
                if got != right:
                    raise SystemExit(f"key {key} is not of version {versions[key]}: {got[:32]!r}")
            done += BATCH
            progress.seek(0)
            progress.write(f"{done}\n")
            progress.flush()
    seconds = time.monotonic() - start_s
    return {"seed": seed, "operations": done, "per_second": done / seconds}


def main(words: list[str]) -> None:
    """Do as the arguments say."""
    if words[0] == "fill":
        fill()
    elif words[0] == "digest":
        print(digest())
    else:
        print(json.dumps(load(int(words[1]), json.loads(words[2]) if words[2:] else [])))


if __name__ == "__main__":
    main(sys.argv[1:])
