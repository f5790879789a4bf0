#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a guest of a few bytes under /dev/kvm: it writes one letter to a port and halts."""

import ctypes
import fcntl
import mmap
import os
import struct

KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_CREATE_VCPU = 0xAE01, 0xAE04, 0xAE41
KVM_RUN, KVM_SET_USER_MEMORY_REGION = 0xAE80, 0x4020AE46
KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS = 0x4090AE82, 0x8138AE83, 0x4138AE84
KVM_EXIT_IO, KVM_EXIT_HLT = 2, 5
SREGS_BYTES, CS_BASE, CS_SELECTOR = 0x138, 0, 12
CODE = bytes((0xB0, ord("K"),           # mov al, 'K'
              0xBA, 0xF8, 0x03,         # mov dx, 0x3f8
              0xEE,                     # out dx, al
              0xF4))                    # hlt


def main():
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    memory = mmap.mmap(-1, 4096)
    memory.write(CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0x1000, 4096, address))
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
    sregs = bytearray(SREGS_BYTES)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
    struct.pack_into("<Q", sregs, CS_BASE, 0)
    struct.pack_into("<H", sregs, CS_SELECTOR, 0)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
    regs = [0] * 18
    regs[16], regs[17] = 0x1000, 2      # rip, rflags
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("<18Q", *regs))
    text = ""
    while True:
        fcntl.ioctl(vcpu, KVM_RUN, 0)
        reason, = struct.unpack_from("<I", run, 8)
        if reason == KVM_EXIT_HLT:
            break
        if reason != KVM_EXIT_IO:
            raise SystemExit(f"exit reason {reason}")
        offset, = struct.unpack_from("<Q", run, 40)
        text += chr(run[offset])
    print(f"guest says {text}")


if __name__ == "__main__":
    main()
