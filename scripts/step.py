#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one long step quietly: output to a log, progress to the terminal, the end on failure.

    step.py NAME LOG ABOUT -- COMMAND...

Says nothing if the command is done within two seconds. Otherwise prints "[NAME] ABOUT", then how
far it is, from lines like ninja's "[12/340]" or ctest's "12/340 Test": in place on a terminal,
else a line every 20 s.
The exit code is the command's.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

QUIET_S = 2
EVERY_S = 20
TAIL_LINES_MAX = 60
SHOWN_LINES_MAX = 200
STEP_RE = re.compile(rb"^(?:\[(\d+)/(\d+)\]|\s*(\d+)/(\d+) Test )")
TROUBLE_RE = re.compile(r"^FAILED:|\*\*\*(Failed|Timeout|Exception|Not Run)")


class Progress:
    """Prints where the command is; a thread calls tick() twice a second."""

    def __init__(self, name, about):
        self.name, self.about = name, about
        self.start = self.last = time.monotonic()
        self.spoke = False
        self.at = b""
        self.terminal = sys.stdout.isatty()

    def elapsed(self):
        return time.monotonic() - self.start

    def tick(self):
        now = time.monotonic()
        if not self.spoke:
            if now - self.start < QUIET_S:
                return
            self.spoke = True
            print(f"[{self.name}] {self.about}", flush=True)
            self.last = now
        if self.terminal:
            print(f"\r[{self.name}] {self.where()}  ", end="", flush=True)
        elif now - self.last >= EVERY_S:
            self.last = now
            print(f"[{self.name}] {self.where()}", flush=True)

    def where(self):
        match = STEP_RE.match(self.at)
        text = f"{self.elapsed():.0f} s"
        if match:
            done, total = (int(number) for number in match.groups() if number)
            text = f"{done} of {total} ({100 * done // max(total, 1)} %), {text}"
        return text

    def finish(self, code, log):
        if self.spoke and self.terminal:
            print()
        if code:
            print(f"[{self.name}] failed after {self.elapsed():.0f} s; the end of {log}:",
                  flush=True)
            lines = pathlib.Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
            first = next((i for i, line in enumerate(lines) if TROUBLE_RE.search(line)),
                         len(lines))
            shown = lines[max(min(first, len(lines) - TAIL_LINES_MAX), 0):]
            if len(shown) > SHOWN_LINES_MAX:
                half = SHOWN_LINES_MAX // 2
                shown = shown[:half] + ["..."] + shown[-half:]
            for line in shown:
                print("  " + line[:400])
        elif self.spoke:
            print(f"[{self.name}] done in {self.elapsed():.0f} s", flush=True)


def main():
    name, log, about, dashes, *command = sys.argv[1:]
    if dashes != "--" or not command:
        sys.exit(__doc__)
    os.makedirs(os.path.dirname(log) or ".", exist_ok=True)
    progress = Progress(name, about)
    stop = threading.Event()

    def ticker():
        while not stop.wait(0.5):
            progress.tick()

    thread = threading.Thread(target=ticker, daemon=True)
    with open(log, "wb", buffering=0) as out:
        out.write(f"$ {' '.join(command)}\n".encode())
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as child:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: child.terminate())
            thread.start()
            for line in child.stdout:
                out.write(line)
                if STEP_RE.match(line):
                    progress.at = line
            code = child.wait()
    stop.set()
    thread.join()
    code = code if code >= 0 else 128 - code
    progress.finish(code, log)
    return code


if __name__ == "__main__":
    sys.exit(main())
