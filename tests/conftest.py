"""For all tests."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.schema import copying_schema
from understudy.controller import migrate

_HERE = Path(__file__).parent
#: Files of several minutes, the longest first.
_LONGEST = (
    "test_matrix.py", "test_matrix_target.py", "test_matrix_power.py", "test_matrix_hypervisor.py", "test_shapes.py",
    "test_source_run.py", "test_controller_restart.py", "test_content.py", "test_cancel.py", "test_source_life.py",
    "test_matrix_source.py", "test_guest_faults.py", "test_run_faults.py", "test_run_changes.py",
    "test_vsphere_to_kvm.py", "test_source_faults.py", "test_target_run.py",
)  # fmt: skip
_THEN = ("system", "lab", "contract")
_FILES_SHOWN = 40


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


@pytest.fixture(scope="session", autouse=True)
def schema() -> Iterator[None]:
    """New databases by copying; the tests of migrations undo it for themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "migrate", copying_schema(migrate.migrate))
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the files, the longest begin first: nobody waits for a long one that began last."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _turn(item.path))


def _turn(path: Path) -> tuple[int, int]:
    part = path.relative_to(_HERE).parts[0]
    if part in ("system", "vsphere") and path.name in _LONGEST:
        return (0, _LONGEST.index(path.name))
    return (1, _THEN.index(part) if part in _THEN else len(_THEN))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With ``--durations``: what the files cost, which decides the order above and what is worth making faster."""
    if not config.getoption("durations"):
        return
    reports = [report for found in terminalreporter.stats.values() for report in found]
    times, tests = defaultdict[str, float](float), Counter[str]()
    for report in reports:
        if isinstance(report, pytest.TestReport):
            file = report.nodeid.partition("::")[0]
            times[file] += report.duration
            tests[file] += report.when == "call"
    terminalreporter.section(f"slowest {_FILES_SHOWN} files")
    slowest = sorted(times.items(), key=lambda item: item[1], reverse=True)[:_FILES_SHOWN]
    for file, seconds in slowest:
        terminalreporter.write_line(f"{seconds:8.1f} s {tests[file]:4d} tests  {file}")
