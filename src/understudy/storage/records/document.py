"""How is the record of a replica read from its file, and how is it replaced? The same for every kind of store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from understudy.errors import DatastoreError, NotFound, ReplicaError
from understudy.storage.files import datastore_error, datastore_errors, replace_durable
from understudy.storage.records.fields import Malformed
from understudy.storage.records.place import ReplicaPlace, partial

R = TypeVar("R")
_MODE = 0o600


@dataclass(frozen=True)
class Document(Generic[R]):
    """The document ``replica.json`` of one kind of store.

    :ivar parse: what a document says, told what it is of; raises :class:`Malformed`, or ReplicaError if it is of a
        newer format.
    :ivar render: a record as a document.
    :ivar todo: what to do about a record that is lost or damaged.
    """

    parse: Callable[[str, bytes], R]
    render: Callable[[R], bytes]
    todo: str

    def load(self, place: ReplicaPlace) -> R:
        """The record of the replica.

        :raises NotFound: if there is no replica.
        :raises ReplicaError: if the record is damaged, of a newer format, or lost.
        """
        data = _read(place, place.record)
        if data is not None:
            return self.parsed(place.what, data)
        if not place.root.parent.is_dir():
            raise DatastoreError(f"load {place.what}", "the datastore directory does not exist",
                                 "check that the datastore is mounted")
        problem = self.problem(place)
        if problem:
            raise ReplicaError(f"load {place.what}", problem, self.todo)
        raise NotFound(place.what, "no such replica")

    def parsed(self, what: str, data: bytes) -> R:
        """The record in a document; ``what`` names the replica in errors.

        :raises ReplicaError: if the document is damaged, of a newer format, or contradicts itself.
        """
        try:
            return self.parse(what, data)
        except Malformed as exc:
            raise ReplicaError(f"load {what}", f"replica.json is damaged: {exc}", self.todo) from exc

    def problem(self, place: ReplicaPlace) -> str:
        """Why there is no record that can be used, though there are files of restore points; else empty.

        :raises ReplicaError: if the record is of a newer format.
        """
        data = _read(place, place.record)
        if data is None:
            with datastore_errors(f"look at {place.what}"):
                left = place.finished_files()
            lost = f"replica.json is lost, {len(left)} files of restore points are there"
            return f"{lost} ({left[0].name})" if left else ""
        try:
            self.parse(place.what, data)
        except Malformed as exc:
            return f"replica.json is damaged: {exc}"
        return ""

    def previous(self, place: ReplicaPlace) -> R | None:
        """The record before the present one; None if it is missing or damaged. It may tell of points that are gone."""
        data = _read(place, place.previous)
        try:
            return None if data is None else self.parse(place.what, data)
        except Malformed:
            return None

    def save(self, place: ReplicaPlace, record: R) -> R:
        """Make ``record`` the truth, in one durable rename; the one before is kept as ``replica.json.previous``.

        :raises ReplicaError: if it contradicts itself; nothing is changed then.
        """
        data = self.render(record)
        try:
            survives = self.parse(place.what, data) == record
        except Malformed as exc:
            raise ReplicaError(f"save {place.what}", f"the record would be damaged: {exc}") from exc
        if not survives:
            raise ReplicaError(f"save {place.what}", "the record does not survive being written")
        with datastore_errors(f"save {place.what}"):
            before = _read(place, place.record)
            if before is not None and not self.problem(place):
                replace_durable(place.previous, partial(place.previous), before, _MODE)
            replace_durable(place.record, partial(place.record), data, _MODE)
        return record


def _read(place: ReplicaPlace, path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise datastore_error(f"load {place.what}", exc) from exc
