"""The commands without a group: ``understudy demo``, ``version``, ``controller`` and ``enrolment``."""

from __future__ import annotations

import sys
from typing import Any

import click

from understudy.cli.app import App, pass_app
from understudy.cli.output import answer, answer_line


@click.command()
@click.option("--two-hosts", is_flag=True,
              help="With a proxy on each host, TLS, and a line of 100 Mbit/s that is cut meanwhile.")  # fmt: skip
@pass_app
def demo(app: App, two_hosts: bool) -> None:
    """Replicate a small VM between two hosts made for the purpose. JSON: {sessions, change_in_replica}.

    It runs as root, in a home of its own, and removes everything at the end.
    """
    from understudy.lab.demo import run_demo

    # With --json stdout is for the document, and stderr for errors: the story is left out.
    outcome = run_demo((lambda _line: None) if app.json else click.echo, app.json, two_hosts)
    document = {"sessions": list(outcome.sessions), "change_in_replica": outcome.change_in_replica}
    answer(app, document, lambda: _show_demo(outcome.sessions))


def _show_demo(sessions: tuple[dict[str, Any], ...]) -> None:
    """The final table: what each replication cost."""
    from understudy.cli.output import table
    from understudy.units import format_seconds, format_size

    titles = ("Session", "Disk", "Mode", "Size", "Read", "Sent", "Reduction", "Time", "Frozen")
    def sent(disk: dict[str, Any]) -> int:
        return int(disk["wire_bytes"] or disk["sent_bytes"])

    rows = [
        (
            str(session["id"]), disk["name"], disk["mode"], format_size(disk["size"]), format_size(disk["read_bytes"]),
            format_size(sent(disk)), f"{disk['read_bytes'] / max(sent(disk), 1):.1f}x",
            format_seconds(disk["seconds"]), f"{task['frozen_ms']:.0f} ms" if task["frozen_ms"] is not None else "-",
        )
        for session in sessions
        for task in session["tasks"]
        for disk in task["disks"]
    ]  # fmt: skip
    table(titles, rows)


@click.command()
@pass_app
def version(app: App) -> None:
    """Show the version of this program. JSON: {name, version, python}."""
    from importlib.metadata import version as installed_version

    number = installed_version("understudy")
    document = {"name": "understudy", "version": number, "python": sys.version.split()[0]}
    answer_line(app, document, f"understudy {number}")


@click.command(hidden=True)
@pass_app
def controller(app: App) -> None:
    """Be the controller until no session is queued or running. JSON: {done}."""
    app.services.run_controller()
    answer_line(app, {"done": True}, "No session is queued or running.")


@click.command(hidden=True)
@pass_app
def enrolment(app: App) -> None:
    """Serve invited proxies until no invitation is open. JSON: {done}."""
    app.services.run_enrolment()
    answer_line(app, {"done": True}, "No invitation is open.")
