"""What does ``replica.json`` say, and can it be trusted?

The document is ``{"understudy": "replica", "format": 1, "checksum": ..., "replica": {...}, "merging": [...]}``, see
:mod:`understudy.storage.qcow2.sealed`. Records that were rebuilt from files have ``unlisted`` and ``kept`` too. The
record before the present one is kept beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from understudy.errors import DatastoreError, NotFound, ReplicaError
from understudy.model.guest import ApplicationResult, ApplicationState
from understudy.model.replica import (
    Baseline,
    Consistency,
    Conversion,
    FileMark,
    ImageGeneration,
    PointDisk,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
    SourceGeneration,
)
from understudy.storage.files import datastore_error, datastore_errors, replace_durable
from understudy.storage.qcow2.chains import MergingDisk, UnlistedLayer, contradictions
from understudy.storage.qcow2.fields import Fields, Malformed, is_utc_time
from understudy.storage.qcow2.format import SECTOR
from understudy.storage.qcow2.names import (
    Place,
    check_point_id,
    excluded_name,
    is_digest_name,
    is_layer_name,
    is_nvram_name,
    partial,
)
from understudy.storage.qcow2.sealed import sealed, unsealed

FORMAT = 1
_MODE = 0o600
REBUILD = "rebuild it: 'understudy replica rebuild DATASTORE/REPLICA'"
"""What to do about a record that is lost or damaged."""


@dataclass(frozen=True)
class Record:
    """The content of ``replica.json``.

    :ivar merging: the disks of the oldest point whose layers are being merged; empty unless a retirement is unfinished.
    :ivar unlisted: layers of no point on record that points on record lie on, see :class:`UnlistedLayer`.
    :ivar kept: files, relative to the replica, of points that could not be proved at a rebuild: they stay.
    """

    replica: Replica
    merging: tuple[MergingDisk, ...] = ()
    unlisted: tuple[UnlistedLayer, ...] = ()
    kept: tuple[str, ...] = ()


def load_record(place: Place) -> Record:
    """The record of the replica.

    :raises NotFound: if there is no replica.
    :raises ReplicaError: if the record is damaged, of a newer format, or lost.
    """
    data = _read(place, place.record)
    if data is not None:
        return parse_record(place.what, data)
    if not place.root.parent.is_dir():
        raise DatastoreError(f"load {place.what}", "the datastore directory does not exist",
                             "check that the datastore is mounted")
    problem = record_problem(place)
    if problem:
        raise ReplicaError(f"load {place.what}", problem, REBUILD)
    raise NotFound(place.what, "no such replica")


def record_problem(place: Place) -> str:
    """Why there is no record that can be used, though there are files of restore points; else empty.

    :raises ReplicaError: if the record is of a newer format.
    """
    data = _read(place, place.record)
    if data is None:
        with datastore_errors(f"look at {place.what}"):
            left = place.finished_files()
        return f"replica.json is lost, {len(left)} files of restore points are there ({left[0].name})" if left else ""
    try:
        _parse(place.what, data)
    except Malformed as exc:
        return f"replica.json is damaged: {exc}"
    return ""


def previous_record(place: Place) -> Record | None:
    """The record before the present one; None if it is missing or damaged. It may tell of points that are gone."""
    data = _read(place, place.previous)
    try:
        return None if data is None else _parse(place.what, data)
    except Malformed:
        return None


def _read(place: Place, path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise datastore_error(f"load {place.what}", exc) from exc


def save_record(place: Place, record: Record) -> Record:
    """Make ``record`` the truth, in one durable rename; the one before is kept as ``replica.json.previous``.

    :raises ReplicaError: if it contradicts itself; nothing is changed then.
    """
    data = render_record(record)
    try:
        survives = _parse(place.what, data) == record
    except Malformed as exc:
        raise ReplicaError(f"save {place.what}", f"the record would be damaged: {exc}") from exc
    if not survives:
        raise ReplicaError(f"save {place.what}", "the record does not survive being written")
    with datastore_errors(f"save {place.what}"):
        before = _read(place, place.record)
        if before is not None and not record_problem(place):
            replace_durable(place.previous, partial(place.previous), before, _MODE)
        replace_durable(place.record, partial(place.record), data, _MODE)
    return record


def render_record(record: Record) -> bytes:
    """``record`` as a document with its checksum."""
    document = {"understudy": "replica", "format": FORMAT, "replica": asdict(record.replica),
                "merging": [asdict(disk) for disk in record.merging]}
    if record.unlisted or record.kept:
        document |= {"unlisted": [asdict(layer) for layer in record.unlisted], "kept": list(record.kept)}
    return sealed(document)


def parse_record(what: str, data: bytes) -> Record:
    """The record in a document; ``what`` names the replica in errors.

    :raises ReplicaError: if the document is damaged, of a newer format, or contradicts itself.
    """
    try:
        return _parse(what, data)
    except Malformed as exc:
        raise ReplicaError(f"load {what}", f"replica.json is damaged: {exc}", REBUILD) from exc


def _parse(what: str, data: bytes) -> Record:
    return Fields.made("replica.json", unsealed(f"load {what}", data, "replica", FORMAT), _record)


def _record(fields: Fields) -> Record:
    fields.text("understudy")
    fields.number("format", 1)
    replica, merging = fields.child("replica", _replica), fields.children("merging", _merging)
    rebuilt = fields.has("unlisted")
    unlisted = fields.children("unlisted", _unlisted) if rebuilt else ()
    kept = fields.texts("kept") if rebuilt else ()
    problem = contradictions(replica, merging, unlisted)
    if problem:
        raise Malformed(problem)
    return Record(replica, merging, unlisted, kept)


def _replica(fields: Fields) -> Replica:
    return Replica(
        identity=fields.child("identity", identity_fields),
        state=ReplicaState(fields.text("state", lambda text: text in set(ReplicaState))),
        points=fields.children("points", point_fields),
        head_point=fields.text("head_point"),
        conversion=Conversion(fields.text("conversion", lambda text: text in set(Conversion)))
        if fields.has("conversion") else Conversion.NONE)


def identity_fields(fields: Fields) -> ReplicaIdentity:
    """A replica's identity in a document."""
    names = ("id", "name", "job_id", "job_name", "source_vm", "source_uuid", "domain_uuid")
    return ReplicaIdentity(**{name: fields.text(name) for name in names})


def point_fields(fields: Fields) -> RestorePoint:
    """A restore point in a document."""
    point = fields.text("id", _is_point_id)
    return RestorePoint(
        id=point,
        created_at=fields.text("created_at", is_utc_time),
        consistency=Consistency(fields.text("consistency", lambda text: text in set(Consistency))),
        session=fields.number("session", 0),
        block_size=fields.number("block_size", SECTOR, SECTOR),
        disks=fields.children("disks", _disk),
        baseline=fields.optional_child("baseline", _baseline),
        versions=fields.text_map("versions"),
        nvram=fields.text("nvram", lambda text: not text or is_nvram_name(text)),
        generation=fields.optional_child("generation", _generation) if fields.has("generation") else None,
        excluded=fields.text("excluded", ("", excluded_name(point)).__contains__) if fields.has("excluded") else "",
        applications=fields.children("applications", _application) if fields.has("applications") else ())


def _application(fields: Fields) -> ApplicationResult:
    return ApplicationResult(
        kind=fields.text("kind"),
        name=fields.text("name"),
        state=ApplicationState(fields.text("state", lambda text: text in set(ApplicationState))),
        detail=fields.text("detail"),
        label=fields.text("label"))


def _disk(fields: Fields) -> PointDisk:
    return PointDisk(
        name=fields.text("name", bool),
        size=fields.number("size", SECTOR, SECTOR),
        layer=fields.text("layer", is_layer_name),
        backing=fields.text("backing", lambda text: not text or is_layer_name(text)),
        digest=fields.text("digest", is_digest_name),
        file_bytes=fields.number("file_bytes", 1),
        source_path=fields.text("source_path"))


def _baseline(fields: Fields) -> Baseline:
    return Baseline(
        checkpoint=fields.text("checkpoint"),
        disks=fields.texts("disks"),
        point=fields.text("point", lambda text: not text or _is_point_id(text)) if fields.has("point") else "",
        made_at=fields.text("made_at") if fields.has("made_at") else "",
        change_ids=fields.texts("change_ids") if fields.has("change_ids") else ())


def _generation(fields: Fields) -> SourceGeneration:
    return SourceGeneration(fields.children("images", _image))


def _image(fields: Fields) -> ImageGeneration:
    return ImageGeneration(
        disk=fields.text("disk", bool),
        file=fields.child("file", _file_mark),
        bitmaps=fields.optional_texts("bitmaps"))


def _file_mark(fields: Fields) -> FileMark:
    names = ("inode", "size", "mtime_ns", "ctime_ns")
    return FileMark(**{name: fields.number(name, 0) for name in names})


def _merging(fields: Fields) -> MergingDisk:
    return MergingDisk(fields.text("disk"), fields.texts("below", is_layer_name))


def _unlisted(fields: Fields) -> UnlistedLayer:
    return UnlistedLayer(
        disk=fields.text("disk", bool),
        file=fields.text("file", is_layer_name),
        size=fields.number("size", SECTOR, SECTOR),
        backing=fields.text("backing", lambda text: not text or is_layer_name(text)),
        file_bytes=fields.number("file_bytes", 1))


def _is_point_id(text: str) -> bool:
    try:
        check_point_id(text)
    except ReplicaError:
        return False
    return True
