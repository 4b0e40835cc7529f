"""Disks replicated by real mover processes between real qcow2 images, in one mover and between two."""

from __future__ import annotations

import random
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "mover"))

from mover_lab import add_bitmap, io, make_image, run, same_content, write

from understudy.errors import UnderstudyError, from_fields
from understudy.model.job import Compression
from understudy.model.replica import Consistency, ReplicaIdentity
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.storage import NewDisk, PointMeta
from understudy.units import KIB, MIB

SIZE = 10 * MIB + 512


@pytest.fixture(scope="module")
def movers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MoverProcess, MoverProcess]]:
    base = tmp_path_factory.mktemp("movers")
    with (
        MoverProcess("source", base / "s", base / "source-state", base / "source.log") as source,
        MoverProcess("target", base / "t", base / "target-state", base / "target.log") as target,
    ):
        yield source, target


@dataclass
class Lab:
    """A source image and its replica."""

    source: MoverProcess
    target: MoverProcess
    directory: Path
    image: Path
    compression: Compression = Compression.ZSTD
    block_size: int = MIB
    attempt: int = 0
    points: list[str] = field(default_factory=list)
    replica_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def ref(self) -> api.ReplicaRef:
        return api.ReplicaRef("qcow2", str(self.directory / "ds"), "web 1")

    @property
    def identity(self) -> ReplicaIdentity:
        return ReplicaIdentity(self.replica_id, "web 1", "job", "job", "web 1", "uuid", "uuid2")

    def size(self) -> int:
        import json

        return int(json.loads(run("qemu-img", "info", "--output=json", self.image))["virtual-size"])

    def begin(self, *, chained: bool) -> tuple[str, str]:
        self.attempt += 1
        point = f"p{self.attempt:04d}"
        disks = (NewDisk("vda", self.size(), chained),)
        request = api.BeginPoint(self.ref, self.identity, self.attempt, point, disks)
        return self.target.client.call(request, api.DraftOpened).draft, point

    def replicate(self, mode: TransferMode, bitmap: str = "", *, base: bool | None = None) -> api.Progress:
        """One session; the progress of the side that reads."""
        chained = bool(self.points)
        draft, point = self.begin(chained=chained)
        opened = self.source.client.call(api.OpenExport(str(self.image), "qcow2", bitmap, "t"), api.OpenedExport)
        try:
            use_base = chained and base is not False
            read = api.ReadSpec(opened.source, "vda", self.size(), mode, self.block_size, chained, self.replica_id,
                                self.points[-1] if use_base else "", point)
            progress = self.transfer(read, draft)
            self.publish(draft, point)
        finally:
            self.source.client.call(api.CloseExport(opened.id), api.Nothing)
            self.target.client.call(api.ReleaseDraft(draft), api.Nothing)
        return progress

    def transfer(self, read: api.ReadSpec, draft: str) -> api.Progress:
        if self.source is self.target:
            work = self.source.client.call(api.CopyDisk(read, draft), api.WorkStarted).work
            return self.wait(self.source, work)
        request = api.ReceiveDisk(draft, "vda", read.size, read.block_size)
        started = self.target.client.call(request, api.ReceiveStarted)
        send = api.SendDisk(read, started.socket, started.ticket, self.compression)
        work = self.source.client.call(send, api.WorkStarted).work
        progress = self.wait(self.source, work)
        self.wait(self.target, started.work)
        return progress

    def wait(self, mover: MoverProcess, work: str) -> api.Progress:
        status = mover.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)
        assert status.state is not api.WorkState.RUNNING
        if status.error is not None:
            raise from_fields(status.error.code, status.error.what, status.error.why, status.error.todo)
        return status.progress

    def publish(self, draft: str, point: str) -> None:
        meta = PointMeta(point, "2025-01-01T00:00:00Z", Consistency.CRASH, 1, self.block_size, None, {}, "<domain/>")
        self.target.client.call(api.PublishPoint(draft, meta), api.PublishedPoint)
        self.source.client.call(api.KeepDigests(self.replica_id, point, ("vda",)), api.Nothing)
        self.points.append(point)

    def facts(self) -> api.ReplicaFacts:
        return self.target.client.call(api.InspectReplica(self.ref), api.ReplicaFacts)

    def image_of(self, point: str) -> Path:
        return Path(self.facts().images[point]["vda"])

    def check(self) -> None:
        """The newest point shows exactly the source's bytes, and its digests are right."""
        assert same_content(self.image, "qcow2", self.image_of(self.points[-1]), "qcow2")
        work = self.target.client.call(api.VerifyPoint(self.ref, self.points[-1]), api.WorkStarted).work
        status = self.target.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)
        assert status.state is api.WorkState.DONE, status.error
        (disk,) = status.verified
        assert (disk.bad_count, disk.problem) == (0, "")
        assert disk.blocks == -(-self.size() // self.block_size)
        copy = self.source.client.call(api.DigestRef(self.replica_id, "vda", self.points[-1]), api.DigestHolding)
        assert copy.usable


@pytest.fixture(params=["one mover", "two movers"])
def lab(request: pytest.FixtureRequest, movers: tuple[MoverProcess, MoverProcess], tmp_path: Path) -> Lab:
    source, target = movers
    (tmp_path / "ds").mkdir()
    image = make_image(tmp_path / "source.qcow2", SIZE)
    return Lab(source if request.param == "two movers" else target, target, tmp_path, image)


def test_a_full_copy_shows_the_same_bytes_and_reads_no_zeros(lab: Lab) -> None:
    write(lab.image, 1, (0, MIB), (3 * MIB + 4096, 100 * KIB), (SIZE - 512, 512))
    progress = lab.replicate(TransferMode.FULL)
    lab.check()
    assert progress.processed == progress.total == SIZE
    assert progress.read == MIB + MIB + 512
    assert progress.sent == MIB + 128 * KIB + 512


@pytest.mark.parametrize("block_size", [256 * KIB, 512 * KIB, MIB, 4 * MIB])
@pytest.mark.parametrize("mode", [TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN])
def test_changes_zeros_and_trims_arrive(lab: Lab, block_size: int, mode: TransferMode) -> None:
    lab = replace(lab, block_size=block_size)
    write(lab.image, 1, (0, 6 * MIB), (7 * MIB, 3 * MIB + 512))
    lab.replicate(TransferMode.FULL)
    add_bitmap(lab.image, "b0")
    write(lab.image, 2, (64 * KIB, 10), (MIB - 512, 1024), (SIZE - 512, 512))
    io(lab.image, f"write -z -u {2 * MIB} {2 * MIB}", f"write -z 5M 64K", f"discard 7M 1M", f"write -P 0 {8 * MIB} 100K")
    progress = lab.replicate(mode, "b0")
    lab.check()
    assert progress.sent <= 5 * 64 * KIB + 512 if mode is TransferMode.INCREMENTAL else True
    assert progress.sent < 6 * MIB


@pytest.mark.parametrize("compression", list(Compression))
def test_every_compression_brings_the_bytes(lab: Lab, compression: Compression) -> None:
    lab = replace(lab, compression=compression)
    write(lab.image, 1, (0, 2 * MIB))
    io(lab.image, "write -P 0x41 4M 2M")
    lab.replicate(TransferMode.FULL)
    lab.check()


def test_random_histories_stay_equal(lab: Lab) -> None:
    dice = random.Random(7)
    lab.replicate(TransferMode.FULL)
    for step in range(6):
        add_bitmap(lab.image, f"b{step}")
        for _ in range(dice.randint(0, 6)):
            offset = dice.randrange(0, SIZE, 512)
            length = min(dice.choice([512, 4096, 65536, 700 * KIB, 3 * MIB]), SIZE - offset)
            act = dice.choice(["write", "zero", "unmap", "discard"])
            if act == "write":
                write(lab.image, dice.randrange(1 << 30), (offset, length))
            else:
                verb = {"zero": "write -z", "unmap": "write -z -u", "discard": "discard"}[act]
                io(lab.image, f"{verb} {offset} {length}")
        mode = dice.choice([TransferMode.INCREMENTAL, TransferMode.INCREMENTAL, TransferMode.DIGEST_SCAN])
        lab.replicate(mode, f"b{step}")
        lab.check()


def test_movers_start_quickly_and_end_with_their_input(tmp_path: Path) -> None:
    started = time.monotonic()
    mover = MoverProcess("quick", tmp_path / "r", tmp_path / "state", tmp_path / "log")
    assert time.monotonic() - started < 10
    mover.close()
    assert not mover.alive
    assert not mover.socket.exists()


def test_errors_come_back_as_their_class(movers: tuple[MoverProcess, MoverProcess]) -> None:
    with pytest.raises(UnderstudyError) as caught:
        movers[0].client.call(api.WorkQuery("nonsense"), api.WorkStatus)
    assert caught.value.code == "not_found"
