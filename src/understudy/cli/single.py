"""The commands without a group: ``understudy demo``, ``version`` and ``controller``."""

from __future__ import annotations

import sys

import click

from understudy.cli.app import App, pass_app
from understudy.cli.output import answer, answer_line


@click.command()
@pass_app
def demo(app: App) -> None:
    """Replicate a small VM between two hosts made for the purpose. JSON: as of `session show`, of the last session."""
    from understudy.cli.shapes import session_shape
    from understudy.cli.summary import raise_if_bad, show_session

    # With --json stdout is for the document, and stderr for errors: the story is left out.
    report = app.services.run_demo((lambda _line: None) if app.json else click.echo)
    answer(app, session_shape(report), lambda: show_session(report))
    raise_if_bad(report)


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
