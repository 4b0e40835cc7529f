"""What does ``replica.json`` say, and can it be trusted?

The document is ``{"understudy": "replica", "format": 1, "checksum": ..., "replica": {...}, "merging": [...]}``. The
checksum is SHA-256 over the document without it, as JSON with sorted keys and no spaces. It shows damage; it is not a
seal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from understudy.errors import DatastoreError, NotFound, ReplicaError
from understudy.model.replica import (
    Baseline,
    Consistency,
    FileMark,
    ImageGeneration,
    PointDisk,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
    SourceGeneration,
)
from understudy.storage.qcow2.chains import MergingDisk, contradictions
from understudy.storage.qcow2.fields import Fields, Malformed, is_utc_time, parse_object
from understudy.storage.qcow2.files import datastore_error, datastore_errors, replace_durable
from understudy.storage.qcow2.format import SECTOR
from understudy.storage.qcow2.names import Place, check_point_id, is_digest_name, is_layer_name, is_nvram_name, partial

FORMAT = 1
_MODE = 0o600


@dataclass(frozen=True)
class Record:
    """The content of ``replica.json``.

    :ivar merging: the disks of the oldest point whose layers are being merged; empty unless a retirement is unfinished.
    """

    replica: Replica
    merging: tuple[MergingDisk, ...] = ()


def load_record(place: Place) -> Record:
    """The record of the replica.

    :raises NotFound: if there is no replica.
    :raises ReplicaError: if the record is damaged or of a newer format.
    """
    try:
        data = place.record.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as exc:
        if not place.root.parent.is_dir():
            raise DatastoreError(f"load {place.what}", "the datastore directory does not exist",
                                 "check that the datastore is mounted") from exc
        raise NotFound(place.what, "no such replica") from exc
    except OSError as exc:
        raise datastore_error(f"load {place.what}", exc) from exc
    return parse_record(place.what, data)


def save_record(place: Place, record: Record) -> Record:
    """Make ``record`` the truth, in one durable rename.

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
        replace_durable(place.record, partial(place.record), data, _MODE)
    return record


def render_record(record: Record) -> bytes:
    """``record`` as a document with its checksum."""
    document = {"understudy": "replica", "format": FORMAT, "replica": asdict(record.replica),
                "merging": [asdict(disk) for disk in record.merging]}
    return json.dumps(document | {"checksum": _checksum(document)}, indent=1).encode() + b"\n"


def parse_record(what: str, data: bytes) -> Record:
    """The record in a document; ``what`` names the replica in errors.

    :raises ReplicaError: if the document is damaged, of a newer format, or contradicts itself.
    """
    try:
        return _parse(what, data)
    except Malformed as exc:
        raise ReplicaError(f"load {what}", f"replica.json is damaged: {exc}",
                           "restore this file from a copy, or remove the replica and replicate again") from exc


def _parse(what: str, data: bytes) -> Record:
    document = parse_object(data)
    _check_format(what, document)
    try:
        checksum = _checksum({name: value for name, value in document.items() if name != "checksum"})
    except RecursionError as exc:
        raise Malformed("nested too deep") from exc
    if document.pop("checksum", None) != checksum:
        raise Malformed("the checksum does not match")
    return Fields.made("replica.json", document, _record)


def _check_format(what: str, document: dict[str, Any]) -> None:
    version = document.get("format")
    if document.get("understudy") != "replica" or type(version) is not int or version < 1:
        raise Malformed("it is no record of a replica")
    if version > FORMAT:
        raise ReplicaError(f"load {what}",
                           f"replica.json has format {version}, this program knows formats up to {FORMAT}",
                           "use a newer Understudy on this host")


def _checksum(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _record(fields: Fields) -> Record:
    fields.text("understudy")
    fields.number("format", 1)
    record = Record(fields.child("replica", _replica), fields.children("merging", _merging))
    problem = contradictions(record.replica, record.merging)
    if problem:
        raise Malformed(problem)
    return record


def _replica(fields: Fields) -> Replica:
    return Replica(
        identity=fields.child("identity", _identity),
        state=ReplicaState(fields.text("state", lambda text: text in set(ReplicaState))),
        points=fields.children("points", _point),
        head_point=fields.text("head_point"))


def _identity(fields: Fields) -> ReplicaIdentity:
    names = ("id", "name", "job_id", "job_name", "source_vm", "source_uuid", "domain_uuid")
    return ReplicaIdentity(**{name: fields.text(name) for name in names})


def _point(fields: Fields) -> RestorePoint:
    return RestorePoint(
        id=fields.text("id", _is_point_id),
        created_at=fields.text("created_at", is_utc_time),
        consistency=Consistency(fields.text("consistency", lambda text: text in set(Consistency))),
        session=fields.number("session", 0),
        block_size=fields.number("block_size", SECTOR, SECTOR),
        disks=fields.children("disks", _disk),
        baseline=fields.optional_child("baseline", _baseline),
        versions=fields.text_map("versions"),
        nvram=fields.text("nvram", lambda text: not text or is_nvram_name(text)),
        generation=fields.optional_child("generation", _generation) if fields.has("generation") else None)


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
        made_at=fields.text("made_at") if fields.has("made_at") else "")


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


def _is_point_id(text: str) -> bool:
    try:
        check_point_id(text)
    except ReplicaError:
        return False
    return True
