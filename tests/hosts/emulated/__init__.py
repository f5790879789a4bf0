# SPDX-License-Identifier: GPL-2.0-or-later
"""Emulated hosts: machines with virtualization that run one command of this one's."""
