"""Disks replicated by a real mover through real nbdkit and its real plugin, with a stand-in for the disk library."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.test_mover import Lab
from tests.unit.mover.mover_lab import run, same_content
from tests.vsphere.library.kit import PASSWORD, StandIn
from tests.vsphere.library.lab import SECTOR, SNAPSHOT, serve_vms, sparse, wish
from understudy.errors import CbtMismatch, PlatformError, TransferError, from_fields
from understudy.model.exclusion import pack
from understudy.model.extent import Extent, merge, round_out
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.mover.sampling import sample_size
from understudy.units import KIB, MIB

FULL, INCREMENTAL, SCAN = TransferMode.FULL, TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN
SIZE = 96 * MIB + 37 * SECTOR
BLOCK = 256 * KIB
BLOCKS = -(-SIZE // BLOCK)


@dataclass
class LibraryLab(Lab):
    """A disk that is read through the library, and its replica; the image is the frozen file of the snapshot."""

    library: StandIn | None = None
    block_size: int = BLOCK

    @property
    def stand_in(self) -> StandIn:
        assert self.library is not None
        return self.library

    def size(self) -> int:
        return self.image.stat().st_size

    def write(self, seed: int, *places: tuple[int, int]) -> tuple[Extent, ...]:
        """Change the disk; the areas."""
        with self.image.open("r+b") as file:
            for offset, length in places:
                file.seek(offset)
                file.write(random.Random(seed).randbytes(length))
        return tuple(merge(Extent(*place) for place in sorted(places)))

    def session(self, mode: TransferMode, changed: Sequence[Extent] | None = None) -> api.Progress:
        """One session, as the controller does it."""
        chained = bool(self.points)
        draft, point = self.begin(chained=chained)
        packed = None if changed is None else pack(changed)
        opened = self.source.client.call(wish(self.stand_in, changed=packed), api.OpenedExport)
        try:
            read = api.ReadSpec(opened.source, "vda", self.size(), mode, self.block_size, chained, self.replica_id,
                                self.points[-1] if chained else "", point)
            progress = self.transfer(read, draft)
            self.publish(draft, point)
        finally:
            self.source.client.call(api.CloseExport(opened.id), api.Nothing)
            self.target.client.call(api.ReleaseDraft(draft), api.Nothing)
        return progress

    def identical(self) -> bool:
        """Whether the newest point shows exactly the disk's bytes."""
        return same_content(self.image, "raw", self.image_of(self.points[-1]), "qcow2")

    def reads(self) -> list[Extent]:
        """What the library was asked to read."""
        calls = self.stand_in.calls("Read")
        return [Extent(call.number("start") * SECTOR, call.number("count") * SECTOR) for call in calls]


@pytest.fixture
def mover(library: StandIn, tmp_path: Path) -> Iterator[MoverProcess]:
    """A mover that was started with the library's environment."""
    with MoverProcess("esx", tmp_path / "run", tmp_path / "state", tmp_path / "mover.log") as process:
        yield process


@pytest.fixture
def lab(library: StandIn, mover: MoverProcess, tmp_path: Path) -> LibraryLab:
    (tmp_path / "ds").mkdir()
    data = ((0, MIB), (20 * MIB + 3 * SECTOR, 5 * MIB), (SIZE - SECTOR, SECTOR))
    frozen = sparse(tmp_path / "frozen.raw", 3, SIZE, data)
    serve_vms(library, tmp_path / "live.raw", frozen)
    return LibraryLab(mover, mover, tmp_path, frozen, library=library)


def test_a_full_copy_is_identical_and_reads_no_holes(lab: LibraryLab) -> None:
    progress = lab.session(FULL)
    assert lab.identical()
    assert progress.processed == SIZE
    assert progress.read == sum(extent.length for extent in lab.reads()) <= 8 * MIB
    assert all(extent.start % BLOCK == 0 for extent in lab.reads())


def test_an_incremental_reads_the_changed_areas_and_a_sample_and_nothing_else(lab: LibraryLab) -> None:
    lab.session(FULL)
    areas = lab.write(4, (21 * MIB, 3 * SECTOR), (50 * MIB, 700 * KIB), (SIZE - SECTOR, SECTOR))
    lab.stand_in.forget()
    progress = lab.session(INCREMENTAL, areas)
    assert lab.identical()
    blocks = round_out(areas, BLOCK, SIZE)
    assert progress.read == sum(extent.length for extent in blocks)
    assert progress.sent <= 14 * 64 * KIB
    outside = [extent for extent in lab.reads() if not any(
        block.start <= extent.start and extent.end <= block.end for block in blocks)]  # fmt: skip
    assert len(outside) == progress.checked <= sample_size(BLOCKS)
    # A full map of what is allocated costs the server much; an incremental does not ask for it.
    assert lab.stand_in.counts()["Query"] <= 3


def test_an_incremental_in_which_nothing_changed_reads_a_sample(lab: LibraryLab) -> None:
    lab.session(FULL)
    progress = lab.session(INCREMENTAL, ())
    assert (progress.read, progress.sent) == (0, 0)
    assert progress.checked > 0
    assert lab.identical()


def test_a_long_changed_area_that_became_a_hole_is_zero_without_being_read(lab: LibraryLab) -> None:
    lab.session(FULL)
    area = Extent(20 * MIB, 8 * MIB)
    run("fallocate", "--punch-hole", "--offset", str(area.start), "--length", str(area.length), lab.image)
    progress = lab.session(INCREMENTAL, (area,))
    assert lab.identical()
    assert progress.read == 0


def test_the_file_systems_of_a_disk_are_looked_into(lab: LibraryLab) -> None:
    """Its reads are aligned as the plugin demands, whatever a file system asks for."""
    lab.image.write_bytes(b"")
    os.truncate(lab.image, SIZE)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(lab.directory / "ds"), lab.image)
    os.truncate(lab.image, SIZE)
    plain = api.OpenExport(str(lab.image), "raw", "", "t")
    found = []
    for wanted in (wish(lab.stand_in), plain):
        opened = lab.source.client.call(wanted, api.OpenedExport)
        disk = api.SurveyedDisk("vda", opened.source, SIZE)
        request = api.SurveyDisks((disk,), swap=True, masks=(), free=True, quiesced=True, former=())
        work = lab.source.client.call(request, api.WorkStarted).work
        lab.wait(lab.source, work)
        found.append(lab.source.client.call(api.WorkQuery(work), api.WorkStatus).surveyed)
        lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
    through_library, directly = found
    assert through_library == directly
    assert through_library[0].exclusion.by_kind["free"] > 0


def test_changed_areas_that_lie_are_noticed(lab: LibraryLab) -> None:
    lab.session(FULL)
    lab.write(5, (0, SIZE - 4 * MIB))
    with pytest.raises(CbtMismatch):
        lab.session(INCREMENTAL, (Extent(0, SECTOR),))


def test_random_histories_stay_equal(lab: LibraryLab) -> None:
    dice = random.Random(7)
    lab.session(FULL)
    for step in range(5):
        places = sorted((dice.randrange(0, SIZE - 2 * MIB, SECTOR), dice.choice([1, 3, 128, 1500, 4000]) * SECTOR)
                        for _ in range(dice.randint(0, 5)))  # fmt: skip
        areas = lab.write(step, *places)
        mode = dice.choice([INCREMENTAL, INCREMENTAL, SCAN])
        lab.session(mode, areas if mode is INCREMENTAL else None)
        assert lab.identical(), step


# --- faults -----------------------------------------------------------------------------------------------------------


def failure(lab: LibraryLab, mode: TransferMode = FULL) -> TransferError:
    with pytest.raises(TransferError) as caught:
        lab.session(mode)
    assert PASSWORD not in f"{caught.value!r}{caught.value}"
    # The server's session ended in order.
    counts = lab.stand_in.counts()
    assert counts["Open"] == counts["Disconnect"] == 2
    return caught.value


def test_a_host_without_memory_for_a_read_is_named(lab: LibraryLab) -> None:
    lab.stand_in.fail(fail_read=5)
    error = failure(lab)
    assert "no memory or sessions left" in str(error)
    assert "fewer disks at the same time" in error.todo
    lab.stand_in.fail()
    lab.session(FULL)
    assert lab.identical()


def test_a_connection_that_is_lost_in_the_middle_is_named(lab: LibraryLab) -> None:
    lab.stand_in.fail(short_session=6)
    error = failure(lab)
    assert "ended the connection" in str(error)
    lab.stand_in.fail()
    lab.session(FULL)
    assert lab.identical()


def server_of(mover: MoverProcess) -> int:
    """The process id of the nbdkit that a mover runs."""
    children = Path(f"/proc/{mover.pid}/task")
    for task in children.iterdir():
        for child in (task / "children").read_text().split():
            if "nbdkit" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
    raise AssertionError("the mover runs no nbdkit")


def test_nbdkit_that_is_killed_in_the_middle_fails_the_transfer_and_the_next_one_succeeds(lab: LibraryLab) -> None:
    lab.stand_in.fail(slow_read_ms=200)
    draft, point = lab.begin(chained=False)
    opened = lab.source.client.call(wish(lab.stand_in), api.OpenedExport)
    read = api.ReadSpec(opened.source, "vda", SIZE, FULL, BLOCK, False, lab.replica_id, "", point)
    work = lab.source.client.call(api.CopyDisk(read, draft), api.WorkStarted).work
    deadline = time.monotonic() + 60
    while not lab.reads():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(server_of(lab.source), signal.SIGKILL)
    status = lab.source.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)
    assert status.error is not None
    error = from_fields(status.error.code, status.error.what, status.error.why, status.error.todo)
    assert type(error) is TransferError
    assert "nbdkit ended" in str(error)
    lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
    lab.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    lab.stand_in.fail()
    lab.session(FULL)
    assert lab.identical()


def test_a_dead_sessions_export_is_found_by_its_tag_and_ended(lab: LibraryLab) -> None:
    lab.source.client.call(wish(lab.stand_in), api.OpenedExport)
    server = server_of(lab.source)
    assert lab.source.client.call(api.HeldQuery(), api.HeldFacts).exports == ("understudy-x",)
    lab.source.client.call(api.EndLeftovers("", "understudy-"), api.Nothing)
    assert not Path(f"/proc/{server}").exists()


def test_the_password_is_in_nothing_that_the_mover_shows_or_keeps(lab: LibraryLab, tmp_path: Path) -> None:
    opened = lab.source.client.call(wish(lab.stand_in), api.OpenedExport)
    secret = PASSWORD.encode()
    for process in (server_of(lab.source), lab.source.pid):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{process}/{name}").read_bytes()
    lab.source.client.call(api.CloseExport(opened.id), api.Nothing)
    wrong = wish(lab.stand_in, snapshot=f"{SNAPSHOT}0")
    with pytest.raises(PlatformError):
        lab.source.client.call(wrong, api.OpenedExport)
    lab.stand_in.facts.unlink()  # the server's own
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path
