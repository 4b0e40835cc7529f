"""``understudy proxy``: data movers."""

from __future__ import annotations

from dataclasses import asdict

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.output import answer_facts, answer_line, answer_table
from understudy.controller import catalog
from understudy.model.job import Proxy


@click.group(cls=Group)
def proxy() -> None:
    """Proxies: processes that read and write disk data. All run on this machine, started when needed."""


@proxy.command()
@click.argument("name")
@click.option("--host", default="", help="The host whose disks it moves; without it, those of every host.")
@click.option("--slots", type=click.IntRange(1, 1000), default=None,
              help="Disks that it moves at the same time; without it, one for each core.")  # fmt: skip
@pass_app
def add(app: App, name: str, host: str, slots: int | None) -> None:
    """Add proxy NAME. JSON: {name, host, slots}."""
    added = catalog.add_proxy(app.database, Proxy(name, host, slots or 0))
    answer_line(app, asdict(added), f"Proxy {name} added.")


@proxy.command("list")
@pass_app
def list_(app: App) -> None:
    """List proxies. JSON: [{name, host, slots}]."""
    proxies = [asdict(item) for item in catalog.list_proxies(app.database)]
    answer_table(app, proxies, {"Proxy": "name", "Host": "host", "Task slots": "slots"}, "No proxies.")


@proxy.command()
@click.argument("name")
@pass_app
def check(app: App, name: str) -> None:
    """Start proxy NAME and ask who it is. JSON: {name, pid, versions}."""
    info = app.services.check_proxy(name)
    answer_facts(app, {"name": name, "pid": info.pid, "versions": dict(info.versions)})


@proxy.command()
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Forget proxy NAME. JSON: {name, removed}."""
    catalog.remove_proxy(app.database, name)
    answer_line(app, {"name": name, "removed": True}, f"Proxy {name} removed.")
