"""replica.json: what is written can be read, and nothing else is believed."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import DatastoreError, NotFound, ReplicaError
from understudy.model.guest import ApplicationResult, ApplicationState
from understudy.model.replica import (
    Baseline,
    Consistency,
    FileMark,
    ImageGeneration,
    PointDisk,
    Replica,
    ReplicaState,
    RestorePoint,
    SourceGeneration,
)
from understudy.storage.qcow2.chains import MergingDisk
from understudy.storage.qcow2.manifest import Record, load_record, parse_record, render_record, save_record
from understudy.storage.qcow2.names import Place
from understudy.storage.records.sealed import checksum

from .replica_lab import IDENTITY

MIB = 1 << 20


MARK = FileMark(inode=1234, size=5 * MIB, mtime_ns=1_795_571_942_123_456_789, ctime_ns=1_795_571_942_223_456_789)
GENERATION = SourceGeneration((
    ImageGeneration("vda", MARK, ("understudy-1", "größe")), ImageGeneration("vdb", MARK, None)))
# Fields that records of older versions do not have.
LATER = {"generation", "point", "made_at", "change_ids", "excluded", "applications", "conversion"}


def disk(name: str, point: str, backing: str = "", size: int = MIB) -> PointDisk:
    return PointDisk(name, size, f"{name}-{point}.qcow2", backing, f"{name}-{point}.digest", 458752, "/images/ü.qcow2")


def point(point_id: str, *disks: PointDisk) -> RestorePoint:
    return RestorePoint(point_id, "2026-01-02T03:04:05.678901+00:00", Consistency.APPLICATION, 3, MIB, disks,
                        Baseline("understudy-1", ("vda",), "1", "1795571942"), {"qemu-img": "7.2", "größe": "1"},
                        generation=GENERATION, excluded=f"{point_id}.excluded",
                        applications=(ApplicationResult("mysql", "3306", ApplicationState.FAILED, "größer", "b 1"),))


REPLICA = Replica(IDENTITY, ReplicaState.READY, (
    point("1", disk("vda", "1"), disk("vdb", "1")),
    point("2", disk("vda", "2", "vda-1.qcow2", 2 * MIB)),
    replace(point("3", disk("vda", "3", "vda-2.qcow2", 2 * MIB), disk("vdb", "3")), baseline=None)), "2")
RECORD = Record(REPLICA)
MERGING = Record(replace(REPLICA, points=REPLICA.points[1:]), (MergingDisk("vda", ("vda-0.qcow2", "vda-1.qcow2")),))
DOCUMENT = render_record(RECORD)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "web").mkdir()
    return Place(tmp_path / "web", "web")


@pytest.mark.parametrize("record", [RECORD, MERGING, Record(Replica(IDENTITY, ReplicaState.FAILOVER, ()))])
def test_a_saved_record_is_loaded_as_it_was(place: Place, record: Record) -> None:
    save_record(place, record)
    assert load_record(place) == record
    assert [path.name for path in place.root.iterdir()] == ["replica.json"]
    assert place.record.stat().st_mode & 0o777 == 0o600


def test_a_record_of_an_older_version_is_read(place: Place) -> None:
    document = json.loads(DOCUMENT)
    del document["checksum"]
    for item in document["replica"]["points"]:
        del item["generation"], item["excluded"], item["applications"]
        if item["baseline"]:
            del item["baseline"]["point"], item["baseline"]["made_at"], item["baseline"]["change_ids"]
    place.record.write_bytes(json.dumps(document | {"checksum": checksum(document)}).encode())
    older = load_record(place).replica.points
    assert [(item.generation, item.excluded, item.applications) for item in older] == 3 * [(None, "", ())]
    assert older[0].baseline == Baseline("understudy-1", ("vda",))
    assert [item.disks for item in older] == [item.disks for item in REPLICA.points]


def test_no_record_is_no_replica_and_no_datastore_is_said(place: Place, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_record(place)
    with pytest.raises(DatastoreError, match="does not exist"):
        load_record(Place(tmp_path / "gone" / "web", "web"))


@settings(max_examples=400)
@given(position=st.integers(0, len(DOCUMENT) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_another_record(position: int, bit: int) -> None:
    damaged = bytearray(DOCUMENT)
    damaged[position] ^= 1 << bit
    _believe_only(bytes(damaged))


@settings(max_examples=100)
@given(length=st.integers(0, len(DOCUMENT) - 2))
def test_a_cut_document_is_an_error(length: int) -> None:
    with pytest.raises(ReplicaError):
        parse_record("replica 'web'", DOCUMENT[:length])


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(ReplicaError):
        parse_record("replica 'web'", data)


@pytest.mark.parametrize("data", [
    b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\xff", b'{"format": NaN}',
    b'{"understudy": "replica", "understudy": "replica"}', b'{"understudy": "replica", "format": ' + b"9" * 5000 + b"}",
])
def test_hand_made_nonsense_is_an_error(data: bytes) -> None:
    with pytest.raises(ReplicaError):
        parse_record("replica 'web'", data)


def _believe_only(data: bytes) -> None:
    try:
        found = parse_record("replica 'web'", data)
    except ReplicaError:
        return
    assert found == RECORD  # white space was hit


def test_a_newer_format_is_refused_with_its_number() -> None:
    document = json.loads(DOCUMENT)
    document["format"] = 2
    with pytest.raises(ReplicaError, match=r"format 2, this program knows formats up to 1; use a newer Understudy"):
        parse_record("replica 'web'", json.dumps(document).encode())


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path]
    if isinstance(value, dict):
        found += [deeper for key in value for deeper in _paths(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [deeper for index, item in enumerate(value) for deeper in _paths(item, (*path, index))]
    return found


def _sealed(document: dict[str, Any]) -> bytes:
    document.pop("checksum", None)
    return json.dumps(document | {"checksum": checksum(document)}).encode()


PLAIN = {key: value for key, value in json.loads(DOCUMENT).items() if key != "checksum"}
ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                st.text(st.characters(), max_size=8), st.just([]), st.just({}), st.just("../x"), st.just("vda-1.qcow2"))


@settings(max_examples=400)
@given(path=st.sampled_from([path for path in _paths(PLAIN) if path]), value=ANY)
def test_a_hand_made_value_with_a_right_checksum_is_an_error_or_the_value_itself(
        path: tuple[str | int, ...], value: Any) -> None:
    document = deepcopy(PLAIN)
    parent: Any = document
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    try:
        found = parse_record("replica 'web'", _sealed(document))
    except ReplicaError:
        return
    again = json.loads(render_record(found))
    del again["checksum"]
    document.pop("checksum", None)
    assert again == document


@settings(max_examples=100)
@given(path=st.sampled_from([path for path in _paths(PLAIN) if path and isinstance(path[-1], str)
                             and "versions" not in path[:-1] and path[-1] not in LATER]))
def test_a_missing_field_and_an_unknown_one_are_errors(path: tuple[str | int, ...]) -> None:
    for change in ("remove", "add"):
        document = deepcopy(PLAIN)
        parent: Any = document
        for step in path[:-1]:
            parent = parent[step]
        if change == "remove":
            del parent[path[-1]]
        else:
            parent["surprise"] = 1
        with pytest.raises(ReplicaError):
            parse_record("replica 'web'", _sealed(document))


@pytest.mark.parametrize("name", [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b-1.qcow2", "vda-1.qcow2\n", "../vda-1.qcow2",
    "vda-1.qcow2.partial", "..-1.qcow2", "vda-1.qcow2\0", "vda-..qcow2"])
def test_file_names_that_leave_the_directory_are_refused(name: str) -> None:
    for field in ("layer", "digest", "backing"):
        if field == "backing" and not name:
            continue
        document = deepcopy(PLAIN)
        document["replica"]["points"][0]["disks"][0][field] = name.replace(".qcow2", ".digest") \
            if field == "digest" else name
        with pytest.raises(ReplicaError):
            parse_record("replica 'web'", _sealed(document))


FIRST, SECOND, THIRD = REPLICA.points


@pytest.mark.parametrize(("record", "why"), [
    (Record(replace(REPLICA, points=(FIRST, FIRST))), "occurs 2 times"),
    (Record(replace(REPLICA, head_point="9")), "the head lies on"),
    (Record(replace(REPLICA, points=(SECOND, THIRD))), "not there"),
    (Record(replace(REPLICA, points=(FIRST, THIRD), head_point="")), "not the point before"),
    (Record(replace(REPLICA, points=(FIRST, point("2", disk("vda", "2", "vda-1.qcow2", 512))))), "smaller"),
    (Record(replace(REPLICA, points=(point("1", disk("vda", "1"), disk("vda", "2")),), head_point="")), "occurs 2"),
    (Record(replace(REPLICA, points=(point("1", disk("vda", "1", "vda-1.qcow2")),), head_point="")), "not there"),
    (Record(REPLICA, (MergingDisk("vda", ("vda-0.qcow2",)),)), "being merged"),
    (Record(MERGING.replica, (MergingDisk("vda", ()),)), "not there"),
    (Record(MERGING.replica, (MergingDisk("vda", ("vda-3.qcow2", "vda-1.qcow2")),)), "occurs 2 times"),
    (Record(MERGING.replica, (MergingDisk("vda", ("vda-1.qcow2",)), MergingDisk("vdb", ("vdb-1.qcow2",)))),
     "being merged"),
    (Record(replace(REPLICA, points=(point("1", disk("vda", "1"), replace(disk("vdb", "1"), layer="vda-9.qcow2")),),
                    head_point="")), "vda-9.qcow2 is no layer of disk vdb"),
    (Record(replace(REPLICA, points=(point("1", disk("vda", "1"), replace(disk("vdb", "1"), digest="vda-9.digest")),),
                    head_point="")), "vda-9.digest holds no digests of disk vdb at point 1"),
    (Record(replace(REPLICA, points=(point("1", replace(disk("vda", "1"), digest="vda-2.digest")),), head_point="")),
     "vda-2.digest holds no digests of disk vda at point 1"),
    (Record(MERGING.replica, (MergingDisk("vda", ("vdb-0.qcow2", "vda-1.qcow2")),)), "vdb-0.qcow2 is no layer"),
])
def test_a_record_that_contradicts_itself_is_neither_saved_nor_believed(place: Place, record: Record, why: str) -> None:
    with pytest.raises(ReplicaError, match=why):
        save_record(place, record)
    assert not place.record.exists()
    with pytest.raises(ReplicaError, match=why):
        parse_record("replica 'web'", render_record(record))


def test_a_time_without_a_zone_is_not_recorded(place: Place) -> None:
    bad = replace(FIRST, created_at="2026-01-02T03:04:05")
    with pytest.raises(ReplicaError, match="created_at"):
        save_record(place, Record(replace(REPLICA, points=(bad,), head_point="")))
