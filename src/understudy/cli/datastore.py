"""``understudy datastore``: places for replicas."""

from __future__ import annotations

from dataclasses import asdict

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.output import answer_facts, answer_line, answer_table, printable
from understudy.controller import catalog
from understudy.errors import DatastoreError, UnderstudyError, UsageError
from understudy.model.job import Datastore
from understudy.replication.target_side import check_marker

TRANSFERS_HELP = "Disks that may be written to it at the same time; 0 for no limit but the task slots."


@click.group(cls=Group)
def datastore() -> None:
    """Datastores: directories on target hosts where replicas lie."""


@datastore.command()
@click.argument("name")
@click.option("--host", required=True, help="Host that has the directory.")
@click.option("--path", required=True, help="The directory.")
@click.option("--kind", type=click.Choice(catalog.STORE_KINDS), default=catalog.STORE_KINDS[0], show_default=True,
              help="How replicas are stored.")  # fmt: skip
@click.option("--max-transfers", type=click.IntRange(0, catalog.MAX_LIMIT), default=0, show_default=True,
              help=TRANSFERS_HELP)  # fmt: skip
@click.option("--place", default="", help="With kind vsphere: name of the platform's datastore that holds the disks.")
@pass_app
def add(app: App, name: str, host: str, path: str, kind: str, max_transfers: int, place: str) -> None:
    """Add datastore NAME; it gets a marker file, now or at first use.

    With kind vsphere the directory holds what is known of the replicas, beside the proxy that writes them; their disks
    lie in the platform's datastore. JSON: {name, host, kind, path, max_transfers, marker, place}.
    """
    added = catalog.add_datastore(app.database, Datastore(name, host, kind, path, max_transfers, place=place))
    try:
        added = app.services.mark_datastore(name)
    except UnderstudyError as exc:
        click.echo(printable(f"warning: the datastore gets its marker file at first use: {exc}"), err=True)
    answer_line(app, asdict(added), f"Datastore {name} added.")


@datastore.command("set")
@click.argument("name")
@click.option("--max-transfers", type=click.IntRange(0, catalog.MAX_LIMIT), default=None, help=TRANSFERS_HELP)
@click.option("--path", default=None, help="The directory where it lies now; its marker file must be there.")
@click.option("--accept", is_flag=True, help="Whatever is in the directory is the datastore from now on.")
@pass_app
def set_(app: App, name: str, max_transfers: int | None, path: str | None, accept: bool) -> None:
    """Change datastore NAME; waiting tasks heed a limit. JSON: {name, host, kind, path, max_transfers, marker,
    place}.
    """
    if max_transfers is None and path is None and not accept:
        raise UsageError(f"change datastore {name!r}", "nothing to change", "see 'understudy datastore set --help'")
    if path is not None or accept:
        app.services.move_datastore(name, path or "", accept)
    changed = catalog.change_datastore(app.database, name, max_transfers=max_transfers)
    answer_line(app, asdict(changed), f"Datastore {name} changed.")


@datastore.command("list")
@pass_app
def list_(app: App) -> None:
    """List datastores. JSON: [{name, host, kind, path, max_transfers, marker, place}]."""
    datastores = [asdict(item) for item in catalog.list_datastores(app.database)]
    columns = {"Datastore": "name", "Host": "host", "Kind": "kind", "Path": "path", "Transfers": "max_transfers"}
    answer_table(app, datastores, columns, "No datastores. Add one: understudy datastore add NAME --host H --path DIR")


@datastore.command()
@click.argument("name")
@pass_app
def check(app: App, name: str) -> None:
    """Try datastore NAME; fails if nothing can be written there, or it is not the one that was added.

    JSON: {name, path, exists, writable, total_bytes, free_bytes, marker}.
    """
    facts = app.services.check_datastore(name)
    answer_facts(app, {"name": name, **asdict(facts)})
    what = f"check datastore {name!r}"
    if not facts.exists:
        raise DatastoreError(what, f"{facts.path} does not exist", "make the directory on its host")
    if not facts.writable:
        raise DatastoreError(what, f"{facts.path} cannot be written", "check its permissions and its file system")
    check_marker(catalog.get_datastore(app.database, name), facts)


@datastore.command()
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Forget datastore NAME; its files stay. JSON: {name, removed}."""
    catalog.remove_datastore(app.database, name)
    answer_line(app, {"name": name, "removed": True}, f"Datastore {name} removed.")
