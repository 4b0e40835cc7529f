"""``understudy throttle``: how fast proxies may send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.output import answer, answer_line, cell, table
from understudy.cli.shapes import Shape
from understudy.controller import throttles
from understudy.errors import UsageError
from understudy.model.throttle import (
    DAYS,
    Throttle,
    Window,
    format_minute,
    format_rate,
    format_window,
    parse_rate,
    parse_window,
    rate_at,
)

T = TypeVar("T")

_RATE_HELP = "Bytes/s, binary (12M), or bits/s, decimal (100Mbit), or unlimited; outside all windows."
_WINDOW_HELP = "Rate for a part of the week: 'Mon-Fri 08:00-18:00 12M'; may be given again, the first that holds wins."


@click.group(cls=Group)
def throttle() -> None:
    """Throttles: how fast proxies may send to each other over networks, by day and time of this machine.

    The disks that are sent share a limit fairly. What does not leave a machine is not limited. Changes hold within
    seconds, for what runs too.
    """


@throttle.command()
@click.argument("name")
@click.option("--from", "source", default="", metavar="PROXY", help="The proxy that sends; without it, all of them.")
@click.option("--to", "target", default="", metavar="PROXY", help="The proxy that receives; without it, all of them.")
@click.option("--rate", default="unlimited", show_default=True, help=_RATE_HELP)
@click.option("--window", "windows", multiple=True, help=_WINDOW_HELP)
@pass_app
def add(app: App, name: str, source: str, target: str, rate: str, windows: tuple[str, ...]) -> None:
    """Add throttle NAME; without --from and --to for everything together.

    JSON: {name, from, to, rate, windows: [{days, start, end, rate}], rate_now}; rates are bytes/s, null is unlimited.
    """
    what = f"add throttle {name!r}"
    wanted = Throttle(name, source, target, _parsed(what, parse_rate, rate), _windows(what, windows))
    added = throttles.add_throttle(app.database, wanted)
    answer_line(app, _shape(added, datetime.now()), f"Throttle {name} added; now {_now_text(added, datetime.now())}.")


@throttle.command("list")
@pass_app
def list_(app: App) -> None:
    """List throttles. JSON: an array of what add answers."""
    now = datetime.now()
    found = throttles.list_throttles(app.database)

    def text() -> None:
        if not found:
            click.echo("No throttles: proxies send as fast as they can.")
            return
        table(["Throttle", "From", "To", "Rate", "Windows", "Now"], [_row(item, now) for item in found])

    answer(app, [_shape(item, now) for item in found], text)


@throttle.command("set")
@click.argument("name")
@click.option("--rate", default=None, help=_RATE_HELP)
@click.option("--window", "windows", multiple=True, help=f"{_WINDOW_HELP} Replaces all windows.")
@click.option("--no-windows", is_flag=True, help="Remove all windows.")
@pass_app
def set_(app: App, name: str, rate: str | None, windows: tuple[str, ...], no_windows: bool) -> None:
    """Change throttle NAME; what is not named stays. JSON: as add."""
    what = f"set throttle {name!r}"
    if no_windows and windows:
        raise UsageError(what, "--window and --no-windows exclude each other", "give one of them")
    if rate is None and not windows and not no_windows:
        raise UsageError(what, "nothing to change was named", "give --rate, --window or --no-windows")
    wanted = throttles.get_throttle(app.database, name)
    if rate is not None:
        wanted = replace(wanted, rate=_parsed(what, parse_rate, rate))
    if windows or no_windows:
        wanted = replace(wanted, windows=_windows(what, windows))
    changed = throttles.set_throttle(app.database, wanted)
    answer_line(app, _shape(changed, datetime.now()), f"Throttle {name}: now {_now_text(changed, datetime.now())}.")


@throttle.command()
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Forget throttle NAME. JSON: {name, removed}."""
    throttles.remove_throttle(app.database, name)
    answer_line(app, {"name": name, "removed": True}, f"Throttle {name} removed.")


def _windows(what: str, texts: tuple[str, ...]) -> tuple[Window, ...]:
    return tuple(_parsed(what, parse_window, text) for text in texts)


def _parsed(what: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as exc:
        raise UsageError(what, str(exc), "see 'understudy throttle add --help'") from exc


def _now_text(item: Throttle, now: datetime) -> str:
    return format_rate(rate_at(item, now))


def _row(item: Throttle, now: datetime) -> list[str]:
    windows = ", ".join(format_window(window) for window in item.windows)
    names = [cell(item.name), cell(item.source_proxy or "all"), cell(item.target_proxy or "all")]
    return [*names, format_rate(item.rate), cell(windows), _now_text(item, now)]


def _shape(item: Throttle, now: datetime) -> Shape:
    return {
        "name": item.name,
        "from": item.source_proxy,
        "to": item.target_proxy,
        "rate": item.rate,
        "windows": [_window_shape(window) for window in item.windows],
        "rate_now": rate_at(item, now),
    }


def _window_shape(window: Window) -> Shape:
    return {
        "days": [DAYS[day] for day in sorted(window.days)],
        "start": format_minute(window.start_minute),
        "end": format_minute(window.end_minute),
        "rate": window.rate,
    }
