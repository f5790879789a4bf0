# SPDX-License-Identifier: GPL-2.0-or-later
"""The marker of what takes too long for `make test`."""


def pytest_configure(config):
    config.addinivalue_line("markers", "long: for `make test-long`")
