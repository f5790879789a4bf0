#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Print by how much the time stamp counter advances over a loop of 20000 instructions, at least."""

import ctypes
import mmap

TRIES = 5                                         # the timer's interrupt may come in between
READ = bytes((0x0F, 0x31,                         # rdtsc
              0x48, 0xC1, 0xE2, 0x20,             # shl rdx, 32
              0x48, 0x09, 0xD0))                  # or rax, rdx
LOOP = bytes((0x48, 0x89, 0xC6,                   # mov rsi, rax
              0xB9, 0x10, 0x27, 0x00, 0x00,       # mov ecx, 10000
              0xFF, 0xC9,                         # again: dec ecx
              0x75, 0xFC))                        # jnz again
RETURN = bytes((0x48, 0x29, 0xF0,                 # sub rax, rsi
                0xC3))                            # ret


def main():
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(READ + LOOP + READ + RETURN)
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(
        ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    print(min(function() for _ in range(TRIES)))


if __name__ == "__main__":
    main()
