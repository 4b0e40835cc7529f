"""The source side's digest copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.errors import NotFound, ReplicaError, UsageError
from understudy.mover.api import DigestRef
from understudy.mover.copies import DigestCopies
from understudy.mover.digest import DigestHeader, DigestWriter
from understudy.units import MIB


def write(path: Path, point: str) -> None:
    with DigestWriter(path, DigestHeader(point, 100 * MIB, MIB)) as writer:
        writer.put(1, point.encode().ljust(16)[:16])
        writer.finish()


def ref(point: str, disk: str = "vda") -> DigestRef:
    return DigestRef("replica", disk, point)


def test_the_older_copy_goes_only_when_the_newer_is_kept(tmp_path: Path) -> None:
    copies = DigestCopies(tmp_path)
    for point, disk in (("p1", "vda"), ("p1", "vd"), ("p1", "vda-x")):
        write(copies.partial_path(ref(point, disk)), point)
        copies.keep(ref(point, disk))
    write(copies.partial_path(ref("p2")), "p2")
    assert copies.usable(ref("p1"))
    assert not copies.usable(ref("p2"))
    copies.keep(ref("p2"))
    copies.keep(ref("p2"))
    assert copies.usable(ref("p2"))
    assert not copies.usable(ref("p1"))
    assert copies.usable(ref("p1", "vd"))
    assert copies.usable(ref("p1", "vda-x"))


def test_copies_of_older_points_that_are_still_needed_stay(tmp_path: Path) -> None:
    copies = DigestCopies(tmp_path)
    for point in ("p1", "p2", "p3"):
        write(copies.partial_path(ref(point)), point)
        copies.keep(ref(point), ("p1", "none"))
    assert [copies.usable(ref(point)) for point in ("p1", "p2", "p3")] == [True, False, True]


def test_nothing_to_keep_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        DigestCopies(tmp_path).keep(ref("p1"))


def test_an_unfinished_copy_is_never_kept(tmp_path: Path) -> None:
    copies = DigestCopies(tmp_path)
    DigestWriter(copies.partial_path(ref("p1")), DigestHeader("p1", MIB, MIB)).close()
    with pytest.raises(ReplicaError):
        copies.keep(ref("p1"))
    assert not copies.usable(ref("p1"))


def test_a_copy_of_another_point_or_damaged_is_not_usable(tmp_path: Path) -> None:
    copies = DigestCopies(tmp_path)
    write(copies.partial_path(ref("p1")), "p1")
    copies.keep(ref("p1"))
    copies.path(ref("p1")).rename(copies.path(ref("p9")))
    assert not copies.usable(ref("p9"))
    received = tmp_path / "received"
    write(received, "p1")
    with pytest.raises(ReplicaError, match="of point"):
        copies.store(ref("p2"), received)
    copies.store(ref("p1"), received)
    assert copies.usable(ref("p1"))
    with copies.path(ref("p1")).open("r+b") as file:
        file.seek(4096 + 20)
        file.write(b"!")
    assert not copies.usable(ref("p1"))


def test_dropping_removes_one_point_or_all(tmp_path: Path) -> None:
    copies = DigestCopies(tmp_path)
    for disk in ("vda", "vdb"):
        write(copies.partial_path(ref("p1", disk)), "p1")
        copies.keep(ref("p1", disk))
        write(copies.partial_path(ref("p2", disk)), "p2")
    assert len(copies.drop("replica", "p2")) == 2
    assert copies.usable(ref("p1"))
    assert len(copies.drop("replica", "")) == 2
    assert not (tmp_path / "replica").exists()
    assert copies.drop("replica", "") == []


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    copies = DigestCopies(tmp_path / "d")
    with pytest.raises(UsageError):
        copies.drop(name, "")
    path = copies.path(DigestRef("../../etc", "../x", "/a"))
    assert path.parent.parent == tmp_path / "d"
