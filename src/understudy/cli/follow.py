"""Following long acts to their end: live bars on a terminal, plain lines elsewhere, nothing with ``--json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from understudy.cli.app import App
from understudy.cli.output import answer, console, printable
from understudy.cli.progress import VerifyLine, plain_events, progress_lines
from understudy.cli.shapes import session_shape
from understudy.cli.summary import show_session
from understudy.controller.records import ReplicaRecord, VerifyAnswer, VerifyWish
from understudy.model.session import SessionReport
from understudy.mover.api import Progress
from understudy.storage.values import RebuiltReplica

if TYPE_CHECKING:
    from rich.table import Table

OnReport = Callable[[SessionReport], None]

_BAR_WIDTH = 24


def run_to_end(app: App, session_id: int) -> SessionReport:
    """See a queued session to its end, showing how it goes, then what became of it; its final report."""
    report = see_to_end(app, session_id)
    answer(app, session_shape(report), lambda: show_session(report))
    return report


def see_to_end(app: App, session_id: int) -> SessionReport:
    """See a queued session to its end, showing how it goes; its final report."""
    with _session_view(app) as on_report:
        return app.services.run_session(session_id, on_report)


def verify_to_end(app: App, record: ReplicaRecord, wish: VerifyWish) -> VerifyAnswer:
    """Verify a restore point, showing how it goes."""
    with _reading_view(app, f"{record.name} {wish.point}") as on_progress:
        return app.services.verify_point(record, wish, on_progress)


def rebuild_to_end(app: App, datastore: str, name: str, dry_run: bool) -> RebuiltReplica:
    """Make the record of a replica again, showing how it goes."""
    with _reading_view(app, name) as on_progress:
        return app.services.rebuild_replica(datastore, name, dry_run, on_progress)


@contextmanager
def _session_view(app: App) -> Iterator[OnReport | None]:
    """What shows a report; None where only the end is to be seen."""
    if app.json:
        yield None
    elif sys.stdout.isatty():
        with _live_session() as on_report:
            yield on_report
    else:
        yield _plain_session()


@contextmanager
def _live_session() -> Iterator[OnReport]:
    from rich.live import Live

    # It is drawn when a report comes, not by a thread of its own; it goes away at the end, the summary stays.
    with Live(console=console(), auto_refresh=False, transient=True) as live:
        yield lambda report: live.update(_bars(report), refresh=True)


def _bars(report: SessionReport) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=False)
    for line in progress_lines(report):
        bar = ProgressBar(total=1.0, completed=line.fraction, width=_BAR_WIDTH)
        facts = (line.amount, line.rate, f"{line.remaining} left" if line.remaining else "")
        grid.add_row(Text(printable(line.vm)), Text(line.disk), Text(printable(line.doing)), bar, *map(Text, facts))
    return grid


def _plain_session() -> OnReport:
    last: SessionReport | None = None

    def show(report: SessionReport) -> None:
        nonlocal last
        for event in plain_events(last, report):
            click.echo(printable(event))
        last = report

    return show


@contextmanager
def _reading_view(app: App, what: str) -> Iterator[Callable[[Progress], None]]:
    if app.json or not sys.stdout.isatty():
        yield lambda _progress: None
        return
    line = VerifyLine()
    with console().status(printable(f"{what}: reading")) as status:
        yield lambda done: status.update(printable(f"{what}: {line.text(done, time.monotonic())}"))
