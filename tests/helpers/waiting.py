"""Waiting for what a program does: one limit for all, so long that only what hangs reaches it.

A test that passes waits no longer than the event takes. So the limit may stand far above what an
idle machine needs, and a busy one is no reason to fail.
"""
import time

LIMIT = 600  # seconds


def wait_until(happened):
    """Return once `happened()` is true; AssertionError after `LIMIT` seconds."""
    until = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < until, f'not within {LIMIT} s: {happened}'
        time.sleep(0.01)
