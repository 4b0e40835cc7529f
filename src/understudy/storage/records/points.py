"""How do an identity and a restore point stand in a document?"""

from __future__ import annotations

import functools
from collections.abc import Callable

from understudy.errors import ReplicaError
from understudy.model.guest import ApplicationResult, ApplicationState
from understudy.model.replica import (
    Baseline,
    Consistency,
    FileMark,
    ImageGeneration,
    PointDisk,
    ReplicaIdentity,
    RestorePoint,
    SourceGeneration,
)
from understudy.storage.records.fields import Fields, is_utc_time
from understudy.storage.records.place import check_point_id, excluded_name, is_digest_name, is_nvram_name

SECTOR = 512


def identity_fields(fields: Fields) -> ReplicaIdentity:
    """A replica's identity in a document."""
    names = ("id", "name", "job_id", "job_name", "source_vm", "source_uuid", "domain_uuid")
    return ReplicaIdentity(**{name: fields.text(name) for name in names})


def point_fields(fields: Fields, is_layer: Callable[[str], bool]) -> RestorePoint:
    """A restore point in a document.

    :param is_layer: whether a layer may be called so.
    """
    point = fields.text("id", _is_point_id)
    return RestorePoint(
        id=point,
        created_at=fields.text("created_at", is_utc_time),
        consistency=Consistency(fields.text("consistency", lambda text: text in set(Consistency))),
        session=fields.number("session", 0),
        block_size=fields.number("block_size", SECTOR, SECTOR),
        disks=fields.children("disks", functools.partial(_disk, is_layer=is_layer)),
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


def _disk(fields: Fields, is_layer: Callable[[str], bool]) -> PointDisk:
    return PointDisk(
        name=fields.text("name", bool),
        size=fields.number("size", SECTOR, SECTOR),
        layer=fields.text("layer", is_layer),
        backing=fields.text("backing", lambda text: not text or is_layer(text)),
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


def _is_point_id(text: str) -> bool:
    try:
        check_point_id(text)
    except ReplicaError:
        return False
    return True
