# SPDX-License-Identifier: GPL-2.0-or-later
"""The command lines a newcomer meets: README, make help, .ci/run, test-all, step.py."""

import importlib.machinery
import importlib.util
import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = ROOT / "README.md"


def load_test_all():
    loader = importlib.machinery.SourceFileLoader("test_all", str(ROOT / "scripts" / "test-all"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("test_all", loader))
    loader.exec_module(module)
    return module


def test_ci_runs_the_readmes_test_command():
    readme = README.read_text(encoding="utf-8")
    lines = [line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
             if line and not line.startswith("#")]
    assert lines == ["set -eu", 'cd "$(dirname "$0")/.."', "exec sh scripts/run test"]
    assert re.search(r"^ *sh scripts/run test\b", readme, re.M)
    assert re.search(r"^ *sh scripts/run demo\b", readme, re.M)


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.M)).split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                           check=True).stdout
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("  ")} == phony
    for name in ("demo", "test", "check", "test-e2e", "lint", "tidy", "bench"):
        assert name in phony


def test_run_passes_its_arguments_to_make():
    done = subprocess.run(["sh", str(ROOT / "scripts" / "run"), "-n", "tidy"], cwd="/", text=True,
                          stdout=subprocess.PIPE, check=True)
    assert "tidy.py" in done.stdout


@pytest.mark.parametrize("name", ["a b", "a:b", "a$b", "a'b", "a#b"])
def test_run_refuses_a_path_that_cannot_be_built_in(tmp_path, name):
    checkout = tmp_path / name
    (checkout / "scripts").mkdir(parents=True)
    (checkout / "scripts" / "run").write_bytes((ROOT / "scripts" / "run").read_bytes())
    (checkout / "Makefile").write_text("all:\n\t@echo made\n")
    done = subprocess.run(["sh", str(checkout / "scripts" / "run"), "all"], text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and not done.stdout
    assert "move the checkout" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("trixie",), ("../trixie", "true"), ("", "true")])
def test_root_of_a_release_needs_its_name_and_a_command(arguments):
    done = subprocess.run([str(ROOT / "scripts" / "debian_root.py"), *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 1 and "debian_root.py RELEASE COMMAND..." in done.stdout


def test_package_list_has_no_duplicates():
    done = subprocess.run([str(ROOT / "scripts" / "deps.sh"), "--list"], text=True,
                          stdout=subprocess.PIPE, check=True)
    names = done.stdout.split()
    assert len(names) == len(set(names)) > 30


@pytest.mark.parametrize("text, expected", [
    ('<testsuite><testcase name="a" status="run"/></testsuite>', (1, 0, 0)),
    ('<testsuites><testsuite><testcase name="a"><failure/></testcase>'
     '<testcase name="b"><error/></testcase><testcase name="c"/></testsuite></testsuites>',
     (1, 2, 0)),
    ('<testsuite><testcase name="a" status="notrun"><skipped message="why"/></testcase>'
     '</testsuite>', (0, 0, 1)),
])
def test_results_are_counted(tmp_path, text, expected):
    path = tmp_path / "r.xml"
    path.write_text(text, encoding="utf-8")
    outcome = load_test_all().Outcome("part")
    outcome.read(path)
    assert (outcome.passed, len(outcome.failed), len(outcome.skipped)) == expected


def part(tmp_path, monkeypatch, recipe, limit_s=30):
    module = load_test_all()
    (tmp_path / "Makefile").write_text("part:\n\t@" + recipe + "\n", encoding="utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module.run_part("part", "r.txt", limit_s, "[1/1]")


@pytest.mark.parametrize("recipe, passed, failed", [
    ("echo pass one > r.txt", 1, 0),
    ("echo pass one > r.txt; exit 1", 1, 1),
    ("true", 0, 1),
    ("echo skip one: no kvm > r.txt", 0, 1),
    ("echo fail one > r.txt; exit 1", 0, 1),
])
def test_part_that_runs_nothing_or_breaks_is_a_failure(tmp_path, monkeypatch, recipe, passed,
                                                        failed):
    outcome = part(tmp_path, monkeypatch, recipe)
    assert (outcome.passed, len(outcome.failed)) == (passed, failed)


def test_part_that_hangs_is_ended(tmp_path, monkeypatch):
    outcome = part(tmp_path, monkeypatch, "sleep 60", limit_s=1)
    assert outcome.failed == ["part: not done after 1 s"]


def test_step_shows_the_end_of_the_log_and_keeps_the_code(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "step.py"), "name", str(tmp_path / "log"), "about",
         "--", "sh", "-c", "echo the reason; exit 7"],
        text=True, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 7
    assert "the reason" in done.stdout
