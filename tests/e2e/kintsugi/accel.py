# SPDX-License-Identifier: GPL-2.0-or-later
"""Which accelerator really runs a guest here."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from .util import HarnessError, Work
from .vm import Vm, VmConfig

PROBE_S = 15.0


@dataclass(frozen=True)
class Accelerator:
    """The accelerator to use, and why, as a sentence for people."""

    name: str
    reason: str


def probe_accelerator(work: Work, binary: Path | None = None) -> Accelerator:
    """Boot a guest under KVM and see its marker; TCG if that does not happen.

    That /dev/kvm exists proves nothing: nested or restricted KVM may not run a stock guest.
    KINTSUGI_ACCEL=tcg|kvm decides without a probe.
    """
    forced = os.environ.get("KINTSUGI_ACCEL")
    if forced:
        return Accelerator(forced, f"{forced.upper()}, because KINTSUGI_ACCEL says so")
    if not os.path.exists("/dev/kvm"):
        return Accelerator("tcg", "TCG, because there is no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator("tcg", "TCG, because /dev/kvm may not be opened")
    config = VmConfig(accel="kvm", pattern_mib=1, memory_mib=160).with_guest(run="probe")
    if binary:
        config = replace(config, binary=binary)
    try:
        vm = Vm("kvm-probe", config, work)
    except HarnessError:
        return Accelerator("tcg", "TCG, because QEMU cannot start with KVM; "
                                  f"see {work.logs}/kvm-probe.log")
    try:
        vm.console.wait("probe ok", PROBE_S)
        return Accelerator("kvm", "KVM, which ran a probe guest")
    except HarnessError:
        return Accelerator("tcg", f"TCG, because KVM ran no probe guest within {PROBE_S:g} s; "
                                  f"see {work.logs}/kvm-probe.console")
    finally:
        vm.end()
