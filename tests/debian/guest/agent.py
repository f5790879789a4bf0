#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs in the guest: does what the tests ask on a virtio serial port, one JSON object a line.

Every request has an `id` and an `op`, and gets one answer with that id:

    run    a shell command, waited for `seconds`:     {"status": 0, "out": "..."}
    start  one in the background, by a `name`:        {}
    stop   ask it to end (SIGTERM):                   {}
    wait   for its end, `seconds` at most:            {"status": 0 or null, "out": "..."}

Nothing is ever sent unasked. So with no request under way a migration cuts no answer in two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

PORT = "kintsugi.agent"
JOBS = Path("/run/kintsugi")
RETRY_S = 0.05


def port_device() -> str:
    """The port's device."""
    while True:
        for entry in Path("/sys/class/virtio-ports").glob("*"):
            if (entry / "name").read_text().strip() == PORT:
                return f"/dev/{entry.name}"
        time.sleep(RETRY_S)


class Agent:
    """The background jobs and how requests are answered."""

    def __init__(self) -> None:
        self.jobs: dict[str, subprocess.Popen[bytes]] = {}
        JOBS.mkdir(exist_ok=True)

    def run(self, request: dict[str, object]) -> dict[str, object]:
        """A command and its output."""
        try:
            done = subprocess.run(["sh", "-c", str(request["command"])], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
                                  timeout=float(str(request["seconds"])))
        except subprocess.TimeoutExpired as expired:
            return {"status": None, "out": (expired.stdout or b"").decode(errors="replace")}
        return {"status": done.returncode, "out": done.stdout.decode(errors="replace")}

    def start(self, request: dict[str, object]) -> dict[str, object]:
        """A command in the background."""
        name = str(request["name"])
        with (JOBS / f"{name}.out").open("wb") as out:
            self.jobs[name] = subprocess.Popen(["sh", "-c", f"exec {request['command']}"],
                                               stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        return {}

    def stop(self, request: dict[str, object]) -> dict[str, object]:
        """SIGTERM; a job finishes what it is at."""
        self.jobs[str(request["name"])].terminate()
        return {}

    def wait(self, request: dict[str, object]) -> dict[str, object]:
        """How a job ended and what it said; status null while it runs."""
        name = str(request["name"])
        status: int | None = None
        try:
            status = self.jobs[name].wait(float(str(request["seconds"])))
        except subprocess.TimeoutExpired:
            pass
        return {"status": status, "out": (JOBS / f"{name}.out").read_text(errors="replace")}

    def answer(self, line: bytes) -> bytes:
        """Do what a request says."""
        request = json.loads(line)
        reply: dict[str, object]
        try:
            reply = getattr(self, request["op"])(request)
        except Exception as error:  # pylint: disable=broad-exception-caught
            reply = {"error": repr(error)}
        return json.dumps({"id": request["id"], **reply}).encode() + b"\n"


def main() -> None:
    """Serve for ever."""
    agent = Agent()
    port = os.open(port_device(), os.O_RDWR)
    rest = b""
    while True:
        data = os.read(port, 65536)
        if not data:             # nobody is at the other end, for now
            time.sleep(RETRY_S)
            continue
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            reply = agent.answer(line)
            while reply:
                reply = reply[os.write(port, reply):]


if __name__ == "__main__":
    sys.exit(main())
