"""docs/commands.md is what the commands say of themselves. UNDERSTUDY_WRITE_DOCS=1 writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from understudy.cli.app import understudy

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"
INTRODUCTION = """# Commands

Made from the commands' own help. Every command takes `--home DIR` and `--json` before its name. Exit status: 0 success
(warnings included), 1 failed, 2 wrong usage or refused input, 130 cancelled. Errors are one line on stderr:
`error: <what>: <why>; <what to do>`.
"""


def helps(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=100, max_content_width=100)
    if isinstance(command, click.Group):
        for item in command.list_commands(context):
            inner = command.get_command(context, item)
            assert inner is not None
            if not inner.hidden:
                yield from helps(inner, item, context)
    else:
        yield f"\n## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"


def test_the_commands_page_says_what_the_commands_say() -> None:
    page = INTRODUCTION + "".join(helps(understudy, "understudy"))
    if os.environ.get("UNDERSTUDY_WRITE_DOCS"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page
