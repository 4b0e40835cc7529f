"""Writing answers: one JSON document, or text for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from understudy.cli.app import App

if TYPE_CHECKING:
    from rich.console import Console

Document = dict[str, Any] | list[dict[str, Any]]

# No terminal, no width: a pipe gets whole lines.
_PIPE_WIDTH = 10_000


def answer(app: App, document: Document, text: Callable[[], None]) -> None:
    """Write ``document`` if JSON was asked for, else let ``text`` write for people."""
    if app.json:
        click.echo(json.dumps(document, indent=2))
    else:
        text()


def answer_line(app: App, document: Document, line: str) -> None:
    """Write ``document``, or ``line``."""
    answer(app, document, lambda: click.echo(printable(line)))


def answer_table(app: App, documents: Sequence[dict[str, Any]], columns: dict[str, str], empty: str) -> None:
    """Write the array of ``documents``, or a table with a row for each.

    :param columns: key of a document by column title.
    :param empty: what to say when there is nothing.
    """

    def text() -> None:
        if documents:
            table(list(columns), ([cell(item[key]) for key in columns.values()] for item in documents))
        else:
            click.echo(empty)

    answer(app, list(documents), text)


def answer_facts(app: App, document: dict[str, Any]) -> None:
    """Write ``document``, or its fields one below the other."""
    width = max(len(key) for key in document)
    lines = [f"{key.replace('_', ' '):{width}}  {cell(value)}" for key, value in document.items()]
    answer(app, document, lambda: click.echo("\n".join(lines)))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in titles:
        grid.add_column(title, overflow="fold")
    for row in rows:
        # Text, not markup: a VM may be called "[red]".
        grid.add_row(*(Text(value) for value in row))
    console().print(grid)


def console() -> Console:
    """A console on stdout as it is now; plain text without control codes when it is no terminal."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def cell(value: object) -> str:
    """A value of a document as people read it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items()) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """``text`` without characters that steer a terminal: names come from machines that we do not control."""
    return "".join(char if char.isprintable() else "�" for char in text)
