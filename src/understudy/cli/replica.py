"""``understudy replica``: what is kept on the target."""

from __future__ import annotations

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.facts import facts_of
from understudy.cli.follow import rebuild_to_end
from understudy.cli.output import answer, answer_facts, answer_line, answer_table, printable, table
from understudy.cli.shapes import Shape, points_shape, problems, rebuilt_shape, replica_facts_shape, replica_shape
from understudy.cli.verify import verify
from understudy.controller import replicas
from understudy.controller.records import ReplicaRecord
from understudy.errors import ReplicaError, UsageError
from understudy.model.exclusion import Exclusion
from understudy.mover.api import ReplicaFacts
from understudy.units import format_size


@click.group(cls=Group)
def replica() -> None:
    """Replicas: VMs kept ready on a target. REPLICA is a name, or DATASTORE/NAME."""


replica.add_command(verify)


@replica.command("list")
@pass_app
def list_(app: App) -> None:
    """List replicas.

    JSON: [{name, id, datastore, host, job, source_vm, domain_uuid, state, points, newest_point, newest_created_at,
    point}].
    """
    documents = [replica_shape(record) for record in replicas.list_replicas(app.database)]
    columns = {"Replica": "name", "State": "state", "Host": "host", "Datastore": "datastore", "Job": "job",
               "Points": "points", "Newest": "newest_created_at"}  # fmt: skip
    answer_table(app, documents, columns, "No replicas. Run a job, or adopt one: understudy replica adopt")


@replica.command()
@click.argument("name", metavar="REPLICA")
@pass_app
def show(app: App, name: str) -> None:
    """Show REPLICA and the state of its files.

    JSON: as of `replica list`, and {head_empty, conversion, damage: {point: [problem]}, verified_at: {point: time},
    bad_blocks: {point: {disk: count}}, health_problems: {point: [problem]}}.
    """
    record, facts = _inspect(app, name)
    answer_facts(app, replica_facts_shape(record, facts))


@replica.command()
@click.argument("name", metavar="REPLICA")
@pass_app
def points(app: App, name: str) -> None:
    """List the restore points of REPLICA, oldest first.

    JSON: [{id, created_at, consistency, session, damage: [problem], verified_at, bad_blocks, disks: [{name, size,
    image, digest, verified_at, bad_blocks, excluded: {REASON: BYTES}, or null if that is lost}]}].
    """
    record, facts = _inspect(app, name)
    documents = points_shape(facts, _left_out(app, record, facts))
    answer(app, documents, lambda: _show_points(documents, facts))


@replica.command()
@click.argument("place", metavar="DATASTORE/REPLICA")
@pass_app
def adopt(app: App, place: str) -> None:
    """Take a replica that lies in a datastore into this controller. JSON: as of `replica list`, one object."""
    datastore, name = _place("adopt", place)
    record = app.services.adopt_replica(datastore, name)
    answer_line(app, replica_shape(record), f"Replica {record.full_name} adopted.")


@replica.command()
@click.argument("place", metavar="DATASTORE/REPLICA")
@click.option("--dry-run", is_flag=True, help="Say what can be proved, and write nothing.")
@pass_app
def rebuild(app: App, place: str, dry_run: bool) -> None:
    """Make the lost or damaged record of a replica again from its files.

    Every restore point is read and proved by its digests; what cannot be proved is left out and named, its files stay.

    JSON: {replica, datastore, dry_run, points: [id], left_out: {id: why}, files: [path], notes: [text]}.
    """
    datastore, name = _place("rebuild", place)
    rebuilt = rebuild_to_end(app, datastore, name, dry_run)
    document = rebuilt_shape(datastore, name, dry_run, rebuilt)
    answer(app, document, lambda: _show_rebuilt(place, document))


@replica.command()
@click.argument("name", metavar="REPLICA")
@click.option("--delete-files", is_flag=True, help="Delete the replica VM and all restore points too.")
@pass_app
def remove(app: App, name: str, delete_files: bool) -> None:
    """Forget REPLICA; its files and its VM stay unless --delete-files.

    JSON: {name, datastore, removed, files_deleted}.
    """
    record = replicas.find_replica(app.database, name)
    if delete_files:
        app.services.delete_replica(record)
    else:
        replicas.forget_replica(app.database, record.replica.identity.id)
    document = {"name": record.name, "datastore": record.datastore, "removed": True, "files_deleted": delete_files}
    answer_line(app, document, f"Replica {record.full_name} {'deleted' if delete_files else 'forgotten'}.")


def _place(act: str, place: str) -> tuple[str, str]:
    datastore, _, name = place.partition("/")
    if not datastore or not name:
        raise UsageError(f"{act} replica {place!r}", "this is not DATASTORE/REPLICA", "see 'understudy datastore list'")
    return datastore, name


def _show_rebuilt(place: str, document: Shape) -> None:
    did = "can be rebuilt" if document["dry_run"] else "rebuilt"
    said = [f"Record of replica {place} {did}, proved restore points: {', '.join(document['points'])}."]
    said += [f"Left out: restore point {point}: {why}" for point, why in document["left_out"].items()]
    said += [f"Stays where it is: {name}" for name in document["files"]]
    for line in [*said, *(f"Note: {note}" for note in document["notes"])]:
        click.echo(printable(line))


def _inspect(app: App, name: str) -> tuple[ReplicaRecord, ReplicaFacts]:
    record = replicas.find_replica(app.database, name)
    return record, facts_of(app, record)


def _left_out(app: App, record: ReplicaRecord, facts: ReplicaFacts) -> dict[str, tuple[Exclusion, ...] | None]:
    """What points leave out, those that leave out something; None if it is lost."""
    found: dict[str, tuple[Exclusion, ...] | None] = {}
    for point in facts.replica.points if facts.replica else ():
        if point.excluded:
            try:
                found[point.id] = app.services.left_out(record, point.id)
            except ReplicaError:
                found[point.id] = None
    return found


def _show_points(documents: list[Shape], facts: ReplicaFacts) -> None:
    if not documents:
        click.echo("No restore points.")
        return
    titles = ("Restore point", "Created", "Consistency", "Session", "Disks", "Left out", "Files", "Verified")
    table(titles, [_point_row(point, facts) for point in documents])


def _point_row(point: Shape, facts: ReplicaFacts) -> tuple[str, ...]:
    disks = ", ".join(f"{disk['name']} {format_size(disk['size'])}" for disk in point["disks"])
    left_out = ", ".join(f"{disk['name']} {_left_out_text(disk['excluded'])}" for disk in point["disks"]
                         if disk["excluded"] != {})
    files = "; ".join(problems(facts, point["id"])) or "ok"
    health = [point["verified_at"] or "never"]
    if point["bad_blocks"]:
        health.append(f"{point['bad_blocks']} bad blocks")
    health += [f"disk {item.disk}: {item.problem}" for item in facts.health
               if item.point == point["id"] and item.problem]
    return (point["id"], point["created_at"], point["consistency"], str(point["session"]), disks,
            left_out or "nothing", files, "; ".join(health))


def _left_out_text(excluded: dict[str, int] | None) -> str:
    if excluded is None:
        return "(lost)"
    return " + ".join(f"{reason} {format_size(count)}" for reason, count in excluded.items())
