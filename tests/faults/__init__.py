"""Faults on purpose: kills, broken connections, full disks, and the table of what came of them.

`python -m tests.faults` runs everything against a sandbox in its own process and prints the table that stands in
docs/reliability.md; `tests/test_faults.py` runs a short form of it.
"""
