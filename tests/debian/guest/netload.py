#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches files from the host by HTTP.

    netload.py fetch URL DIRECTORY COUNT   files 0 to COUNT-1 into the directory
    netload.py load URL COUNT DIGEST       fetch them again and again until SIGTERM

The load compares the SHA-256 of all files together. A connection that breaks, as user networking's
do when a VM moves to another process, is made anew; a wrong byte is an error.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import urllib.request
from pathlib import Path

PROGRESS = "/run/kintsugi/netload.rounds"
TIMEOUT_S = 10
BROKEN_MAX = 100


def get(url: str, index: int) -> bytes:
    """One file."""
    with urllib.request.urlopen(f"{url}/{index}", timeout=TIMEOUT_S) as answer:
        data: bytes = answer.read()
        if len(data) != int(answer.headers["Content-Length"]):
            raise OSError("it broke off")
    return data


def load(url: str, count: int, wanted: str) -> dict[str, int]:
    """Rounds until SIGTERM."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    rounds = broken = 0
    with open(PROGRESS, "w", encoding="ascii") as progress:
        while not stop:
            digest = hashlib.sha256()
            index = 0
            while index < count and not stop:
                try:
                    digest.update(get(url, index))
                except OSError:
                    broken += 1
                    if broken > BROKEN_MAX:
                        raise
                else:
                    index += 1
            if index < count:
                break
            if digest.hexdigest() != wanted:
                raise SystemExit(f"round {rounds}: the files came wrong")
            rounds += 1
            progress.seek(0)
            progress.write(f"{rounds}\n")
            progress.flush()
    return {"rounds": rounds, "broken": broken}


def main(words: list[str]) -> None:
    """Do as the arguments say."""
    if words[0] == "load":
        print(json.dumps(load(words[1], int(words[2]), words[3])))
        return
    Path(words[2]).mkdir(exist_ok=True)
    for index in range(int(words[3])):
        (Path(words[2]) / f"{index:03}").write_bytes(get(words[1], index))


if __name__ == "__main__":
    main(sys.argv[1:])
