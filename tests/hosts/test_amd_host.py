# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated AMD host itself: what it is, and that it tells the truth about a command."""

from __future__ import annotations

import os
import pty
import re
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from emulated import host
from emulated.amd import AmdHost

RUN = Path(__file__).resolve().parent / "run"


def test_output_and_exit_status_are_the_commands(run_host):
    outcome = run_host("sh", "-c", "echo out; echo err >&2; exit 42")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (42, b"out\n", b"err\n")


def test_much_output_arrives_whole(run_host):
    outcome = run_host("sh", "-c", "seq 1 60000")
    assert outcome.stdout.split() == [b"%d" % n for n in range(1, 60001)]


def test_death_by_a_signal_is_told_as_by_a_shell(run_host):
    assert run_host("sh", "-c", "kill -SEGV $$").status == 128 + 11


def test_command_that_does_not_exist(run_host):
    outcome = run_host("/no/such/command")
    assert outcome.status == 127 and b"/no/such/command" in outcome.stderr


def test_it_is_an_amd_machine_with_svm_and_npt(run_host):
    outcome = run_host("sh", "-ec", "grep -m1 AuthenticAMD /proc/cpuinfo; "
                       "grep -m1 -w svm /proc/cpuinfo | grep -qw npt; nproc; test -c /dev/kvm; "
                       "cat /sys/module/kvm_amd/parameters/npt")
    assert outcome.status == 0, outcome.stderr
    lines = outcome.stdout.split()
    assert b"AuthenticAMD" in lines and lines[-2:] == [b"2", b"Y"]


def test_it_sees_our_files_and_writes_only_where_it_may(run_host, tmp_path):
    (tmp_path / "given").write_text("from outside\n", encoding="utf-8")
    shared = tmp_path / "shared"
    shared.mkdir()
    outcome = run_host(
        "sh", "-ec", "cat given; echo lost > given; cat given; echo kept > shared/new; pwd",
        cwd=tmp_path, config=AmdHost(writable=(shared,)))
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout == f"from outside\nlost\n{tmp_path}\n".encode()
    assert (tmp_path / "given").read_text(encoding="utf-8") == "from outside\n"
    assert (shared / "new").read_text(encoding="utf-8") == "kept\n"


def test_what_programs_expect_of_a_system_is_there(run_host):
    outcome = run_host("sh", "-ec", """
        for path in /proc/self/pagemap /sys/kernel/debug/kvm /sys/kernel/mm/ksm/run \\
                    /sys/kernel/mm/page_idle/bitmap /dev/shm /dev/pts/ptmx /dev/hugepages \\
                    /dev/userfaultfd /sys/fs/cgroup/cgroup.procs /dev/fd/0; do
            test -e $path || echo "$path is missing"
        done
        echo x > /dev/shm/x; echo y > /tmp/kintsugi-y; echo 4 > /proc/sys/vm/nr_hugepages
        python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); \\
            socket.create_connection(s.getsockname())'
    """)
    assert (outcome.status, outcome.stdout) == (0, b""), outcome.stderr


def test_time_limit(run_host):
    with pytest.raises(host.HostTimeout, match="the command was not done after"):
        run_host("sh", "-c", "echo before; sleep 1000", timeout_s=40)


def test_kernel_panic(run_host):
    with pytest.raises(host.HostPanic, match="sysrq triggered crash"):
        run_host("sh", "-c", "echo c > /proc/sysrq-trigger")


def test_host_that_ends_early(run_host):
    with pytest.raises(host.HostError, match="without an exit status"):
        run_host("sh", "-c", "echo b > /proc/sysrq-trigger; sleep 100")


def test_host_that_does_not_start(run_host):
    with pytest.raises(host.HostError, match="(?s)without an exit status.*no-such-device"):
        run_host("true", config=AmdHost(extra=("-device", "no-such-device")))


def test_writable_directory_that_does_not_exist(run_host):
    with pytest.raises(host.HostError, match="/not/there is no directory"):
        run_host("true", config=AmdHost(writable=(Path("/not/there"),)))


def test_root_that_cannot_be_mounted(run_host):
    config = AmdHost(append=("initcall_blacklist=p9_virtio_init",))
    with pytest.raises(host.HostError, match="could not be set up: mount of 9p on /lower"):
        run_host("true", config=config)


def test_command_line_passes_everything_on():
    done = subprocess.run(
        [str(RUN), "--env", "WORD=a b", "--", "sh", "-c", 'echo "$WORD $1"; exit 3', "sh", "c d"],
        stdout=subprocess.PIPE, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (3, b"a b c d\n")


def test_command_line_tells_a_panic_and_a_time_limit():
    done = subprocess.run([str(RUN), "--", "sh", "-c", "echo c > /proc/sysrq-trigger"],
                          stderr=subprocess.PIPE, check=False)
    assert done.returncode == host.STATUS_HOST and b"kernel panicked" in done.stderr
    done = subprocess.run([str(RUN), "--timeout", "2", "--", "sleep", "1000"],
                          stderr=subprocess.PIPE, check=False)
    assert done.returncode == host.STATUS_TIMEOUT and b"not done after 2 s" in done.stderr


class Terminal:
    """The terminal of a program, and who sits at it."""

    def __init__(self, *command: str, limit_s: float) -> None:
        self.deadline = time.monotonic() + limit_s
        self.screen = b""
        self.master, theirs = pty.openpty()
        self.child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs,
                                      start_new_session=True, env={**os.environ, "TERM": "dumb"})
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)

    def read_until(self, pattern: bytes) -> None:
        """Reads on until the pattern, and forgets the screen up to there."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.master, selectors.EVENT_READ)
            while not (match := re.search(pattern, self.screen)):
                assert selector.select(self.deadline - time.monotonic()), self.screen
                self.screen += os.read(self.master, 4096)
        self.screen = self.screen[match.end():]

    def type(self, text: bytes) -> None:
        """Does what a keyboard does."""
        os.write(self.master, text)

    def status(self) -> int:
        """The exit status, once the program has ended."""
        return self.child.wait(self.deadline - time.monotonic())


def test_shell_on_a_terminal(slower):
    """Typed text comes back from the terminal, so no answer waited for is part of it. HOME keeps
    out the prompt and profile of whoever runs the test."""
    with Terminal(str(RUN), "--shell", "--env", "HOME=/nonexistent",
                  limit_s=120 * slower) as terminal:
        terminal.read_until(rb"# $")
        terminal.type(b"test -t 0 && echo answer $((6 * 7)); sleep 1000\n")
        terminal.read_until(rb"answer 42\s")
        terminal.type(b"\x03")
        terminal.read_until(rb"# $")
        terminal.type(b"exit 5\n")
        terminal.read_until(rb"logout")
        assert terminal.status() == 5


def test_gdb_stops_the_kernel_where_it_begins(slower):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with subprocess.Popen([str(RUN), "--gdb", str(port), "--timeout", str(120 * slower), "--",
                           "sh", "-c", "echo done; exit 6"], stdout=subprocess.PIPE) as child:
        gdb = subprocess.run(
            ["gdb", "-nx", "-batch", str(host.kernel().with_name("vmlinux")),
             "-ex", "set tcp connect-timeout 60", "-ex", f"target remote :{port}",
             "-ex", "hbreak start_kernel", "-ex", "continue", "-ex", "info symbol $rip",
             "-ex", "detach"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True)
        out, _ = child.communicate()
    assert "start_kernel in section" in gdb.stdout
    assert (child.returncode, out) == (6, b"done\n")


def test_complaints_of_the_kernel_are_found(tmp_path):
    log = tmp_path / "console.log"
    lines = [
        "[    1.000000] WARNING: CPU: 0 PID: 1 at mm/ksm.c:1 f+0x1/0x2",
        "[    1.000000] BUG: KASAN: use-after-free in f+0x1/0x2",
        "[    1.000000] INFO: task x:1 blocked for more than 120 seconds.",
        "[    1.000000] rcu: INFO: rcu_sched self-detected stall on CPU",
        "[    1.000000] WARNING: possible circular locking dependency detected",
        "[    1.000000] =============================",
        "[    1.000000] WARNING: suspicious RCU usage",
    ]
    good = ["[    0.000000] Linux version 6.12", "[    0.1] ACPI: no BUG here"]
    log.write_text("\n".join(good + lines) + "\n", encoding="utf-8")
    found = host.Outcome(0, b"", b"", log).complaints()
    assert found == [line for line in lines if "====" not in line]


def test_kvm_runs_a_guest(run_host, tmp_path):
    """The smallest guest there is: real mode, one byte to a port, halt."""
    program = Path(__file__).with_name("tiny_guest.py")
    outcome = run_host(sys.executable, str(program))
    assert (outcome.status, outcome.stdout) == (0, b"guest says K\n"), outcome.stderr


def test_time_can_count_instructions(run_host):
    program = Path(__file__).with_name("count_loop.py")
    config = AmdHost(cpus=1, count_instructions=True)
    outcome = run_host(sys.executable, str(program), config=config)
    assert outcome.status == 0, outcome.stderr
    assert 20000 <= int(outcome.stdout) <= 20016
