# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated Intel host itself: what it is, and that it tells the truth about a command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from emulated import host
from emulated.intel import IntelHost

RUN = Path(__file__).resolve().parent / "run"
# One processor boots in half the time.
INTEL = IntelHost(cpus=1)


def test_it_is_an_intel_machine_with_ept_and_its_bits(run_host):
    outcome = run_host("sh", "-ec", """
        grep -m1 -o GenuineIntel /proc/cpuinfo
        grep -m1 -w vmx /proc/cpuinfo | grep -w ept | grep -o -w ept_ad
        cd /sys/module/kvm_intel/parameters; grep . ept eptad pml
        nproc; test -c /dev/kvm; echo $KINTSUGI_HOST
        """, config=IntelHost())
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.decode().splitlines() == [
        "GenuineIntel", "ept_ad", "ept:Y", "eptad:Y", "pml:N", "2", "intel"]


def test_output_and_exit_status_are_the_commands(run_host):
    """Also much output, with bytes that a terminal would change."""
    outcome = run_host("sh", "-c", r"seq 1 3000; printf 'a\r\n\000\004\023b\n'; echo err >&2; "
                       "exit 42", config=INTEL)
    assert (outcome.status, outcome.stderr) == (42, b"err\n")
    numbers = b"".join(b"%d\n" % n for n in range(1, 3001))
    assert outcome.stdout == numbers + b"a\r\n\0\4\x13b\n"


def test_programs_bring_their_libraries(run_host, tmp_path):
    """The command, and another program; both at their own paths."""
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\npwd\n/usr/bin/setpriv --version\nkill -SEGV $$\n",
                       encoding="utf-8")
    command.chmod(0o755)
    outcome = run_host("./command", cwd=tmp_path,
                       config=IntelHost(cpus=1, bring=(Path("/usr/bin/setpriv"),)))
    assert outcome.status == 128 + 11, outcome.stderr
    assert outcome.stdout.startswith(f"{tmp_path}\nsetpriv from util-linux ".encode())


def test_command_that_does_not_exist(run_host):
    outcome = run_host("/no/such/command", config=INTEL)
    assert outcome.status == 127 and b"/no/such/command" in outcome.stderr


def test_time_limit(run_host):
    with pytest.raises(host.HostTimeout, match=r"the host's boot was not done after \d+ s"):
        run_host("true", timeout_s=1, config=INTEL)


def test_kernel_panic(run_host):
    with pytest.raises(host.HostPanic, match="sysrq triggered crash"):
        run_host("sh", "-c", "echo c > /proc/sysrq-trigger", config=INTEL)


def test_host_that_ends_early(run_host):
    with pytest.raises(host.HostError, match="without an exit status"):
        run_host("sh", "-c", "echo b > /proc/sysrq-trigger; sleep 100", config=INTEL)


def test_host_that_does_not_start(run_host):
    with pytest.raises(host.HostError, match="(?s)without an exit status.*no_such_option"):
        run_host("true", config=IntelHost(extra=("no_such_option: 1",)))


def test_file_that_cannot_be_brought(run_host):
    with pytest.raises(host.HostError, match="/not/there is no file"):
        run_host("true", config=IntelHost(bring=(Path("/not/there"),)))


def test_command_line():
    done = subprocess.run(
        [str(RUN), "--host", "intel", "--env", "WORD=a b", "--", "sh", "-c",
         'echo "$WORD $1"; exit 3', "sh", "c d"],
        stdout=subprocess.PIPE, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (3, b"a b c d\n")


def test_command_line_refuses_options_of_the_other_kind():
    done = subprocess.run([str(RUN), "--host", "intel", "--writable", "/tmp", "--", "true"],
                          stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"--writable is for --host amd" in done.stderr
