#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs fio on the data disk, which checks what it reads.

    fioload.py load OFFSET SIZE            write and verify again and again until SIGTERM
    fioload.py write OFFSET SIZE           write once, and verify
    fioload.py verify OFFSET SIZE          verify what `write` has written
    fioload.py measure OFFSET SIZE SECONDS random reads and writes: print what they reached

Prints one JSON object. fio ends with an error, and so do we, at the first block that is wrong.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

DISK = "/dev/disk/by-id/virtio-data"
PROGRESS = "/run/kintsugi/fioload.rounds"


def fio(offset: str, size: str, *options: str) -> dict[str, float]:
    """Run it; its operations a second."""
    command = ["fio", "--name=kintsugi", f"--filename={DISK}", f"--offset={offset}",
               f"--size={size}", "--bs=4k", "--ioengine=libaio", "--iodepth=8", "--direct=1",
               "--thread", "--output-format=json", *options]
    # A SIGTERM is for us: fio, in a session of its own, is to end its round.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False, start_new_session=True)
    if done.returncode != 0 or not done.stdout:
        raise SystemExit(f"fio ended with status {done.returncode}: {done.stdout}{done.stderr}")
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if job["error"]:
        raise SystemExit(f"fio found error {job['error']}: {done.stderr}")
    return {"read_ios": job["read"]["total_ios"], "write_ios": job["write"]["total_ios"],
            "read_per_second": job["read"]["iops"], "write_per_second": job["write"]["iops"]}


def checked(seed: int) -> tuple[str, ...]:
    """Options that make each block carry a checksum, its place and a pattern of the seed."""
    return ("--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", f"--randseed={seed}")


def load(offset: str, size: str) -> dict[str, float]:
    """Rounds of writing and verifying until SIGTERM."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    rounds = 0
    with open(PROGRESS, "w", encoding="ascii") as progress:
        while not stop:
            result = fio(offset, size, *checked(1000 + rounds), "--do_verify=1",
                         "--verify_backlog=128")
            if result["read_ios"] < result["write_ios"]:
                raise SystemExit(f"fio verified too little: {result}")
            rounds += 1
            progress.seek(0)
            progress.write(f"{rounds}\n")
            progress.flush()
    return {"rounds": rounds}


def main(words: list[str]) -> None:
    """Do as the arguments say."""
    what, offset, size = words[:3]
    if what == "load":
        result = load(offset, size)
    elif what == "write":
        result = fio(offset, size, *checked(7), "--do_verify=1")
    elif what == "verify":
        result = fio(offset, size, *checked(7), "--verify_only=1")
    else:
        result = fio(offset, size, "--rw=randrw", "--time_based", f"--runtime={words[3]}")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
