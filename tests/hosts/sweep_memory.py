#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write to ranges of physical memory through /dev/mem: sweep_memory.py START:BYTES:ROUNDS..."""

import mmap
import os
import sys

BLOCK_BYTES = 1 << 20


def main() -> None:
    memory = os.open("/dev/mem", os.O_RDWR | os.O_CLOEXEC)
    for word in sys.argv[1:]:
        start, size, rounds = (int(text, 0) for text in word.split(":"))
        with mmap.mmap(memory, size, offset=start) as area:
            for number in range(rounds):
                block = bytes([number + 1]) * BLOCK_BYTES
                for offset in range(0, size, BLOCK_BYTES):
                    area[offset:offset + BLOCK_BYTES] = block
                assert area[size - 1] == number + 1
        print(f"swept {start:#x}")


if __name__ == "__main__":
    main()
