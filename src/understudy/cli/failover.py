"""``understudy failover``: running a replica instead of the lost original, and going back."""

from __future__ import annotations

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.facts import chosen_point
from understudy.cli.output import answer, printable
from understudy.cli.shapes import replica_shape
from understudy.controller import replicas
from understudy.controller.records import FailoverAnswer
from understudy.model.replica import ConversionWish


@click.group(cls=Group)
def failover() -> None:
    """Failover: run a replica from a restore point instead of the source VM."""


@failover.command()
@click.argument("name", metavar="REPLICA")
@click.option("--point", default=None, help="Restore point; without it, the newest.")
@click.option("--convert", type=click.Choice([wish.value for wish in ConversionWish]), default="auto",
              show_default=True, help="Give a guest from another platform drivers for virtio devices, by virt-v2v: "
              "where that is possible, never, or in any case.")
@pass_app
def start(app: App, name: str, point: str | None, convert: str) -> None:
    """Start REPLICA from a restore point.

    A guest from another platform is converted on the throw-away layer only; undo drops it.

    JSON: as of `replica list`, one object with `warnings`, and `note`: whether it was converted.
    """
    record = replicas.find_replica(app.database, name)
    chosen = chosen_point(app, record, point)
    after = app.services.start_failover(record, chosen, ConversionWish(convert))
    line = f"Replica {name} runs on host {after.record.host} from restore point {chosen}."
    _answer(app, after, "\n".join(filter(None, (line, after.note))), {"note": after.note})


@failover.command()
@click.argument("name", metavar="REPLICA")
@pass_app
def undo(app: App, name: str) -> None:
    """Stop REPLICA and drop what it wrote. JSON: as of `replica list`, one object with `warnings`."""
    after = app.services.undo_failover(replicas.find_replica(app.database, name))
    _answer(app, after, f"Replica {name} is a replica again; what it wrote is dropped.", {})


def _answer(app: App, after: FailoverAnswer, line: str, more: dict[str, str]) -> None:
    def text() -> None:
        for said in (*line.splitlines(), *(f"warning: {warning}" for warning in after.warnings)):
            click.echo(printable(said))

    answer(app, {**replica_shape(after.record), "warnings": list(after.warnings), **more}, text)
