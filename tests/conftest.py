"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    """Let Ctrl-C reach tests and their children: a shell starts background jobs with SIGINT ignored.

    Properties are tried with the same examples every time, and a busy machine fails none: a limit of time for one
    example proves nothing about the code.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile(
        "understudy", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    settings.load_profile("understudy")
