#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the seeds of the wire fuzzers into corpus/: run it after a change of the protocol.

The formats of the two targets' inputs are told at the top of their sources.
"""
import pathlib
import struct

MAGIC = 0x3147534B
HELLO, OPEN, ATTACH, CLAIM, COMMIT, PUT, GET, DISCARD, DROP, STAT, OFFER, RECLAIM = range(1, 13)
REPLY = 1
VERSION = 2
PAGE = 4096
ID = bytes(range(16))
TICKET = bytes(range(16, 32))
BIND = ID + TICKET


def frame(op, payload=b"", *, flags=0, status=0, seq=1, epoch=0, page=0, count=0, version=0,
          mask=0):
    return struct.pack("<IHHIIQQQIIQQ", MAGIC, op, flags, len(payload), status, seq, epoch, page,
                       count, 0, version, mask) + payload


def open_request(session=ID, vm_pages=300, capacity=6, tag_bytes=0, name=b"vm"):
    return session + struct.pack("<QQII64s16s256s", vm_pages, capacity, tag_bytes, 0, name, TICKET,
                                 b"unix:/arbiter")


def put(page, count, version, epoch=1, tag_bytes=0):
    return frame(PUT, bytes([version % 256]) * ((PAGE + tag_bytes) * count), epoch=epoch,
                 page=page, count=count, version=version)


def send(client, data, pieces=40):
    """Steps of the server's fuzzer that send `data` and take the answers."""
    steps = b""
    for at in range(0, len(data), 0xFFFF):
        part = data[at:at + 0xFFFF]
        steps += bytes([client | pieces << 2]) + struct.pack("<H", len(part)) + part
    return steps + bytes([client | 62 << 2])


def server_seeds():
    hello = frame(HELLO, struct.pack("<HHI", VERSION, VERSION, 0))
    opened = hello + frame(OPEN, open_request())
    yield "hello", send(0, hello)
    yield "hello_newer", send(0, frame(HELLO, struct.pack("<HHI", VERSION + 1, 9, 0)))
    yield "garbage", send(0, b"GET / HTTP/1.1\r\n\r\n" * 8)
    yield "open_full", send(0, hello + frame(OPEN, open_request(capacity=41)) +
                            frame(OPEN, open_request(capacity=40)))
    yield "put_get_discard", send(0, opened + put(3, 2, 5) + frame(GET, epoch=1, page=0, count=9) +
                                  put(4, 1, 4) +
                                  frame(DISCARD, epoch=1, page=0, count=300, version=4) +
                                  frame(STAT, epoch=1))
    yield "tags", send(0, hello + frame(OPEN, open_request(tag_bytes=28)) +
                       put(0, 3, 1, tag_bytes=28) + frame(GET, epoch=1, page=1, count=64))
    yield "put_big_pieces", send(0, opened + put(0, 6, 1), 61) + send(0, put(1, 5, 2), 0)
    yield "put_mask", send(0, opened + frame(PUT, bytes(2 * PAGE), epoch=1, page=3, count=64,
                                             version=1, mask=1 << 63 | 1))
    yield "put_over_capacity", send(0, opened + put(0, 6, 1) + put(6, 1, 1))
    claim = hello + frame(CLAIM, BIND, epoch=1)
    reclaim = frame(RECLAIM, BIND, epoch=1)
    yield "handover", (send(0, opened + put(0, 4, 1)) + send(1, claim) + send(0, put(0, 1, 2)) +
                       send(1, frame(COMMIT, epoch=2) + frame(GET, epoch=2, page=0, count=4)) +
                       send(2, claim) + send(1, frame(DROP, epoch=2)))
    yield "taken_back", (send(0, opened) + send(1, claim) + send(0, reclaim + reclaim) +
                         send(0, frame(OFFER, BIND, epoch=3)) +
                         send(1, frame(CLAIM, BIND, epoch=3)) + send(0, frame(DROP, epoch=3)) +
                         send(2, hello + reclaim + frame(ATTACH, BIND, epoch=3)))
    flying = put(0, 6, 9)
    yield "fenced_in_flight", (send(0, opened) + send(0, flying[:20000]) + send(1, claim) +
                               send(0, flying[20000:]))
    yield "attach_and_drop", (send(0, opened) +
                              send(1, hello + frame(ATTACH, BIND, epoch=1) + put(7, 1, 1)) +
                              send(0, frame(DROP, epoch=1)) + send(1, frame(STAT, epoch=1)))
    yield "hang_up_in_put", (send(0, opened + put(0, 6, 1)[:9000]) + bytes([63 << 2]) +
                              send(0, claim))
    yield "claim_again", send(0, opened + frame(CLAIM, BIND, epoch=1) + put(1, 1, 1, epoch=2))
    yield "never_reads", (send(0, opened + put(0, 6, 1)) +
                          bytes([60 << 2]) + struct.pack("<H", 64 * 200) +
                          frame(GET, epoch=1, page=0, count=256) * 200)


def client_seeds():
    hello = frame(HELLO, struct.pack("<HHIQQ16s", VERSION, VERSION, 0, 100, 50, ID), flags=REPLY)
    figures = struct.pack("<QQQIIQ", 100, 3, 100, 0, 0, 7)
    opened = hello + frame(OPEN, figures, flags=REPLY, seq=2, epoch=1)
    stat = opened + frame(STAT, figures, flags=REPLY, seq=3, epoch=1)
    yield "empty", b""
    yield "hello", hello
    yield "hello_refused", frame(HELLO, bytes(40), flags=REPLY, status=9)
    yield "hello_newer", frame(HELLO, struct.pack("<HHIQQ16s", 9, 2, 0, 0, 0, ID), flags=REPLY,
                               status=1)
    yield "full", hello + frame(OPEN, flags=REPLY, status=5, seq=2)
    yield "opened", stat
    yield "put_acks", stat + b"".join(frame(PUT, flags=REPLY, seq=s, epoch=1, page=s, count=1)
                                      for s in range(4, 9))
    yield "get", stat + frame(GET, struct.pack("<Q", 5) + bytes(2 * PAGE), flags=REPLY, seq=4,
                              epoch=1, page=0, count=3, version=2)
    yield "get_short", stat + frame(GET, struct.pack("<Q", 5) + bytes(100), flags=REPLY, seq=4,
                                    epoch=1, page=0, count=3)
    yield "fenced", stat + frame(PUT, flags=REPLY, status=7, seq=4)
    yield "cut", stat[:-5]
    yield "request_instead", hello + frame(OPEN, open_request(), seq=2)


def handover_seeds():
    def plan(pages, runs):
        # Chunks of 16 pages, two servers; runs of (chunks, owner) with one-byte LEB128 numbers.
        head = struct.pack("<IHBBQ", 0x4C50534B, 1, 4, 2, pages)
        return head + bytes((count - 1) << 6 & 0x7F | owner for count, owner in runs)

    inner = plan(48, [(1, 0), (1, 1), (1, 2)])
    server = struct.pack("<H7sQQ", 7, b"tcp:a:1", 64, 1)
    ranks = struct.pack("<Q3H", 3, 200, 3, 0)
    handover = struct.pack("<IHBB16s16sQQQ", 0x4B53504C, 2, 1, 2, ID, TICKET, 48, 16, 32) \
        + 2 * server + struct.pack("<Q", len(inner)) + inner + ranks
    yield "handover", b"\0" + handover
    yield "handover_cut", b"\0" + handover[:-3]
    yield "zero_runs", b"\1" + struct.pack("<IQQIBQIB", 0x4B53435A, 2, 5, 9, 1, 90, 1, 0)
    yield "plan", b"\2" + inner


def main():
    root = pathlib.Path(__file__).resolve().parent / "corpus"
    for target, seeds in (("wire_server_fuzz", server_seeds()),
                          ("wire_client_fuzz", client_seeds()),
                          ("handover_fuzz", handover_seeds())):
        folder = root / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds:
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
