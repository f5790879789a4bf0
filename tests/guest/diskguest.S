/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A boot sector that reads BLOCKS sectors after itself, writes them to the disk again behind
 * those, and says over the serial line that it has: "disk ok", or "disk bad" if the firmware
 * reports an error. So the disk's controller reads into and writes from guest memory.
 */
#define BLOCKS 64
#define AT(label) (0x7c00 + label - start)

    .code16
    .globl start
start:
    cli
    xorw %ax, %ax
    movw %ax, %ss
    movw $0x7c00, %sp
    movw %ax, %ds
    movb $0x42, %ah                     /* extended read */
    movw $AT(packet), %si
    int $0x13
    jc bad
    movl $(1 + BLOCKS), AT(lba)
    movw $0x4300, %ax                   /* extended write */
    movw $AT(packet), %si
    int $0x13
    jc bad
    movw $AT(ok_text), %si
    jmp say
bad:
    movw $AT(bad_text), %si
say:
    xorw %ax, %ax
    movw %ax, %ds
    movw $0x3f8, %dx
next:
    lodsb
    testb %al, %al
    jz end
    outb %al, %dx
    jmp next
end:
    hlt
    jmp end

ok_text:
    .asciz "disk ok\n"
bad_text:
    .asciz "disk bad\n"
    .balign 4
packet:
    .byte 16, 0
    .word BLOCKS
    .word 0, 0x2000                     /* to 0x20000 */
lba:
    .long 1, 0

    .org 510
    .word 0xaa55
