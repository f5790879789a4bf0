# SPDX-License-Identifier: GPL-2.0-or-later
"""How the outcome of QEMU's own test programs is read, with scripts in their place."""

import importlib.util
import sys
import time

import pytest
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location("qtests", ROOT / "tests" / "qemu" / "qtests.py")
qtests = importlib.util.module_from_spec(SPEC)
sys.modules["qtests"] = qtests
SPEC.loader.exec_module(qtests)

LIST = "if [ \"$1\" = -l ]; then echo '# noise'; echo /a/b; echo /a/b/d; echo /a/c; exit; fi\n"


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A function that puts a script in the place of a program: (runner, its cases)."""
    monkeypatch.setattr(qtests, "KVM", tmp_path / "no-kvm")

    def make(script, limit_s=30):
        program = qtests.Program("program", limit_s, ())
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{LIST}{script}\n", encoding="utf-8")
        path.chmod(0o755)
        made = qtests.Runner(tmp_path)
        return made, made.cases(program)

    return make


def alive(pid):
    """Whether a process runs; if so, it is given some time to end."""
    try:
        if qtests.Path(f"/proc/{pid}/stat").read_text().split()[2] in "ZX":
            return False
    except OSError:
        return False
    time.sleep(0.01)
    return True


def test_table():
    rows = qtests.parse_table("# comment\n\ntests/a 10\ntests/b 20 --full -x # why\n")
    assert [(row.target, row.limit_s, row.arguments) for row in rows] == [
        ("tests/a", 10, ()), ("tests/b", 20, ("--full", "-x"))]
    assert qtests.read_table()
    for text in ("tests/a", "tests/a soon", "tests/a 0", "tests/a 1\ntests/a 2"):
        with pytest.raises(qtests.QtestError):
            qtests.parse_table(text)


def test_each_case_runs_alone(runner):
    made, cases = runner('echo "ok 1 $4"; echo "$*"; echo "$TMPDIR" >&2')
    assert [case.name for case in cases] == ["program:/a/b", "program:/a/b/d", "program:/a/c"]
    outcome = made.run(cases[0])
    assert outcome.verdict == "passed"
    assert outcome.output.splitlines()[:2] == ["ok 1 /a/b", "--tap -k -p /a/b -s /a/b/d"]
    assert not qtests.Path(outcome.output.splitlines()[2]).exists()


@pytest.mark.parametrize("script, verdict, why", [
    ("echo 'ok 1 /a/b # SKIP no such device'", "skipped", "no such device"),
    ("echo 'ok 1 /a/b/1 # SKIP no'; echo 'ok 2 /a/b/2'", "passed", ""),
    ("echo 'ok 1 /a/b'; echo 'not ok 2 /a/b/2'; exit 1", "failed", "exit status 1"),
    ("echo 'not ok 1 /a/b'", "failed", "not ok: /a/b"),
    ("echo 'ok 1 /a/b'; kill -ABRT $$", "failed", "ended by SIGABRT"),
    ("echo 1..0", "failed", "ran no test")])
def test_outcome(runner, script, verdict, why):
    made, cases = runner(script)
    outcome = made.run(cases[0])
    assert outcome.verdict == verdict and why in outcome.why


def test_case_that_hangs_is_ended_with_its_children(runner, tmp_path):
    made, cases = runner(f"sleep 300 & echo $! > {tmp_path}/child; wait", limit_s=1)
    outcome = made.run(cases[0])
    assert outcome.verdict == "failed" and outcome.why == "not done after 1 s"
    child = int((tmp_path / "child").read_text())
    assert any(not alive(child) for _ in range(1000)), "it still runs"


def test_program_that_lists_nothing_is_an_error(runner, tmp_path):
    (tmp_path / "program").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "program").chmod(0o755)
    with pytest.raises(qtests.QtestError, match="lists no test"):
        qtests.Runner(tmp_path).cases(qtests.Program("program", 30, ()))
