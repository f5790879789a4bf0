// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A guest without an operating system, which touches the physical memory it is told to and nothing
 * else worth counting: what a meter of memory traffic has to report is known exactly. It is loaded
 * by QEMU's -kernel (multiboot), runs in 32-bit mode without paging, and takes its tasks from the
 * command line, in order:
 *
 *   CPU:OP:START:BYTES:ROUNDS    0:w:0x4000000:0x1000000:3
 *
 * CPU is 0 or 1; processor 1 is started if it has a task, and the two run at the same time.
 * OP is r (read), w (write) each 4 bytes, or x (write 4 bytes across each second line's end).
 * It prints "begin", "end" or an error to the port 0xe9 (-device isa-debugcon), and powers off.
 */
#include <stdint.h>

#define TASKS_MAX 64
#define LINE_BYTES 64
#define TRAMPOLINE 0x8000
#define APIC_ICR_LOW 0xfee00300
#define APIC_ICR_HIGH 0xfee00310
#define APIC_SPURIOUS 0xfee000f0
#define STACK_BYTES 8192

struct task {
    uint32_t cpu, op, start, bytes, rounds;
};

static struct task tasks[TASKS_MAX];
static unsigned task_count;
static volatile uint32_t second_is_done;
uint8_t stacks[2][STACK_BYTES];

/* Multiboot header, entry of processor 0, and what processor 1 runs from real mode on. */
__asm__(".section .multiboot, \"a\"\n"
        ".align 4\n"
        ".long 0x1badb002, 0, -0x1badb002\n"
        ".text\n"
        ".globl _start\n"
        "_start:\n"
        "  cli\n"
        "  mov $stacks + 8192, %esp\n"
        "  push %ebx\n"
        "  call first\n"
        ".code16\n"
        "trampoline:\n"
        "  cli\n"
        "  xor %ax, %ax\n"
        "  mov %ax, %ds\n"
        "  lgdtl 0x8000 + gdt_at - trampoline\n"
        "  mov %cr0, %eax\n"
        "  or $1, %al\n"
        "  mov %eax, %cr0\n"
        "  ljmpl $8, $second_start\n"
        ".align 8\n"
        "gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
        "gdt_at: .word 23\n"
        "  .long 0x8000 + gdt - trampoline\n"
        "trampoline_end:\n"
        ".code32\n"
        "second_start:\n"
        "  mov $16, %ax\n"
        "  mov %ax, %ds\n"
        "  mov %ax, %es\n"
        "  mov %ax, %ss\n"
        "  mov $stacks + 2 * 8192, %esp\n"
        "  call second\n");

extern uint8_t trampoline[], trampoline_end[];

static void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void print(const char *text)
{
    while (*text) {
        out8(0xe9, (uint8_t)*text++);
    }
}

static __attribute__((noreturn)) void power_off(void)
{
    __asm__ volatile("outw %0, %1" : : "a"((uint16_t)0x2000), "Nd"((uint16_t)0x604));
    for (;;) {
        __asm__ volatile("hlt");
    }
}

/* The number at *text, to the next ':', ' ' or the end; *text is moved behind what ended it. */
static uint32_t number(const char **text)
{
    uint32_t value = 0, base = 10;

    if ((*text)[0] == '0' && (*text)[1] == 'x') {
        base = 16;
        *text += 2;
    }
    for (; **text && **text != ':' && **text != ' '; (*text)++) {
        uint32_t digit = **text <= '9' ? **text - '0' : **text - 'a' + 10;

        if (digit >= base) {
            print("error: not a number\n");
            power_off();
        }
        value = value * base + digit;
    }
    *text += **text == ':';
    return value;
}

static void read_tasks(const char *text)
{
    /* The first word is the kernel's name. */
    for (;;) {
        while (*text && *text != ' ') {
            text++;
        }
        while (*text == ' ') {
            text++;
        }
        if (!*text) {
            return;
        }
        if (task_count == TASKS_MAX) {
            print("error: too many tasks\n");
            power_off();
        }
        struct task *task = &tasks[task_count++];
        task->cpu = number(&text);
        task->op = (uint8_t)*text++;
        text += *text == ':';
        task->start = number(&text);
        task->bytes = number(&text);
        task->rounds = number(&text);
    }
}

static void perform(const struct task *task)
{
    for (uint32_t round = 0; round < task->rounds; round++) {
        const uint32_t end = task->start + task->bytes;

        if (task->op == 'r') {
            for (uint32_t at = task->start; at < end; at += 4) {
                (void)*(volatile uint32_t *)at;
            }
        } else if (task->op == 'w') {
            for (uint32_t at = task->start; at < end; at += 4) {
                *(volatile uint32_t *)at = round;
            }
        } else if (task->op == 'x') {
            for (uint32_t at = task->start + LINE_BYTES - 2; at < end; at += 2 * LINE_BYTES) {
                *(volatile uint32_t *)at = round;
            }
        }
    }
}

static void perform_all(uint32_t cpu)
{
    for (unsigned i = 0; i < task_count; i++) {
        if (tasks[i].cpu == cpu) {
            perform(&tasks[i]);
        }
    }
}

__attribute__((noreturn)) void second(void)
{
    perform_all(1);
    second_is_done = 1;
    for (;;) {
        __asm__ volatile("cli; hlt");
    }
}

static void start_second(void)
{
    for (uint8_t *from = trampoline, *to = (uint8_t *)TRAMPOLINE; from < trampoline_end;) {
        *to++ = *from++;
    }
    *(volatile uint32_t *)APIC_SPURIOUS = 0x1ff;
    *(volatile uint32_t *)APIC_ICR_HIGH = 1 << 24;
    *(volatile uint32_t *)APIC_ICR_LOW = 0x4500;                    /* INIT */
    *(volatile uint32_t *)APIC_ICR_LOW = 0x4600 | TRAMPOLINE >> 12; /* SIPI */
}

__attribute__((noreturn)) void first(const uint32_t *multiboot_info)
{
    uint32_t second_has_tasks = 0;

    read_tasks((const char *)multiboot_info[4]);
    for (unsigned i = 0; i < task_count; i++) {
        second_has_tasks |= tasks[i].cpu == 1;
    }
    print("begin\n");
    if (second_has_tasks) {
        start_second();
    }
    perform_all(0);
    while (second_has_tasks && !second_is_done) {
        __asm__ volatile("pause");
    }
    print("end\n");
    power_off();
}
