"""``understudy datastore``: places for replicas."""

from __future__ import annotations

from dataclasses import asdict

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.output import answer_facts, answer_line, answer_table
from understudy.controller import catalog
from understudy.errors import DatastoreError
from understudy.model.job import Datastore


@click.group(cls=Group)
def datastore() -> None:
    """Datastores: directories on target hosts where replicas lie."""


@datastore.command()
@click.argument("name")
@click.option("--host", required=True, help="Host that has the directory.")
@click.option("--path", required=True, help="The directory.")
@click.option("--kind", type=click.Choice(catalog.STORE_KINDS), default=catalog.STORE_KINDS[0], show_default=True,
              help="How replicas are stored.")  # fmt: skip
@pass_app
def add(app: App, name: str, host: str, path: str, kind: str) -> None:
    """Add datastore NAME. JSON: {name, host, kind, path}."""
    added = catalog.add_datastore(app.database, Datastore(name, host, kind, path))
    answer_line(app, asdict(added), f"Datastore {name} added.")


@datastore.command("list")
@pass_app
def list_(app: App) -> None:
    """List datastores. JSON: [{name, host, kind, path}]."""
    datastores = [asdict(item) for item in catalog.list_datastores(app.database)]
    columns = {"Datastore": "name", "Host": "host", "Kind": "kind", "Path": "path"}
    answer_table(app, datastores, columns, "No datastores. Add one: understudy datastore add NAME --host H --path DIR")


@datastore.command()
@click.argument("name")
@pass_app
def check(app: App, name: str) -> None:
    """Try datastore NAME; fails if nothing can be written there.

    JSON: {name, path, exists, writable, total_bytes, free_bytes}.
    """
    facts = app.services.check_datastore(name)
    answer_facts(app, {"name": name, **asdict(facts)})
    what = f"check datastore {name!r}"
    if not facts.exists:
        raise DatastoreError(what, f"{facts.path} does not exist", "make the directory on its host")
    if not facts.writable:
        raise DatastoreError(what, f"{facts.path} cannot be written", "check its permissions and its file system")


@datastore.command()
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Forget datastore NAME; its files stay. JSON: {name, removed}."""
    catalog.remove_datastore(app.database, name)
    answer_line(app, {"name": name, "removed": True}, f"Datastore {name} removed.")
