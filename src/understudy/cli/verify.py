"""``understudy replica verify``: proving restore points, now or by the schedules of the jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click

from understudy.cli.app import App, pass_app
from understudy.cli.facts import newest_of, replica_of
from understudy.cli.follow import verify_to_end
from understudy.cli.output import answer, printable, table
from understudy.cli.rates import parsed_rate
from understudy.cli.shapes import Shape, verify_shape
from understudy.controller import jobs, replicas
from understudy.controller.records import ReplicaRecord, VerifyWish
from understudy.errors import Cancelled, ReplicaError, UnderstudyError, UsageError
from understudy.model.replica import Replica, RestorePoint
from understudy.units import parse_duration

WHAT = "replica verify"
RANGES_SHOWN = 3


@dataclass(frozen=True)
class _Wish:
    """What the operator asked for, beside the points."""

    rate: int | None
    restart: bool
    until: float | None

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.until is not None and time.monotonic() >= self.until


@dataclass(frozen=True)
class _Turn:
    """A point to verify; ``newest`` if it is its replica's newest one."""

    record: ReplicaRecord
    point: str
    newest: bool
    rate: int


@click.command("verify")
@click.argument("name", metavar="[REPLICA]", required=False)
@click.option("--point", default=None, help="Restore point; without it, the newest.")
@click.option("--all", "every", is_flag=True, help="All restore points; what they share is read once for each of them.")
@click.option("--due", is_flag=True, help="What is due by the schedules of the jobs; without REPLICA, for timers.")
@click.option("--for", "duration", default=None, metavar="DURATION", help="Stop after so long; the next one goes on.")
@click.option("--rate", default=None, metavar="RATE|off",
              help="Read no more in a second, e.g. 50MiB; without it, what the job says.")  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin anew instead of going on where a verification was stopped.")
@pass_app
def verify(
    app: App, name: str | None, point: str | None, *, every: bool, due: bool, duration: str | None, rate: str | None,
    restart: bool,
) -> None:  # fmt: skip
    """Prove restore points of REPLICA by their digests; fails if a block does not match.

    It goes on where one was stopped, and remembers what it finds beside the replica: damaged blocks of the newest
    point are repaired from the source by the next session.

    JSON: {replica, datastore, point, newest, ok, complete, disks: [{name, blocks, bad_count, bad_blocks, problem,
    bad_ranges: [{start, length}], affected_points, verified_at, digests_recomputed_at}]}; with --all or --due {ok,
    complete, points: [as before], problems}.
    """
    _check_usage(name, due=due, one=point is not None, other=every or restart)
    if every and point is not None:
        raise UsageError(WHAT, "--all and --point exclude each other")
    wish = _Wish(None if rate is None else parsed_rate(WHAT, rate), restart, _until(duration))
    if due:
        _verify_due(app, wish)
    elif every:
        record = replicas.find_replica(app.database, name or "")
        replica = replica_of(app, record)
        turns = [_turn(app, record, replica, item) for item in replica.points]
        _report_many(app, *_verify_all(app, turns, wish))
    else:
        record = replicas.find_replica(app.database, name or "")
        replica = replica_of(app, record)
        chosen = replica.point(point) if point is not None else newest_of(record, replica)
        document = _verify_one(app, _turn(app, record, replica, chosen), wish)
        answer(app, document, lambda: _show(document))
        _raise_if_damaged([document], [])


def _check_usage(name: str | None, *, due: bool, one: bool, other: bool) -> None:
    if due and (name is not None or one or other):
        raise UsageError(WHAT, "--due takes no REPLICA, --point, --all or --restart", f"see 'understudy {WHAT} --help'")
    if not due and name is None:
        raise UsageError(WHAT, "missing argument 'REPLICA'", f"see 'understudy {WHAT} --help'")


def _until(duration: str | None) -> float | None:
    if duration is None:
        return None
    try:
        return time.monotonic() + parse_duration(duration)
    except ValueError as exc:
        raise UsageError(WHAT, str(exc), "use e.g. 90s, 30m or 2h") from exc


def _turn(app: App, record: ReplicaRecord, replica: Replica, point: RestorePoint) -> _Turn:
    rate = jobs.get_job(app.database, record.job).verify_rate if record.job else 0
    return _Turn(record, point.id, point is replica.newest, rate)


def _verify_due(app: App, wish: _Wish) -> None:
    found = app.services.due_verifications()
    turns = [_Turn(item.record, item.point, item.newest, item.rate) for item in found.due]
    documents, problems, complete = _verify_all(app, turns, wish)
    _report_many(app, documents, [*found.problems, *problems], complete)


def _verify_all(app: App, turns: Iterable[_Turn], wish: _Wish) -> tuple[list[Shape], list[str], bool]:
    """Verify one after the other until the time is over; what came of them, what went wrong, whether all had a turn.

    One that cannot be verified keeps no other from its turn.
    """
    documents: list[Shape] = []
    problems: list[str] = []
    for turn in turns:
        if wish.over:
            return documents, problems, False
        try:
            documents.append(_verify_one(app, turn, wish))
        except Cancelled:
            raise
        except UnderstudyError as exc:
            problems.append(str(exc))
            continue
        if not app.json:
            _show(documents[-1])
    return documents, problems, all(document["complete"] for document in documents)


def _verify_one(app: App, turn: _Turn, wish: _Wish) -> Shape:
    rate = turn.rate if wish.rate is None else wish.rate
    verified = verify_to_end(app, turn.record, VerifyWish(turn.point, rate, wish.restart, wish.until))
    return verify_shape(turn.record, turn.point, verified, turn.newest)


def _report_many(app: App, documents: list[Shape], problems: list[str], complete: bool) -> None:
    ok = not problems and all(document["ok"] for document in documents)
    document = {"ok": ok, "complete": complete, "points": documents, "problems": problems}

    def text() -> None:
        for problem in problems:
            click.echo(printable(f"not verified: {problem}"))
        if not complete:
            click.echo("The time is over; the next one goes on.")
        elif not documents and not problems:
            click.echo("Nothing to verify.")

    answer(app, document, text)
    _raise_if_damaged(documents, problems)


def _raise_if_damaged(documents: list[Shape], problems: list[str]) -> None:
    """:raises ReplicaError: if a point is damaged, or could not be verified."""
    bad = [document for document in documents if not document["ok"]]
    if len(bad) == 1 and not problems:
        (document,) = bad
        raise ReplicaError(f"verify restore point {document['point']!r} of replica {document['replica']!r}",
                           _damage(document), _todo(document))
    if bad or problems:
        told = [f"{document['replica']} {document['point']}: {_damage(document)}" for document in bad]
        raise ReplicaError("verify restore points", "; ".join([*told, *problems]), "see 'understudy replica points'")


def _damage(document: Shape) -> str:
    return "; ".join(f"disk {disk['name']}: {finding(disk)}" for disk in document["disks"] if not _is_ok(disk))


def _todo(document: Shape) -> str:
    if document["newest"] and any(disk["bad_count"] for disk in document["disks"]):
        return "run its job: the next session repairs the newest point from the source"
    return "use another restore point"


def _show(document: Shape) -> None:
    rows = [(disk["name"], str(disk["blocks"]), str(disk["bad_count"]), finding(disk)) for disk in document["disks"]]
    left = "" if document["complete"] else ": not yet to its end"
    click.echo(printable(f"Restore point {document['point']} of {document['replica']}{left}"))
    table(("Disk", "Blocks", "Bad", "Finding"), rows)


def _is_ok(disk: Shape) -> bool:
    return not disk["problem"] and not disk["bad_count"]


def finding(disk: Shape) -> str:
    """What was found of a disk: how many blocks are bad, where, and which other points read them."""
    told = list(_findings(disk))
    return "; ".join(told) or "ok"


def _findings(disk: Shape) -> Iterator[str]:
    if disk["problem"]:
        yield str(disk["problem"])
    if disk["bad_count"]:
        yield f"{disk['bad_count']} of {disk['blocks']} blocks do not match ({_places(disk['bad_ranges'])})"
        if disk["affected_points"]:
            yield f"points affected too: {', '.join(disk['affected_points'])}"
    if disk["digests_recomputed_at"]:
        yield f"its digests were recomputed from the replica at {disk['digests_recomputed_at']} and tell only what " \
              "changed since"


def _places(ranges: list[Shape]) -> str:
    shown = [f"bytes {part['start']} to {part['start'] + part['length'] - 1}" for part in ranges[:RANGES_SHOWN]]
    more = len(ranges) - RANGES_SHOWN
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")
