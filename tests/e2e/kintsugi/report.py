# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failed test's report says of its logs."""

from __future__ import annotations

import pytest


def add_logs(item: pytest.Item, report: pytest.TestReport) -> None:
    """The state of everything that lives, and where the logs are, for a test with a `work`."""
    work = getattr(item, "funcargs", {}).get("work")
    if report.failed and work is not None:
        if report.when == "call":
            report.sections.append(("state", work.write_state().read_text()))
        files = "\n".join(f"  {path}" for path in sorted(work.logs.iterdir()))
        report.sections.append(("logs", files))
