"""``understudy session``: runs of jobs."""

from __future__ import annotations

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.estimate import show_estimate
from understudy.cli.output import answer, answer_line, answer_table
from understudy.cli.shapes import session_shape, summary_shape
from understudy.cli.summary import show_session
from understudy.controller import journal, reports
from understudy.controller.recovery import end_dead_sessions
from understudy.model.session import SessionKind, SessionReport, SessionState


@click.group(cls=Group)
def session() -> None:
    """Sessions: the runs of jobs, past and present."""


@session.command("list")
@click.option("--job", default=None, help="Only sessions of this job.")
@pass_app
def list_(app: App, job: str | None) -> None:
    """List sessions, newest first. JSON: [{id, job, state, started_at, ended_at, kind}]."""
    documents = [summary_shape(item) for item in reports.list_sessions(app.database, job)]
    columns = {"Session": "id", "Job": "job", "Kind": "kind", "State": "state", "Started": "started_at",
               "Ended": "ended_at"}  # fmt: skip
    answer_table(app, documents, columns, "No sessions.")


@session.command()
@click.argument("session_id", metavar="ID", type=int)
@pass_app
def show(app: App, session_id: int) -> None:
    """Show all of session ID, also while it runs.

    \b
    JSON: {id, job, state, started_at, ended_at, kind, tasks: [{vm, state, restore_point,
    consistency, frozen_ms, error, warnings, steps: [{name, state, seconds}],
    disks: [{name, mode, reason, size, read_bytes, sent_bytes, wire_bytes,
    zero_bytes, seconds, bottleneck, transport, busy: {PART: SHARE}, rate, eta_s,
    processed_bytes, resumed_bytes, reconnects, waiting, checked_blocks,
    mismatched_blocks, excluded: {REASON: BYTES}, notes}],
    guest: {transport, component, version, stages: [{name, ms}],
    applications: [{kind, name, state, detail, label}], notes},
    estimate: of `job estimate`: [its disks]}]}.

    `rate` is in bytes of the disk a second, of late. `busy` are the shares of source,
    source_proxy, network, target_proxy, target in the time; they add up to 1.
    """
    report = reports.session_report(app.database, session_id)
    answer(app, session_shape(report), lambda: _show(report))


def _show(report: SessionReport) -> None:
    show_session(report)
    if report.kind is SessionKind.ESTIMATE:
        show_estimate(report)


@session.command()
@click.argument("session_id", metavar="ID", type=int)
@pass_app
def stop(app: App, session_id: int) -> None:
    """Stop session ID; it ends in order, soon. JSON: {id, state}: `running` while it is ending."""
    if session_id in end_dead_sessions(app.database, lambda left: left.id != session_id):
        state, said = SessionState.FAILED, "had been left by a controller that died; it is ended"
    else:
        state = journal.request_cancel(app.database, session_id)
        said = "cancelled" if state is SessionState.CANCELLED else "is being stopped"
    answer_line(app, {"id": session_id, "state": state.value}, f"Session {session_id} {said}.")
