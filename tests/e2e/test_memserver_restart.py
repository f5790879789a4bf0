# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory server under a service manager that keeps its memory: restarted, told to reload, killed.

The manager is played here: what systemd does with FDSTORE=1 and LISTEN_FDS.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kintsugi.memserver import START_S
from kintsugi.util import MIB, PAGE_BYTES, Work, memserver_binary, poll_until, stop_process
from kintsugi.wire import Client, Status

SESSION = bytes(range(16))


class Manager:
    """Starts a server as a service, takes what it says, and keeps what it leaves."""

    def __init__(self, work: Work) -> None:
        self.uri = f"unix:{work.temp}/server.sock"
        self.log = work.logs / "server.log"
        self._notify = work.temp / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._notify))
        self._socket.settimeout(START_S)
        self.stored: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        environment = dict(os.environ, NOTIFY_SOCKET=str(self._notify))
        command = [str(memserver_binary()), "--listen", self.uri, "--capacity", str(16 * MIB)]
        if self.stored:
            # Only the process itself knows its pid, and the first descriptor must be 3.
            environment.update(LISTEN_FDS="1", LISTEN_FDNAMES="kintsugi-arena")
            script = f'export LISTEN_PID=$$; exec "$@" 3<&{self.stored[0]}'
            command = ["bash", "-c", script, "bash", *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log,
                                            pass_fds=self.stored)
        while "READY=1" not in self._take():
            pass

    def _take(self) -> str:
        """One notification."""
        data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_LEN(64))
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[:len(content) // 4 * 4])
        text = data.decode()
        if "FDSTOREREMOVE=1" in text:
            self._forget()
        elif "FDSTORE=1" in text:
            assert "FDNAME=kintsugi-arena" in text
            self.stored.extend(descriptors)
        return text

    def _forget(self) -> None:
        while self.stored:
            os.close(self.stored.pop())

    def signal(self, number: int) -> None:
        """Send the server a signal."""
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status."""
        assert self.process
        return self.process.wait(20)

    def close(self) -> None:
        """End everything."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._forget()
        self._socket.close()


@pytest.fixture
def manager(work: Work) -> Iterator[Manager]:
    """A service manager with a running server."""
    made = Manager(work)
    made.start()
    yield made
    made.close()


def fill(uri: str) -> int:
    """A committed session with 100 pages; returns its epoch."""
    with Client(uri) as client:
        client.hello()
        client.open(SESSION, 1024, name="db-1")
        client.claim(SESSION, client.epoch)
        assert client.commit().status == Status.OK
        for index in range(100):
            client.put(index, bytes([index]) * PAGE_BYTES, version=index + 1)
        return client.epoch


def check(uri: str, epoch: int) -> None:
    """All of it is there."""
    with Client(uri) as client:
        client.hello()
        assert client.attach(SESSION, epoch).status == Status.OK
        for index in range(100):
            assert client.get(index).payload[8:] == bytes([index]) * PAGE_BYTES


def ctl(control: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask a server by its control socket."""
    return subprocess.run([memserver_binary(), "ctl", "--control", control, *arguments, "status"],
                          capture_output=True, text=True, check=False, timeout=60)


def start_alone(work: Work, *options: str | Path, limits: str = "") -> tuple[
        subprocess.Popen[bytes], str, Path]:
    """A server without a manager: process, URI, control socket."""
    uri, control = f"unix:{work.temp}/alone.sock", work.temp / "control"
    ports = work.temp / "ports"
    command = f'{limits} exec "$@"'
    with (work.logs / "alone.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", memserver_binary(), "--listen", uri, "--capacity",
             "16M", "--control", control, "--port-file", ports, *options],
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
            stderr=log)
    poll_until("it serves", lambda: ports.exists() or process.poll() is not None, START_S)
    return process, uri, control


def test_the_operator_is_answered_whoever_else_connects(work: Work) -> None:
    """Connections are bounded by the limit on descriptors too: some are always left."""
    process, uri, control = start_alone(work, "--metrics", "127.0.0.1:0",
                                        limits="ulimit -n 150;")
    clients = []
    try:
        assert "takes 22 connections at once" in (work.logs / "alone.log").read_text()
        metrics = json.loads((work.temp / "ports").read_text())["metrics"]
        for _ in range(150):
            client = socket.socket(socket.AF_UNIX)
            client.connect(uri.removeprefix("unix:"))
            clients.append(client)
        poll_until("more are there than it takes",
                   lambda: "connections are open" in (work.logs / "alone.log").read_text(), 20)
        for _ in range(3):
            done = ctl(control)
            assert done.returncode == 0, done.stderr
            assert "capacity" in done.stdout
            with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=20) as answer:
                assert b"kintsugi_memserver_connections" in answer.read()
        assert "cannot accept" not in (work.logs / "alone.log").read_text()
    finally:
        for client in clients:
            client.close()
        process.kill()
        process.wait()


def test_who_asks_again_and_again_keeps_nobody_out(work: Work) -> None:
    process, _, control = start_alone(work)
    answered, stop = threading.Event(), threading.Event()

    def ask_always() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control))
            client.settimeout(20)
            try:
                while not stop.is_set():
                    client.sendall(b'{"cmd":"status"}\n')
                    if client.recv(65536):
                        answered.set()
            except OSError:
                pass    # closed, to let others in

    greedy = threading.Thread(target=ask_always)
    greedy.start()
    try:
        assert answered.wait(20)
        done = ctl(control, "--timeout", "10")
        assert done.returncode == 0, done.stderr
    finally:
        stop.set()
        greedy.join()
        process.kill()
        process.wait()


def test_ctl_does_not_wait_for_ever(work: Work) -> None:
    process, _, control = start_alone(work)
    try:
        stop_process(process.pid)
        done = ctl(control, "--timeout", "1")
        assert done.returncode == 1
        assert "has not answered for 1 s" in done.stderr and "--timeout" in done.stderr
    finally:
        process.kill()
        process.wait()


def test_a_stopping_server_leaves_its_successors_files(work: Work) -> None:
    """The successor was started by mistake before the end, and its files are there already."""
    process, uri, control = start_alone(work)
    try:
        for path in (Path(uri.removeprefix("unix:")), control, work.temp / "ports"):
            path.unlink()
            path.write_text("the successor's")
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    for path in (Path(uri.removeprefix("unix:")), control, work.temp / "ports"):
        assert path.read_text() == "the successor's"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_the_pages(manager: Manager, how: signal.Signals) -> None:
    """By default, with nothing set up: systemctl restart, an upgrade, a crash; more than once."""
    epoch = fill(manager.uri)
    for _ in range(2):
        manager.signal(how)
        assert manager.wait() == (0 if how == signal.SIGTERM else -how)
        manager.start()
        check(manager.uri, epoch)
    if how == signal.SIGTERM:
        assert "db-1" in manager.log.read_text() and "are left with" in manager.log.read_text()


def test_sighup_does_not_end_it(manager: Manager) -> None:
    epoch = fill(manager.uri)
    manager.signal(signal.SIGHUP)
    poll_until("it has seen the signal", lambda: "SIGHUP" in manager.log.read_text(), 20)
    check(manager.uri, epoch)
    assert manager.process and manager.process.poll() is None


def test_a_server_that_keeps_nothing_says_whose_pages_are_lost(work: Work, tmp_path: Path) -> None:
    uri = f"unix:{work.temp}/alone.sock"
    log = work.logs / "alone.log"
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    with log.open("wb") as output:
        process = subprocess.Popen([memserver_binary(), "--listen", uri, "--capacity", "16M",
                                    "--port-file", tmp_path / "ports"], env=environment,
                                   stderr=output)
    try:
        poll_until("it serves", (tmp_path / "ports").exists, START_S)
        fill(uri)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert "db-1" in log.read_text() and "loses" in log.read_text()
