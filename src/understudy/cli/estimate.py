"""``understudy job estimate``: what a session would do, without copying anything."""

from __future__ import annotations

from collections.abc import Sequence

import click

from understudy.cli.app import App, pass_app
from understudy.cli.follow import see_to_end
from understudy.cli.output import answer, printable, table
from understudy.cli.shapes import estimate_shape
from understudy.cli.summary import disk_notes, raise_if_bad
from understudy.controller import journal
from understudy.errors import Refused
from understudy.model.estimate import DiskEstimate, totals_of
from understudy.model.session import SessionKind, SessionReport, TaskReport
from understudy.units import format_size

TITLES = ("VM", "Disk", "Mode", "Reason", "Size", "Used", "Swap", "Masks", "Free", "Zero", "Changed", "To read",
          "To send")  # fmt: skip
EXPLANATION = "To send: at most, before compression. A digest scan sends only what differs of that."


@click.command()
@click.argument("name")
@click.option("--vm", default="", help="Only this VM of the job.")
@pass_app
def estimate(app: App, name: str, vm: str) -> None:
    """Show what a session of job NAME would do now; nothing is copied, and no guest is frozen.

    \b
    JSON: {session, job, state, vms: [{vm, state, error, warnings, disks: [{name,
    mode, reason, size, used, swap, mask, free, zero, changed, read, send, notes}],
    total}], total}; both `total` are the sums {size, used, ..., send}.

    `used`, `swap`, `mask`, `free` and `zero` add up to `size`. `changed` is null where changes are not tracked.
    `send` is an upper bound, before compression.
    """
    # One that a dead controller left ends here, unless it can be gone on with: by a run.
    interrupted = app.services.interrupted_session(name)
    if interrupted is not None:
        raise Refused(f"estimate job {name!r}", f"its session {interrupted} was interrupted and can be gone on with",
                      f"run 'understudy job run {name}' first")
    session_id = journal.insert_session(app.database, name, kind=SessionKind.ESTIMATE, vm=vm)
    report = see_to_end(app, session_id)
    answer(app, estimate_shape(report), lambda: _show(report))
    raise_if_bad(report)


def _show(report: SessionReport) -> None:
    show_estimate(report)
    for task in report.tasks:
        lines = [f"warning: {task.vm}: {warning}" for warning in task.warnings]
        for line in [*lines, *([f"{task.state.value}: {task.vm}: {task.error}"] if task.error else [])]:
            click.echo(printable(line))


def show_estimate(report: SessionReport) -> None:
    """Print what an estimate found of the disks."""
    rows = [row for task in report.tasks for row in _task_rows(task)]
    found = [disk for task in report.tasks for disk in task.estimate]
    if len([task for task in report.tasks if task.estimate]) > 1:
        rows.append(_row(("total", "", "", ""), found))
    if rows:
        table(TITLES, rows)
        click.echo(EXPLANATION)
    for task in report.tasks:
        for line in [line for disk in task.estimate for line in disk_notes(task.vm, disk.name, disk.notes)]:
            click.echo(printable(line))


def _task_rows(task: TaskReport) -> list[tuple[str, ...]]:
    rows = [_row((task.vm, disk.name, disk.mode.value, disk.reason.value or "-"), [disk]) for disk in task.estimate]
    return rows if len(rows) < 2 else [*rows, _row((task.vm, "all", "", ""), task.estimate)]


def _row(head: tuple[str, ...], disks: Sequence[DiskEstimate]) -> tuple[str, ...]:
    sums = totals_of(disks)
    sizes = (sums.size, sums.used, sums.swap, sums.mask, sums.free, sums.zero, sums.changed, sums.read, sums.send)
    return (*head, *("-" if size is None else format_size(size) for size in sizes))

