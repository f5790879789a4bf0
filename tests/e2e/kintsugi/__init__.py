# SPDX-License-Identifier: GPL-2.0-or-later
"""Run guests, memory servers and migrations between them: for the tests, the demo, the benchmarks.

Only the standard library is used, so that scripts/demo needs nothing else.
"""
