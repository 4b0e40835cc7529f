"""UEFI variables: stored with a point, copied to the head, gone with the point."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.storage.replica_lab import IDENTITY
from understudy.errors import ReplicaError
from understudy.model.replica import Consistency
from understudy.storage.qcow2.store import Qcow2Store
from understudy.storage.values import NewDisk, PointMeta

SIZE = 1 << 20
META = PointMeta("p1", "2026-01-02T03:04:05+00:00", Consistency.CRASH, 1, SIZE, None, {}, "<domain/>")


def publish(store: Qcow2Store, point: str, nvram: str) -> None:
    draft = store.begin_point(point, (NewDisk("vda", SIZE, chained=store.load().newest is not None),))
    draft.layer("vda").finish()
    draft.digest_path("vda").write_bytes(b"digests")
    draft.publish(replace(META, id=point, nvram=nvram))


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_the_head_gets_a_copy_of_the_points_variables_that_the_vm_may_change(tmp_path: Path) -> None:
    store = Qcow2Store(tmp_path, "web")
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, "p1", encoded(b"\0\xffboot order"))
        head = Path(store.bind_head("p1").nvram)
        assert head.read_bytes() == b"\0\xffboot order"
        head.write_bytes(b"changed by the replica VM")
        assert store.head().empty
        assert Path(store.bind_head("p1").nvram).read_bytes() == b"\0\xffboot order"


def test_variables_go_with_their_point_and_stay_with_the_others(tmp_path: Path) -> None:
    store = Qcow2Store(tmp_path, "web")
    with store.lock(1):
        store.create(IDENTITY)
        for number in (1, 2):
            publish(store, f"p{number}", encoded(b"%d" % number))
        assert store.sweep() == []
        store.bind_head("p2")
        store.retire(("p1",))
        left = sorted(path.name for path in (tmp_path / "web" / "points").iterdir())
        assert left == ["p2.json", "p2.nvram", "p2.xml"]
        assert Path(store.head().nvram).read_bytes() == b"2"


def test_a_point_of_a_bios_vm_has_none_and_takes_those_of_another_point_away(tmp_path: Path) -> None:
    store = Qcow2Store(tmp_path, "web")
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, "p1", encoded(b"1"))
        publish(store, "p2", "")
        assert store.bind_head("p1").nvram
        assert store.bind_head("p2").nvram == ""
        assert not (tmp_path / "web" / "head" / "nvram.fd").exists()


def test_lost_variables_are_an_error_and_never_fresh_ones_in_silence(tmp_path: Path) -> None:
    store = Qcow2Store(tmp_path, "web")
    with store.lock(1):
        store.create(IDENTITY)
        publish(store, "p1", encoded(b"1"))
        (tmp_path / "web" / "points" / "p1.nvram").unlink()
        with pytest.raises(ReplicaError, match="UEFI variables"):
            store.bind_head("p1")
