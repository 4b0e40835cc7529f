"""What verifying finds out is remembered beside the replica, and shows at every point that reads the same damage."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.errors import NotFound, Refused
from understudy.model.extent import Extent, by_block, merge
from understudy.model.health import DiskHealth, affected_points, health_of
from understudy.storage.qcow2 import shared
from understudy.storage.qcow2.store import Qcow2Store
from understudy.storage.records import health as health_module
from understudy.storage.records.sealed import checksum
from understudy.storage.values import NewDisk
from understudy.units import KIB, MIB

from .replica_lab import Lab, lab_in, point_meta

SIZE = 8 * MIB
EARLY, NOON, LATE = (f"2026-01-02T{hour}:00:00.000+00:00" for hour in ("08", "12", "18"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_in(tmp_path) as made:
        yield made


def add(store: Qcow2Store, point: str, *clusters: int, chained: bool = True, zeros: tuple[int, ...] = ()) -> None:
    """Publish a point whose layer has these clusters of 64 KiB, blocks being of 1 MiB."""
    draft = store.begin_point(point, (NewDisk("vda", SIZE, chained),))
    for cluster in clusters:
        draft.layer("vda").write_at(cluster * 64 * KIB, point.encode() * (64 * KIB // len(point)))
    for cluster in zeros:
        draft.layer("vda").zero(cluster * 64 * KIB, 64 * KIB)
    draft.layer("vda").finish()
    draft.digest_path("vda").write_bytes(b"digests")
    draft.publish(point_meta(point))


def damage(store: Qcow2Store, point: str, *blocks: int, found_at: str = NOON) -> None:
    bad = tuple(merge(Extent(block * MIB, MIB) for block in blocks))
    store.change_health(point, "vda", lambda known: replace(
        known, bad=bad, bad_blocks=len(blocks), found_at=found_at))  # fmt: skip


def bad_in(store: Qcow2Store) -> dict[str, list[int]]:
    found = {item.point: [index for index, _ in by_block(item.bad, MIB)] for item in store.health() if item.bad}
    assert {item.point: item.bad_blocks for item in store.health() if item.bad} == {
        point: len(blocks) for point, blocks in found.items()}
    return found


def test_what_was_remembered_is_known_to_whoever_comes_after(lab: Lab, tmp_path: Path) -> None:
    add(lab.store, "p001", 0, chained=False)
    assert lab.store.health() == ()
    wanted = DiskHealth("p001", "vda", EARLY, MIB, NOON, (Extent(0, MIB), Extent(3 * MIB, MIB)), 2, NOON, "odd ü", LATE)
    lab.store.change_health("p001", "vda", lambda known: wanted)
    assert Qcow2Store(tmp_path, "web 1_replica").health() == (wanted,)
    assert health_of(lab.store.health(), "p001", "vdb") == DiskHealth("p001", "vdb")
    names = {path.name for path in lab.store.image("p001", "vda").parent.parent.iterdir()}
    assert names >= {"health.json"}
    assert not names & {".health", ".verify", "health.json.partial"}
    with pytest.raises(NotFound):
        lab.store.change_health("p009", "vda", lambda known: wanted)
    with pytest.raises(NotFound):
        lab.store.change_health("p001", "vdb", lambda known: wanted)


def mutations(document: bytes) -> dict[str, bytes]:
    def with_(key: str, value: object) -> bytes:
        return json.dumps(json.loads(document) | {key: value}).encode()

    return {
        "empty": b"", "cut": document[:-20], "no object": b"[]", "flipped": document.replace(b"1048576", b"1048577"),
        "newer": with_("format", 2), "of another replica": with_("replica", "other"), "no text": b"\xff\xfe",
        "deep": b'{"a":' + b"[" * 100_000, "no checksum": with_("checksum", None),
    }  # fmt: skip


def test_a_damaged_or_missing_file_means_that_nothing_is_known_and_is_written_anew(lab: Lab) -> None:
    add(lab.store, "p001", 0, chained=False)
    damage(lab.store, "p001", 1)
    path = lab.store.image("p001", "vda").parent.parent / "health.json"
    good = path.read_bytes()
    for name, content in mutations(good).items():
        path.write_bytes(content)
        assert lab.store.health() == (), name
        damage(lab.store, "p001", 1)
        assert path.read_bytes() == good, name
    path.unlink()
    assert lab.store.health() == ()
    path.mkdir()
    assert lab.store.health() == ()


@pytest.mark.parametrize("bad", [[[0, 0]], [[-1, 5]], [[5, 5], [0, 5]], [[0, 5], [5, 5]], [[0, 9 * MIB]], [[0]], [0],
                                 [[True, 5]], {}])  # fmt: skip
def test_impossible_ranges_are_not_believed_even_with_a_right_checksum(lab: Lab, bad: object) -> None:
    add(lab.store, "p001", 0, chained=False)
    damage(lab.store, "p001", 1)
    path = lab.store.image("p001", "vda").parent.parent / "health.json"
    document = json.loads(path.read_bytes())
    document.pop("checksum")
    document["disks"][0]["bad"] = bad
    path.write_text(json.dumps(document | {"checksum": checksum(document)}))
    assert lab.store.health() == ()


def test_many_ranges_become_few_that_cover_them(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "MOST_BAD_RANGES", 2)
    add(lab.store, "p001", 0, chained=False)
    damage(lab.store, "p001", 0, 2, 4, 6)
    (item,) = lab.store.health()
    assert item.bad == (Extent(0, MIB), Extent(2 * MIB, 5 * MIB))
    assert item.bad_blocks == 4


def test_damage_shows_at_every_point_that_reads_the_same_layer_and_at_no_other(lab: Lab) -> None:
    store = lab.store
    add(store, "p001", *range(64), chained=False)  # blocks 0 to 3
    add(store, "p002", *range(16))                 # block 0 whole
    add(store, "p003", 16, 17)                     # block 1 in part
    add(store, "p004", zeros=tuple(range(32, 48)))  # block 2 whole, as zeros
    add(store, "p005", 0, chained=False)
    damage(store, "p001", 0, 1, 2, 5)
    # Block 5 is in no layer: where its table entries were lost, all that would read them are affected.
    assert bad_in(store) == {"p001": [0, 1, 2, 5], "p002": [1, 2, 5], "p003": [1, 2, 5], "p004": [1, 5]}
    assert affected_points(store.health(), "p001", "vda") == ("p002", "p003", "p004")
    damage(store, "p001")
    damage(store, "p003", 0, 1)
    assert bad_in(store) == {"p001": [1], "p002": [0, 1], "p003": [0, 1], "p004": [0, 1]}
    damage(store, "p003")
    damage(store, "p004", 2)
    assert bad_in(store) == {"p004": [2]}


def test_a_point_that_was_found_good_since_is_not_called_damaged(lab: Lab) -> None:
    store = lab.store
    add(store, "p001", *range(32), chained=False)
    add(store, "p002", 40)
    damage(store, "p001", 1)
    assert bad_in(store) == {"p001": [1], "p002": [1]}
    store.change_health("p002", "vda", lambda known: replace(known, verified_at=EARLY))
    assert bad_in(store) == {"p001": [1], "p002": [1]}
    store.change_health("p002", "vda", lambda known: replace(known, verified_at=LATE))
    assert bad_in(store) == {"p001": [1]}
    store.change_health("p002", "vda", lambda known: replace(known, digests_recomputed_at=NOON))
    assert bad_in(store) == {"p001": [1], "p002": [1]}


def test_damage_of_points_that_are_retired_is_remembered_of_those_that_read_it(lab: Lab) -> None:
    store = lab.store
    add(store, "p001", *range(32), chained=False)
    add(store, "p002", *range(16))
    add(store, "p003", 40)
    damage(store, "p001", 0, 1)
    store.change_health("p003", "vda", lambda known: replace(known, started_at=LATE, position=MIB))
    store.retire(("p001", "p002"))
    (item,) = store.health()
    assert (item.point, [part.start for part in item.bad]) == ("p003", [MIB])
    assert (item.bad_blocks, item.found_at, item.started_at, item.position) == (1, NOON, LATE, MIB)


def test_a_point_that_is_published_on_damage_has_it_unless_it_wrote_the_blocks_anew(lab: Lab) -> None:
    store = lab.store
    add(store, "p001", *range(32), chained=False)
    damage(store, "p001", 0, 1)
    add(store, "p002", *range(16))
    assert bad_in(store) == {"p001": [0, 1], "p002": [1]}


def test_very_much_damage_is_spread_by_whole_layers(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "EXACT_BLOCKS", 1)
    store = lab.store
    add(store, "p001", *range(32), chained=False)
    add(store, "p002", *range(32))
    add(store, "p003", 1, chained=False)
    damage(store, "p001", 0, 1)
    assert bad_in(store) == {"p001": [0, 1], "p002": [0, 1]}


def test_a_layer_whose_tables_are_gone_may_have_anything(lab: Lab) -> None:
    store = lab.store
    add(store, "p001", *range(32), chained=False)
    add(store, "p002", *range(16))
    damage(store, "p001", 0)
    path = store.image("p002", "vda")
    path.chmod(0o600)
    path.write_bytes(b"")
    assert bad_in(store) == {"p001": [0]}
    damage(store, "p002", 0)
    assert bad_in(store) == {"p001": [0], "p002": [0]}


def _try_to_verify(datastore: Path) -> None:
    with pytest.raises(Refused, match="verified or merged just now"), Qcow2Store(
            datastore, "web 1_replica").verifying():
        pytest.fail("two at once")


def test_verifying_excludes_another_one_and_merging_and_removal(lab: Lab, tmp_path: Path) -> None:
    store = lab.store
    add(store, "p001", 0, chained=False)
    add(store, "p002", 1)
    with store.verifying():
        other = multiprocessing.get_context("spawn").Process(target=_try_to_verify, args=(tmp_path,))
        other.start()
        other.join()
        assert other.exitcode == 0
        for act in (lambda: store.retire(("p001",)), store.remove):
            with pytest.raises(Refused, match="verified or merged just now"):
                act()
        damage(store, "p001", 0)
    assert [point.id for point in store.load().points] == ["p001", "p002"]
    store.retire(("p001",))
    with store.verifying():
        pass
    store.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_making_that_a_crash_left_is_swept_and_a_lock_that_it_left_locks_nobody_out(lab: Lab) -> None:
    store = lab.store
    add(store, "p001", 0, chained=False)
    root = store.image("p001", "vda").parent.parent
    for name in ("health.json.partial", ".verify", ".health"):
        (root / name).write_bytes(b"{")
    damage(store, "p001", 0)
    with store.verifying():
        pass
    (root / "health.json.partial").write_bytes(b"{")
    assert store.sweep() == ["removed health.json.partial"]
    assert bad_in(store) == {"p001": [0]}
