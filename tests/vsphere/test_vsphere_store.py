"""Replicas whose restore points are snapshots: written by real movers through real nbdkit and its plugin.

The disk library is a stand-in. What the platform does, making and reverting snapshots, is done here by copying files.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.contract.test_mover import Lab
from tests.unit.mover.mover_lab import run
from tests.vsphere.library.kit import DiskFact, StandIn
from tests.vsphere.library.lab import PATH, SECTOR, SNAPSHOT, VM, disk, sparse
from understudy.errors import DatastoreError, NotFound, Refused, ReplicaError, UnderstudyError, UsageError
from understudy.model.exclusion import pack
from understudy.model.extent import PART, Extent, merge, round_out, subtract, total
from understudy.model.job import SNAPSHOTS
from understudy.model.replica import Replica, ReplicaIdentity
from understudy.model.snapshot import LibraryDisk, LibraryExport
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.drafts import ORPHANED_S
from understudy.mover.operations_target import attach_disks, begin_point, release_orphans
from understudy.mover.process import MoverProcess
from understudy.mover.state import Mover
from understudy.storage.values import NewDisk
from understudy.units import KIB, MIB

FULL, INCREMENTAL, SCAN = TransferMode.FULL, TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN
SIZE = 24 * MIB + 37 * SECTOR
BLOCK = 256 * KIB
DATA = ((0, MIB), (6 * MIB + 3 * SECTOR, 3 * MIB), (SIZE - SECTOR, SECTOR))
REPLICA, REPLICA_PATH = "vm-99", "[ds 2] web_replica/web.vmdk"


@dataclass
class StoreLab(Lab):
    """A disk that is read through the library, and the replica VM's, in files that stand for leaf and snapshots."""

    library: StandIn | None = None
    block_size: int = BLOCK
    taken: list[str] = field(default_factory=list)

    @property
    def stand_in(self) -> StandIn:
        assert self.library is not None
        return self.library

    @property
    def ref(self) -> api.ReplicaRef:
        return api.ReplicaRef(SNAPSHOTS, str(self.directory / "ds"), "web 1")

    @property
    def leaf(self) -> Path:
        return self.directory / "leaf.raw"

    def size(self) -> int:
        return self.image.stat().st_size

    def frozen(self, point: str) -> Path:
        """The file that stands for a point's snapshot."""
        return self.directory / f"{point}.raw"

    def source_at(self, point: str) -> Path:
        """What the source's disk was at a point."""
        return self.directory / f"{point}.source"

    # --- the platform's part ---------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Tell the library what there is."""
        facts = [DiskFact(VM, PATH, str(self.image), SNAPSHOT),
                 DiskFact(REPLICA, REPLICA_PATH, str(self.leaf), writable=True)]
        facts += [DiskFact(REPLICA, REPLICA_PATH, str(self.frozen(point)), f"snap-{point}") for point in self.taken]
        self.stand_in.serve(facts)

    def revert(self, *, anew: bool) -> None:
        """The leaf is as at the newest point, or a new, empty file."""
        self.leaf.unlink(missing_ok=True)
        if anew:
            self.leaf.touch()
            os.truncate(self.leaf, self.size())
        else:
            run("cp", "--sparse=auto", self.frozen(self.points[-1]), self.leaf)
        self.tell()

    def take(self, point: str) -> None:
        """Make the leaf a snapshot."""
        run("cp", "--sparse=auto", self.leaf, self.frozen(point))
        run("cp", "--sparse=auto", self.image, self.source_at(point))
        self.taken.append(point)
        self.tell()

    # --- the controller's part -------------------------------------------------------------------------------------

    def leaf_export(self, name: str = "vda") -> LibraryExport:
        return LibraryExport(self.stand_in.login, LibraryDisk(name, REPLICA, "", REPLICA_PATH, 2000))

    def point_export(self, point: str) -> LibraryExport:
        return LibraryExport(self.stand_in.login, LibraryDisk("vda", REPLICA, f"snap-{point}", REPLICA_PATH, 2000))

    def attached(self, *, chained: bool) -> tuple[str, str]:
        """A draft whose disk has its leaf, and its point."""
        self.revert(anew=not chained)
        draft, point = self.begin(chained=chained)
        self.target.client.call(api.AttachDisks(draft, (self.leaf_export(),)), api.Nothing)
        return draft, point

    def spec(self, source: api.NbdSource, mode: TransferMode, point: str, *, chained: bool,
             suspect: tuple[Extent, ...] = ()) -> api.ReadSpec:
        return api.ReadSpec(source, "vda", self.size(), mode, self.block_size, chained, self.replica_id,
                            self.points[-1] if chained else "", point, suspect=suspect)

    def session(self, mode: TransferMode, changed: Sequence[Extent] | None = None, *,
                suspect: tuple[Extent, ...] = ()) -> api.Progress:
        """One session, as the controller does it."""
        chained = mode is not FULL
        draft, point = self.attached(chained=chained)
        packed = None if changed is None else pack(tuple(changed))
        wish = api.OpenLibraryExport(LibraryExport(self.stand_in.login, disk(), packed), "understudy-x")
        opened = self.source.client.call(wish, api.OpenedExport)
        try:
            progress = self.transfer(self.spec(opened.source, mode, point, chained=chained, suspect=suspect), draft)
            self.target.client.call(api.SealPoint(draft), api.Nothing)
            self.take(point)
            self.publish(draft, point)
        finally:
            self.source.client.call(api.CloseExport(opened.id), api.Nothing)
            self.target.client.call(api.ReleaseDraft(draft), api.Nothing)
        return progress

    def verified(self, point: str) -> api.VerifiedDisk:
        work = self.target.client.call(
            api.VerifyPoint(self.ref, point, exports=(self.point_export(point),)), api.WorkStarted).work
        self.wait(self.target, work)
        (found,) = self.target.client.call(api.WorkQuery(work), api.WorkStatus).verified
        return found

    # --- what the tests look at ------------------------------------------------------------------------------------

    def change(self, seed: int, *places: tuple[int, int]) -> tuple[Extent, ...]:
        """Write random bytes to the source's disk; the areas."""
        with self.image.open("r+b") as file:
            for offset, length in places:
                file.seek(offset)
                file.write(random.Random(seed).randbytes(length))
        return tuple(merge(Extent(*place) for place in sorted(places)))

    def clear(self, *places: tuple[int, int]) -> tuple[Extent, ...]:
        """Make areas of the source's disk holes."""
        for offset, length in places:
            run("fallocate", "--punch-hole", "--keep-size", "--offset", str(offset), "--length", str(length),
                self.image)
        return tuple(merge(Extent(*place) for place in sorted(places)))

    def written(self) -> list[Extent]:
        """Where the library was asked to write."""
        calls = self.stand_in.calls("Write")
        return merge(sorted((Extent(call.number("start") * SECTOR, call.number("count") * SECTOR) for call in calls),
                            key=lambda item: item.start))

    def intact(self) -> bool:
        """Whether every point is what the source's disk was then, to the byte, and verifies."""
        assert [point.id for point in self.replica().points] == self.points == self.taken
        return all(self.frozen(point).read_bytes() == self.source_at(point).read_bytes() for point in self.points)

    def replica(self) -> Replica:
        """What the record says."""
        replica = self.facts().replica
        assert replica is not None
        return replica


def data_extents(path: Path) -> list[Extent]:
    """Where a file is allocated."""
    found, position = [], 0
    with path.open("rb") as file:
        size = path.stat().st_size
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append(Extent(start, position - start))
    return found


@pytest.fixture(params=["one", "two"])
def lab(library: StandIn, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StoreLab]:
    """Source and target are the same mover, or two with a wire between them."""
    yield from _lab(library, tmp_path, two=request.param == "two")


@pytest.fixture
def one(library: StandIn, tmp_path: Path) -> Iterator[StoreLab]:
    """Source and target are the same mover."""
    yield from _lab(library, tmp_path, two=False)


def _lab(library: StandIn, directory: Path, *, two: bool) -> Iterator[StoreLab]:
    (directory / "ds").mkdir()
    image = sparse(directory / "source.raw", 3, SIZE, DATA)
    with MoverProcess("esx", directory / "t", directory / "t-state", directory / "t.log") as target:
        if not two:
            yield StoreLab(target, target, directory, image, library=library)
            return
        with MoverProcess("src", directory / "s", directory / "s-state", directory / "s.log") as source:
            yield StoreLab(source, target, directory, image, library=library)


def test_a_full_copy_is_identical_and_fills_nothing_that_is_zero(lab: StoreLab) -> None:
    lab.session(FULL)
    assert lab.intact()
    wanted = round_out([Extent(*place) for place in DATA], PART, SIZE)
    assert subtract(data_extents(lab.frozen(lab.points[0])), wanted) == []
    (point,) = lab.replica().points
    (part,) = point.disks
    assert (part.layer, part.backing, part.file_bytes) == (f"vda-{point.id}.snapshot", "", SIZE)
    assert lab.facts().images == {}
    assert lab.verified(point.id).bad_count == 0


def test_an_incremental_writes_what_changed_and_zeros_where_the_point_below_had_something(lab: StoreLab) -> None:
    lab.session(FULL)
    new = lab.change(4, (2 * MIB, 100 * KIB), (12 * MIB + SECTOR, 3 * SECTOR))
    emptied = lab.clear((7 * MIB, MIB))
    still_empty = (Extent(15 * MIB, 6 * MIB),)  # called changed, but it was zero and is
    lab.stand_in.forget()
    lab.session(INCREMENTAL, (*new[:1], *emptied, *new[1:], *still_empty))
    assert lab.intact()
    assert subtract(lab.written(), round_out([*new[:1], *emptied, *new[1:]], PART, SIZE)) == []
    assert [part for part in data_extents(lab.leaf) if 15 * MIB <= part.start < 21 * MIB] == []
    assert lab.replica().points[1].disks[0].backing == f"vda-{lab.points[0]}.snapshot"
    assert all(lab.verified(point).bad_count == 0 for point in lab.points)


def test_zeros_are_written_wherever_asked_when_the_digests_below_are_lost(one: StoreLab) -> None:
    one.session(FULL)
    base = one.facts().digests[one.points[0]]["vda"]
    emptied = one.clear((7 * MIB, MIB), (15 * MIB, MIB))
    Path(base).unlink()
    one.stand_in.forget()
    one.session(INCREMENTAL, emptied)
    assert one.intact()
    assert one.written() == list(emptied)


def test_a_digest_scan_writes_only_the_parts_that_differ(lab: StoreLab) -> None:
    lab.session(FULL)
    lab.change(5, (7 * MIB + 70 * KIB, 3 * SECTOR), (20 * MIB, SECTOR))
    lab.clear((8 * MIB, MIB // 2))
    lab.stand_in.forget()
    lab.session(SCAN)
    assert lab.intact()
    places = [Extent(7 * MIB + 70 * KIB, 3 * SECTOR), Extent(8 * MIB, MIB // 2), Extent(20 * MIB, SECTOR)]
    assert lab.written() == round_out(places, PART, SIZE)


def test_random_histories_stay_equal_and_old_points_never_change(lab: StoreLab) -> None:
    dice = random.Random(7)
    lab.session(FULL)
    for step in range(4):
        places = sorted((dice.randrange(0, SIZE - 2 * MIB, SECTOR), dice.choice([1, 3, 128, 1500]) * SECTOR)
                        for _ in range(dice.randint(0, 4)))  # fmt: skip
        areas = lab.change(step, *places)
        holes = lab.clear((dice.randrange(0, SIZE - 2 * MIB, 64 * SECTOR), dice.choice([8, 1024, 2048]) * SECTOR))
        changed = merge(sorted((*areas, *holes), key=lambda item: item.start))
        mode = dice.choice([INCREMENTAL, INCREMENTAL, SCAN])
        lab.session(mode, changed if mode is INCREMENTAL else None)
        assert lab.intact(), step
    assert lab.verified(lab.points[0]).bad_count == 0
    assert lab.verified(lab.points[-1]).bad_count == 0


def test_a_flipped_byte_in_a_point_is_found_told_of_that_point_alone_and_mended_by_the_next_one(one: StoreLab) -> None:
    one.session(FULL)
    place = 18 * MIB + 5  # where digests say zero: no zeros would be written there
    flip(one.frozen(one.points[0]), place)
    found = one.verified(one.points[0])
    block = Extent(place // BLOCK * BLOCK, BLOCK)
    assert (found.bad_count, found.bad, found.affected) == (1, (block,), ())
    areas = one.change(9, (0, SECTOR))
    one.session(INCREMENTAL, (*areas, block), suspect=(block,))
    assert one.frozen(one.points[1]).read_bytes() == one.source_at(one.points[1]).read_bytes()
    assert one.verified(one.points[1]).bad_count == 0
    assert {item.point: item.bad_blocks for item in one.facts().health} == {one.points[0]: 1, one.points[1]: 0}


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def test_a_point_cannot_be_verified_without_a_way_to_read_it(one: StoreLab) -> None:
    one.session(FULL)
    with pytest.raises(Refused, match="snapshot of the replica VM"):
        one.target.client.call(api.VerifyPoint(one.ref, one.points[0]), api.WorkStarted)
    with pytest.raises(Refused, match="snapshot of the replica VM"):
        one.target.client.call(api.RebuildDigests(one.ref, one.points[0], "vda"), api.WorkStarted)


def test_lost_digests_are_made_again_through_the_library(one: StoreLab) -> None:
    one.session(FULL)
    path = Path(one.facts().digests[one.points[0]]["vda"])
    before = path.read_bytes()
    path.unlink()
    request = api.RebuildDigests(one.ref, one.points[0], "vda", one.point_export(one.points[0]))
    one.wait(one.target, one.target.client.call(request, api.WorkStarted).work)
    assert path.read_bytes() == before


def test_forgotten_points_are_gone_from_the_record_and_the_next_one_lies_on_what_is_left(one: StoreLab) -> None:
    one.session(FULL)
    one.session(INCREMENTAL, one.change(1, (0, MIB)))
    one.session(INCREMENTAL, one.change(2, (MIB, MIB)))
    middle, newest = one.points[1:]
    owner = api.OwnedReplica(one.ref, attempt=one.attempt)
    one.target.client.call(api.ForgetPoints(owner, (middle, newest, "never")), api.Nothing)
    del one.points[1:], one.taken[1:]
    assert one.intact()
    one.session(SCAN)
    assert one.intact()
    assert one.replica().points[1].disks[0].backing == f"vda-{one.points[0]}.snapshot"
    owner = api.OwnedReplica(one.ref, attempt=one.attempt)
    one.target.client.call(api.ForgetPoints(owner, (one.points[0],)), api.Nothing)
    assert one.replica().points[0].disks[0].backing == ""


# --- order and refusals -----------------------------------------------------------------------------------------------


def test_a_point_is_not_published_before_it_was_sealed_nor_sealed_before_it_is_complete(one: StoreLab) -> None:
    draft, point = one.attached(chained=False)
    with pytest.raises(Refused, match="without a successful transfer"):
        one.target.client.call(api.SealPoint(draft), api.Nothing)
    transfer_into(one, draft, point)
    assert server_of(one.target, writable=True)
    with pytest.raises(Refused, match="still open"):
        one.publish(draft, point)
    assert one.replica().points == ()
    one.target.client.call(api.SealPoint(draft), api.Nothing)
    one.target.client.call(api.SealPoint(draft), api.Nothing)
    assert server_of(one.target, writable=True) is None
    assert one.stand_in.counts()["Flush"] >= 1
    one.take(point)
    one.publish(draft, point)
    one.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    assert one.intact()


def transfer_into(lab: StoreLab, draft: str, point: str) -> None:
    """Copy the whole disk into a draft."""
    wish = api.OpenLibraryExport(LibraryExport(lab.stand_in.login, disk()), "understudy-x")
    opened = lab.source.client.call(wish, api.OpenedExport)
    try:
        lab.transfer(lab.spec(opened.source, FULL, point, chained=False), draft)
    finally:
        lab.source.client.call(api.CloseExport(opened.id), api.Nothing)


def test_nothing_is_transferred_to_a_disk_without_a_leaf(one: StoreLab) -> None:
    one.revert(anew=True)
    draft, point = one.begin(chained=False)
    with pytest.raises(ReplicaError, match="not known at which leaf"):
        transfer_into(one, draft, point)
    one.target.client.call(api.ReleaseDraft(draft), api.Nothing)


def test_disks_are_attached_once_and_all_of_them(one: StoreLab) -> None:
    one.revert(anew=True)
    draft, _ = one.begin(chained=False)
    for leaves in ((), (one.leaf_export("vdb"),), (one.leaf_export(), one.leaf_export())):
        with pytest.raises(UsageError, match="the draft has the disks vda"):
            one.target.client.call(api.AttachDisks(draft, leaves), api.Nothing)
    one.target.client.call(api.AttachDisks(draft, (one.leaf_export(),)), api.Nothing)
    with pytest.raises(Refused, match="already"):
        one.target.client.call(api.AttachDisks(draft, (one.leaf_export(),)), api.Nothing)
    one.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    assert server_of(one.target, writable=True) is None
    with pytest.raises(NotFound):
        one.target.client.call(api.SealPoint(draft), api.Nothing)


def test_a_leaf_of_another_size_is_refused(one: StoreLab) -> None:
    one.revert(anew=True)
    os.truncate(one.leaf, SIZE + SECTOR)
    draft, _ = one.begin(chained=False)
    with pytest.raises(ReplicaError, match="bytes instead of"):
        one.target.client.call(api.AttachDisks(draft, (one.leaf_export(),)), api.Nothing)
    assert server_of(one.target, writable=True) is None
    one.target.client.call(api.ReleaseDraft(draft), api.Nothing)


def test_a_full_copy_into_a_file_that_is_not_new_is_refused(one: StoreLab) -> None:
    """It would show what it has wherever the source has zeros."""
    one.session(FULL)
    one.revert(anew=False)
    draft, _ = one.begin(chained=False)
    with pytest.raises(ReplicaError, match="holds something already"):
        one.target.client.call(api.AttachDisks(draft, (one.leaf_export(),)), api.Nothing)
    assert server_of(one.target, writable=True) is None
    one.target.client.call(api.ReleaseDraft(draft), api.Nothing)


def test_a_disk_that_grew_needs_a_new_file(one: StoreLab) -> None:
    one.session(FULL)
    os.truncate(one.image, SIZE + 5 * MIB)
    with pytest.raises(ReplicaError, match="a file of its own"):
        one.begin(chained=True)
    one.session(FULL)
    assert one.intact()
    assert one.replica().points[1].disks[0].backing == ""


def test_layers_that_are_files_have_no_leaves(one: StoreLab) -> None:
    ref = api.ReplicaRef("qcow2", str(one.directory / "ds"), "other")
    request = api.BeginPoint(ref, one.identity, 1, "p1", (NewDisk("vda", SIZE, False),))
    draft = one.target.client.call(request, api.DraftOpened).draft
    with pytest.raises(Refused, match="files of the datastore"):
        one.target.client.call(api.AttachDisks(draft, (one.leaf_export(),)), api.Nothing)
    one.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    with pytest.raises(Refused, match="files here"):
        one.target.client.call(api.ForgetPoints(api.OwnedReplica(ref, attempt=1), ("p1",)), api.Nothing)


# --- faults -----------------------------------------------------------------------------------------------------------


def server_of(mover: MoverProcess, *, writable: bool) -> int | None:
    """The process id of the nbdkit that serves a leaf, or a disk to read; None if there is none."""
    for task in Path(f"/proc/{mover.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if any(b"nbdkit" in word for word in words[:1]) and (b"--readonly" not in words) is writable:
                return int(child)
    return None


def failure(lab: StoreLab) -> UnderstudyError:
    published = len(lab.points)
    with pytest.raises(UnderstudyError) as caught:
        lab.session(FULL)
    assert len(lab.replica().points) == published
    assert server_of(lab.target, writable=True) is None
    return caught.value


def test_a_full_datastore_is_named_and_nothing_is_published(lab: StoreLab) -> None:
    lab.stand_in.fail(full_after=20)
    error = failure(lab)
    assert isinstance(error, DatastoreError)
    assert "its datastore is full" in str(error)
    assert "make space" in error.todo
    lab.stand_in.fail()
    lab.session(FULL)
    assert lab.intact()


def test_a_write_that_fails_is_named_and_nothing_is_published(one: StoreLab) -> None:
    one.stand_in.fail(fail_write=9)
    error = failure(one)
    assert isinstance(error, DatastoreError)
    assert "write disk 'vda'" in error.what
    assert "ended the connection" in str(error)


def test_nbdkit_killed_in_the_middle_fails_the_transfer_and_the_next_session_succeeds(lab: StoreLab) -> None:
    lab.stand_in.fail(slow_read_ms=100)
    draft, point = lab.attached(chained=False)
    wish = api.OpenLibraryExport(LibraryExport(lab.stand_in.login, disk()), "understudy-x")
    opened = lab.source.client.call(wish, api.OpenedExport)
    spec = lab.spec(opened.source, FULL, point, chained=False)
    works = started(lab, spec, draft)
    deadline = time.monotonic() + 60
    while not lab.stand_in.calls("Write"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server = server_of(lab.target, writable=True)
    assert server is not None
    os.kill(server, signal.SIGKILL)
    with pytest.raises(DatastoreError, match="write disk 'vda'"):
        lab.wait(lab.target, works[-1])
    with pytest.raises(Refused):
        lab.target.client.call(api.SealPoint(draft), api.Nothing)
    with pytest.raises(Refused):
        lab.publish(draft, point)
    lab.source.client.call(api.CancelWork(works[0]), api.Nothing)
    lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
    lab.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    assert lab.replica().points == ()
    lab.stand_in.fail()
    lab.session(FULL)
    assert lab.intact()


def started(lab: StoreLab, spec: api.ReadSpec, draft: str) -> list[str]:
    """The works of a transfer that was begun: the source side's first, the target side's last."""
    if lab.source is lab.target:
        return [lab.source.client.call(api.CopyDisk(spec, draft), api.WorkStarted).work]
    request = api.ReceiveDisk(draft, "vda", spec.size, spec.block_size, "", 5.0)
    receiving = lab.target.client.call(request, api.ReceiveStarted)
    send = api.SendDisk(spec, api.TargetAddress(receiving.socket, "", receiving.ticket), lab.compression, 4, 5.0)
    return [lab.source.client.call(send, api.WorkStarted).work, receiving.work]


def test_a_draft_that_is_released_in_the_middle_lets_go_of_its_leaf(lab: StoreLab) -> None:
    lab.stand_in.fail(slow_read_ms=100)
    draft, point = lab.attached(chained=False)
    wish = api.OpenLibraryExport(LibraryExport(lab.stand_in.login, disk()), "understudy-x")
    opened = lab.source.client.call(wish, api.OpenedExport)
    started(lab, lab.spec(opened.source, FULL, point, chained=False), draft)
    while not lab.stand_in.calls("Write"):
        time.sleep(0.02)
    lab.target.client.call(api.ReleaseDraft(draft, keep=True), api.Nothing)
    assert server_of(lab.target, writable=True) is None
    lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
    assert sorted(path.name for path in (lab.directory / "ds" / "web 1" / "digests").iterdir()) == []
    lab.stand_in.fail()
    lab.session(FULL)
    assert lab.intact()


def test_a_mover_that_is_killed_takes_its_leaf_with_it_and_an_older_attempt_is_fenced(one: StoreLab) -> None:
    draft, _ = one.attached(chained=False)
    server = server_of(one.target, writable=True)
    one.attempt += 1
    begin = api.BeginPoint(one.ref, one.identity, one.attempt, "p9", (NewDisk("vda", SIZE, False),))
    newer = one.target.client.call(begin, api.DraftOpened).draft
    with pytest.raises(NotFound):
        one.target.client.call(api.SealPoint(draft), api.Nothing)
    assert not Path(f"/proc/{server}").exists()
    one.target.client.call(api.AttachDisks(newer, (one.leaf_export(),)), api.Nothing)
    server = server_of(one.target, writable=True)
    os.kill(one.target.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{server}").exists() and "Z" not in Path(f"/proc/{server}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_controller_that_is_not_heard_of_any_more_keeps_no_leaf_open(library: StandIn, tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    (tmp_path / "run").mkdir()
    leaf = sparse(tmp_path / "leaf.raw", 3, SIZE, ())
    library.serve([DiskFact(REPLICA, REPLICA_PATH, str(leaf), writable=True)])
    ref = api.ReplicaRef(SNAPSHOTS, str(tmp_path / "ds"), "web 1")
    identity = ReplicaIdentity("id", "web 1", "job", "job", "web 1", "uuid", "uuid2")
    begin = api.BeginPoint(ref, identity, 1, "p1", (NewDisk("vda", SIZE, False),))
    export = LibraryExport(library.login, LibraryDisk("vda", REPLICA, "", REPLICA_PATH, 2000))
    mover = Mover.make("esx", tmp_path / "state", tmp_path / "run")
    try:
        draft = begin_point(mover, begin).draft
        attach_disks(mover, api.AttachDisks(draft, (export,)))
        release_orphans(mover)
        assert mover.exports.tags() == (f"leaf of draft {draft}",)
        mover.drafts.get(draft).asked_at -= ORPHANED_S + 1
        release_orphans(mover)
        assert (mover.exports.tags(), mover.drafts.ids()) == ((), [])
        # The lock is free, and so is the leaf.
        newer = begin_point(mover, replace(begin, attempt=2)).draft
        attach_disks(mover, api.AttachDisks(newer, (export,)))
    finally:
        mover.close()
    assert mover.exports.tags() == ()


def test_what_was_allocated_is_counted_right(one: StoreLab) -> None:
    """The tests above would prove nothing if the file system had no holes."""
    one.session(FULL)
    assert total(data_extents(one.frozen(one.points[0]))) < SIZE // 2
