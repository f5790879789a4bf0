#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory server that behaves badly, to see what its clients do.

Run as a program it listens on a TCP port, which it prints, until it is interrupted.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import threading

try:
    from .wire import (HELLO_REPLY, SESSION_REPLY, FLAG_REPLY, VERSION, Frame, Op, Status,
                       receive_frame)
except ImportError:  # run as a program
    import sys
    from pathlib import Path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kintsugi.wire import (HELLO_REPLY, SESSION_REPLY, FLAG_REPLY, VERSION, Frame, Op, Status,
                               receive_frame)

# What each mode does, for --help and for the tests.
MODES = {
    "version": "answers Hello with status VERSION and a version of its own",
    "newer": "answers Hello with OK and a version nobody asked for",
    "close": "closes each connection at once",
    "close-hello": "closes after Hello was asked",
    "close-open": "closes after Open was asked",
    "close-put": "closes at the tenth Put",
    "never": "takes connections and never answers",
    "never-put": "answers all but Put",
    "garbage": "answers with random bytes",
    "huge": "answers with a frame that claims a payload of 4 GiB",
    "wrong-seq": "answers Put with a sequence number nobody used",
    "full": "refuses Open for lack of capacity",
    "put-full": "takes Open and refuses each Put for lack of capacity",
    "internal": "takes Open and fails each Put",
}
PAGES = 1 << 20


class BadServer:
    """Serves in threads until close(). It stores nothing."""

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"no mode {mode}; there are {', '.join(MODES)}")
        self.mode = mode
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._puts = 0
        self.connections = 0
        self.uri = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and close all connections."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._thread.join(5)

    def wait(self) -> None:
        """Serve until close() is called elsewhere."""
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.mode == "never":
                while connection.recv(65536):
                    pass
            elif self.mode != "close":
                while self._answer(connection, receive_frame(connection)):
                    pass
        except (OSError, EOFError):
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, request: Frame) -> bool:
        """Answer one request; False closes the connection."""
        mode = self.mode
        op = request.op
        reply = Frame(op, FLAG_REPLY, seq=request.seq, epoch=1, page=request.page,
                      count=request.count)
        if mode == "garbage":
            connection.sendall(os.urandom(4096))
            return True
        if mode == "huge":
            data = bytearray(reply.pack())
            struct.pack_into("<I", data, 8, 0xFFFFFFFF)
            connection.sendall(data)
            return True
        if op == Op.HELLO:
            reply.epoch = 0
            version = {"version": 99, "newer": 99}.get(mode, VERSION)
            reply.status = Status.VERSION if mode == "version" else Status.OK
            reply.payload = HELLO_REPLY.pack(version, version, 0, PAGES, PAGES, bytes(16))
            if mode == "close-hello":
                return False
        elif op in (Op.OPEN, Op.ATTACH, Op.CLAIM, Op.RECLAIM, Op.STAT):
            if mode == "close-open":
                return False
            if mode == "full":
                reply.status = Status.FULL
            else:
                reply.payload = SESSION_REPLY.pack(PAGES, 0, PAGES, 0, 0, 0)
        elif op == Op.PUT:
            self._puts += 1
            if mode == "never-put":
                return True
            if mode == "close-put" and self._puts >= 10:
                return False
            if mode == "wrong-seq":
                reply.seq = request.seq + (1 << 40)
            elif mode == "put-full":
                reply.status = Status.FULL
            elif mode == "internal":
                reply.status = Status.INTERNAL
        connection.sendall(reply.pack())
        return True


def main() -> None:
    """Serve until interrupted."""
    text = "\n".join(f"  {mode:12} {what}" for mode, what in MODES.items())
    parser = argparse.ArgumentParser(description=f"{__doc__}\nmodes:\n{text}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=sorted(MODES), metavar="MODE")
    server = BadServer(parser.parse_args().mode)
    print(server.uri, flush=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        server.close()


if __name__ == "__main__":
    main()
