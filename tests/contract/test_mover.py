"""Disks replicated by real mover processes between real qcow2 images, in one mover and between two."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import add_bitmap, io, make_image, run, same_content, write
from understudy.errors import (
    Cancelled,
    Fenced,
    MoverError,
    NotFound,
    PlatformError,
    Refused,
    ReplicaError,
    TransferError,
    UnderstudyError,
    UsageError,
    from_fields,
)
from understudy.model.extent import Extent
from understudy.model.job import Compression
from understudy.model.replica import Consistency, FileMark, ReplicaIdentity
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.exports import greets
from understudy.mover.process import MoverProcess
from understudy.storage.values import NewDisk, PointMeta
from understudy.units import KIB, MIB

SIZE = 10 * MIB + 512
#: For so long httpx uses an idle connection again.
CLIENT_KEEPS_S = 5


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
        request = api.ReceiveDisk(draft, "vda", read.size, read.block_size, "", 5.0)
        started = self.target.client.call(request, api.ReceiveStarted)
        target = api.TargetAddress(started.socket, "", started.ticket)
        send = api.SendDisk(read, target, self.compression, 4, 5.0)
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

    def verified(self, point: str) -> api.VerifiedDisk:
        """What verifying a point finds of its one disk."""
        work = self.target.client.call(api.VerifyPoint(self.ref, point), api.WorkStarted).work
        self.wait(self.target, work)
        (disk,) = self.target.client.call(api.WorkQuery(work), api.WorkStatus).verified
        return disk

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
    io(lab.image, f"write -z -u {2 * MIB} {2 * MIB}", "write -z 5M 64K", "discard 7M 1M", f"write -P 0 {8 * MIB} 100K")
    progress = lab.replicate(mode, "b0")
    lab.check()
    assert progress.sent <= 5 * 64 * KIB + 512 if mode is TransferMode.INCREMENTAL else True
    assert progress.sent < 6 * MIB


def served_by(mover: MoverProcess) -> list[str]:
    """Command lines of the servers that a mover runs."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields, words = (path / "stat").read_text().rsplit(")", 1)[1].split(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == mover.pid and b"qemu-nbd" in words:
            found.append(words.replace(b"\0", b" ").decode())
    return found


@pytest.mark.parametrize("block_size", [256 * KIB, MIB, 4 * MIB])
def test_a_digest_scan_brings_only_the_parts_that_differ(lab: Lab, block_size: int) -> None:
    lab = replace(lab, block_size=block_size, compression=Compression.NONE)
    write(lab.image, 1, (0, SIZE))
    lab.replicate(TransferMode.FULL)
    unchanged = lab.replicate(TransferMode.DIGEST_SCAN)
    assert (unchanged.sent, unchanged.wire < SIZE / 1000) == (0, True)
    write(lab.image, 2, (100, 10), (5 * 64 * KIB - 5, 10), (9 * MIB, 512), (SIZE - 1, 1))
    io(lab.image, "write -z 6M 64K")
    progress = lab.replicate(TransferMode.DIGEST_SCAN)
    lab.check()
    assert progress.sent == 4 * 64 * KIB + 512
    # One cluster each of data, and of tables; the file of a point that holds nothing has as many of the latter.
    _, empty, newest = (lab.image_of(point).stat().st_size for point in lab.points)
    assert newest - empty <= 6 * 64 * KIB
    assert served_by(lab.target) == []
    # What was read is free: the layers below can be merged.
    lab.attempt += 1
    retire = api.RetirePoints(api.OwnedReplica(lab.ref, attempt=lab.attempt), tuple(lab.points[:2]))
    lab.wait(lab.target, lab.target.client.call(retire, api.WorkStarted).work)
    lab.check()


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


def test_a_lost_target_copy_is_rebuilt_and_a_lost_source_copy_is_fetched(lab: Lab) -> None:
    write(lab.image, 1, (0, 5 * MIB))
    lab.replicate(TransferMode.FULL)
    point, source, target = lab.points[-1], lab.source.client, lab.target.client
    ref = api.DigestRef(lab.replica_id, "vda", point)
    path = Path(lab.facts().digests[point]["vda"])
    good = path.read_bytes()
    assert source.call(api.DropDigests(lab.replica_id), api.Removed).paths
    assert not source.call(ref, api.DigestHolding).usable
    target.copy_digests_to(lab.ref, ref, source)
    assert source.call(ref, api.DigestHolding).usable
    path.write_bytes(good[:-1] + b"!")
    with pytest.raises(ReplicaError):
        target.copy_digests_to(lab.ref, ref, source)
    work = target.call(api.VerifyPoint(lab.ref, point), api.WorkStarted).work
    (disk,) = target.call(api.WorkQuery(work, 60.0), api.WorkStatus).verified
    assert "checksum" in disk.problem
    work = target.call(api.RebuildDigests(lab.ref, point, "vda"), api.WorkStarted).work
    lab.wait(lab.target, work)
    assert path.read_bytes() == good
    lab.check()


def test_of_a_rebuild_of_digests_that_was_killed_nothing_stays_that_a_session_does_not_sweep(
        lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.replicate(TransferMode.FULL)
    digests = Path(lab.facts().digests[lab.points[-1]]["vda"])
    good = digests.read_bytes()
    release, place = lab.directory / "release", lab.directory
    monkeypatch.setenv("UNDERSTUDY_FAULT", "digests.rebuilt=stall")
    monkeypatch.setenv("UNDERSTUDY_FAULT_RELEASE", str(release))
    with MoverProcess("doomed", place / "d", place / "doomed-state", place / "doomed.log") as doomed:
        doomed.client.call(api.RebuildDigests(lab.ref, lab.points[-1], "vda"), api.WorkStarted)
        deadline = time.monotonic() + 60
        while not release.with_name("release.reached").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(doomed.pid, signal.SIGKILL)
    (left,) = [path for path in digests.parent.iterdir() if path != digests]
    assert digests.read_bytes() == good
    lab.replicate(TransferMode.DIGEST_SCAN)
    assert not left.exists()
    lab.check()


def test_a_changed_byte_in_the_replica_is_found(lab: Lab) -> None:
    write(lab.image, 1, (0, 5 * MIB))
    lab.replicate(TransferMode.FULL)
    io(lab.image_of(lab.points[-1]), "write -P 7 3M 512")
    work = lab.target.client.call(api.VerifyPoint(lab.ref, lab.points[-1]), api.WorkStarted).work
    (disk,) = lab.target.client.call(api.WorkQuery(work, 60.0), api.WorkStatus).verified
    assert (disk.bad_count, disk.bad_blocks) == (1, (3,))


def test_what_was_found_is_remembered_and_damage_survives_digests_made_of_it(lab: Lab) -> None:
    write(lab.image, 1, (0, 5 * MIB))
    lab.replicate(TransferMode.FULL)
    point = lab.points[-1]
    assert lab.facts().health == ()
    lab.check()
    (clean,) = lab.facts().health
    assert (clean.point, clean.disk, clean.started_at, clean.position, clean.bad) == (point, "vda", "", 0, ())
    assert clean.verified_at
    io(lab.image_of(point), "write -P 7 3M 512")
    bad = lab.verified(point)
    assert (bad.bad, bad.bad_count, bad.affected, bad.problem) == ((Extent(3 * MIB, MIB),), 1, (), "")
    assert bad.verified_at > clean.verified_at
    found_at = lab.facts().health[0].found_at
    assert clean.verified_at < found_at <= bad.verified_at
    digests = Path(lab.facts().digests[point]["vda"])
    digests.write_bytes(b"nonsense")
    assert "digest" in lab.verified(point).problem
    assert "digest" in lab.facts().health[0].problem
    lab.wait(lab.target, lab.target.client.call(api.RebuildDigests(lab.ref, point, "vda"), api.WorkStarted).work)
    again = lab.verified(point)
    assert again.digests_recomputed_at
    assert (again.bad, again.problem) == ((Extent(3 * MIB, MIB),), "")
    assert lab.facts().health[0].found_at == found_at


def test_blocks_that_cannot_be_read_are_damaged_and_all_others_are_looked_at(lab: Lab) -> None:
    write(lab.image, 1, (0, SIZE))
    lab.replicate(TransferMode.FULL)
    point = lab.points[-1]
    path = lab.image_of(point)
    with path.open("r+b") as file:
        place = int.from_bytes(file.read(48)[40:], "big")  # of the L1 table; its first entry leads to the L2 table
        file.seek(place)
        table = int.from_bytes(file.read(8), "big") & 0x00FF_FFFF_FFFF_FE00
        for cluster in (5 * 16 + 3, 8 * 16):
            file.seek(table + cluster * 8)
            entry = int.from_bytes(file.read(8), "big")
            file.seek(table + cluster * 8)
            file.write((entry | 0x200).to_bytes(8, "big"))  # no border of a cluster: QEMU gives the image up
    io(path, "write -P 7 1M 512")
    bad = lab.verified(point)
    assert (bad.bad, bad.bad_count, bad.problem) == (
        (Extent(MIB, MIB), Extent(5 * MIB, MIB), Extent(8 * MIB, MIB)), 3, "")
    assert bad.verified_at


def test_a_replica_is_verified_by_one_at_a_time(lab: Lab) -> None:
    write(lab.image, 1, (0, 5 * MIB))
    lab.replicate(TransferMode.FULL)
    slow = api.VerifyPoint(lab.ref, lab.points[-1], rate=64 * KIB)
    work = lab.target.client.call(slow, api.WorkStarted).work
    deadline = time.monotonic() + 30
    while not (lab.facts().health and lab.facts().health[0].started_at):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(Refused, match="being verified or merged just now"):
        lab.verified(lab.points[-1])
    lab.target.client.call(api.CancelWork(work), api.Nothing)
    with pytest.raises(Cancelled):
        lab.wait(lab.target, work)
    assert lab.verified(lab.points[-1]).bad_count == 0
    with pytest.raises(NotFound, match="no such restore point"):
        lab.verified("gone")


def rebuild(lab: Lab, *, dry_run: bool) -> api.WorkStatus:
    request = api.RebuildReplica(lab.ref, lab.facts().last_attempt + 1, None, dry_run)
    work = lab.target.client.call(request, api.WorkStarted).work
    return lab.target.client.call(api.WorkQuery(work, 60.0), api.WorkStatus)


def test_a_lost_record_is_rebuilt_and_no_point_is_listed_that_a_flipped_bit_changed(lab: Lab) -> None:
    copies = {}
    for number in (1, 2, 3):
        write(lab.image, number, (0, 64 * KIB), (number * MIB, MIB))
        if number == 1:
            lab.replicate(TransferMode.FULL)
        else:
            lab.replicate(TransferMode.DIGEST_SCAN)
        copies[lab.points[-1]] = lab.directory / f"copy-{number}"
        run("qemu-img", "convert", "-O", "raw", lab.image, copies[lab.points[-1]])
    assert rebuild(lab, dry_run=True).error is not None  # nothing is lost
    before, place = lab.facts().replica, lab.image_of(lab.points[0]).parent.parent
    (place / "replica.json").unlink()
    assert lab.facts().replica is None
    assert "is lost" in lab.facts().problem
    rng = random.Random(4)
    for path in sorted((place / "layers").iterdir()) + sorted((place / "digests").iterdir()):
        data = path.read_bytes()
        path.chmod(0o600)
        for _ in range(3):
            at = rng.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:])
            status = rebuild(lab, dry_run=True)
            for point in status.rebuilt.replica.points if status.rebuilt else ():
                assert same_content(place / "layers" / point.disks[0].layer, "qcow2", copies[point.id], "raw")
        path.write_bytes(data)
    status = rebuild(lab, dry_run=False)
    assert status.error is None
    assert status.rebuilt is not None
    assert lab.facts().replica == status.rebuilt.replica == before
    assert status.progress.processed == status.progress.total == 3 * SIZE


def test_a_draft_is_published_only_when_every_disk_arrived(lab: Lab) -> None:
    write(lab.image, 1, (0, 5 * MIB))
    draft, point = lab.begin(chained=False)
    gone = api.NbdSource(str(lab.directory / "gone"), "disk", "")
    read = api.ReadSpec(gone, "vda", SIZE, TransferMode.FULL, MIB, False, lab.replica_id, "", point)
    if lab.source is lab.target:
        work = lab.target.client.call(api.CopyDisk(read, draft), api.WorkStarted).work
    else:
        started = lab.target.client.call(api.ReceiveDisk(draft, "vda", SIZE, MIB, "", 5.0), api.ReceiveStarted)
        send = api.SendDisk(read, api.TargetAddress(started.socket, "", started.ticket), lab.compression, 4, 5.0)
        work = lab.source.client.call(send, api.WorkStarted).work
    with pytest.raises(TransferError):
        lab.wait(lab.source, work)
    with pytest.raises(Refused, match="without a successful transfer"):
        lab.publish(draft, point)
    lab.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    lab.target.client.call(api.ReleaseDraft(draft), api.Nothing)
    assert lab.facts().images == {}
    lab.replicate(TransferMode.FULL)
    lab.check()


def test_a_draft_is_kept_from_older_attempts_and_gives_way_to_newer_ones(lab: Lab) -> None:
    lab.attempt = 4
    draft, point = lab.begin(chained=False)
    lab.attempt = 3
    with pytest.raises(Fenced):
        lab.begin(chained=False)
    lab.attempt = 5
    newer, _ = lab.begin(chained=False)
    with pytest.raises(NotFound):
        lab.publish(draft, point)
    lab.target.client.call(api.ReleaseDraft(newer), api.Nothing)


def test_a_layer_is_written_by_one_transfer_only(lab: Lab) -> None:
    draft, point = lab.begin(chained=False)
    client = lab.target.client
    opened = client.call(api.OpenExport(str(lab.image), "qcow2", "", "t"), api.OpenedExport)
    read = api.ReadSpec(opened.source, "vda", SIZE, TransferMode.FULL, MIB, False, lab.replica_id, "", point)
    lab.wait(lab.target, client.call(api.CopyDisk(read, draft), api.WorkStarted).work)
    with pytest.raises(Refused, match="nothing may be written any more"):
        lab.wait(lab.target, client.call(api.CopyDisk(read, draft), api.WorkStarted).work)
    client.call(api.ReleaseDraft(draft), api.Nothing)
    client.call(api.CloseExport(opened.id), api.Nothing)


def test_a_base_that_is_not_the_newest_point_is_refused(lab: Lab) -> None:
    lab.replicate(TransferMode.FULL)
    lab.replicate(TransferMode.DIGEST_SCAN)
    old, new = lab.points
    ref = api.DigestRef(lab.replica_id, "vda", old)
    lab.target.client.copy_digests_to(lab.ref, ref, lab.source.client)
    lab.points = [old]
    with pytest.raises(UnderstudyError, match=new):
        lab.replicate(TransferMode.DIGEST_SCAN)


def test_movers_start_quickly_and_end_with_their_input(tmp_path: Path) -> None:
    started = time.monotonic()
    mover = MoverProcess("quick", tmp_path / "r", tmp_path / "state", tmp_path / "log")
    assert time.monotonic() - started < 10
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o700
    assert mover.socket.stat().st_mode & 0o777 == 0o600
    mover.close()
    assert not mover.alive
    assert not mover.socket.exists()
    with pytest.raises(MoverError):
        MoverProcess("deep", tmp_path / ("d" * 120), tmp_path / "state", tmp_path / "log")


@pytest.mark.parametrize("how", ["input ends", "killed"])
def test_children_do_not_outlive_their_mover(tmp_path: Path, how: str) -> None:
    image = make_image(tmp_path / "i.qcow2", SIZE)
    mover = MoverProcess("mortal", tmp_path / "r", tmp_path / "state", tmp_path / "log")
    opened = mover.client.call(api.OpenExport(str(image), "qcow2", "", "t"), api.OpenedExport)
    # Longer than an idle thread of the request pool lives: its end must not take the child along.
    time.sleep(12 if how == "killed" else 0)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(opened.source.socket)
    if how == "killed":
        os.kill(mover.pid, signal.SIGKILL)
    mover.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(opened.source.socket) != 0:
                return
        time.sleep(0.05)
    pytest.fail("qemu-nbd still serves")


def test_a_mover_keeps_a_connection_for_longer_than_a_client_uses_it_again(
        movers: tuple[MoverProcess, MoverProcess]) -> None:
    """Otherwise it may close one just when a request comes, which then fails though nothing is wrong."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(movers[0].socket))
        request = b"POST /v1/about HTTP/1.1\r\nHost: mover\r\nContent-Length: 2\r\n\r\n{}"
        for _ in range(2):
            connection.sendall(request)
            with HTTPResponse(connection) as answer:
                answer.begin()
                assert answer.status == 200
                answer.read()
            time.sleep(CLIENT_KEEPS_S + 1)


def test_a_mover_that_is_gone_is_a_mover_error(tmp_path: Path) -> None:
    mover = MoverProcess("gone", tmp_path / "r", tmp_path / "state", tmp_path / "log")
    os.kill(mover.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while mover.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(MoverError):
        mover.client.call(api.About(), api.MoverInfo)
    mover.close()


def test_an_image_in_use_says_so(movers: tuple[MoverProcess, MoverProcess], tmp_path: Path) -> None:
    image = make_image(tmp_path / "i.qcow2", SIZE)
    writer = subprocess.Popen(["qemu-nbd", "-t", "-k", tmp_path / "w", "-f", "qcow2", image])
    try:
        while not greets(tmp_path / "w", 10.0):
            time.sleep(0.01)
        with pytest.raises(PlatformError, match="in use for writing"):
            movers[0].client.call(api.OpenExport(str(image), "qcow2", "", "t"), api.OpenedExport)
    finally:
        writer.terminate()
        writer.wait()
    with pytest.raises(PlatformError, match="No such file"):
        movers[0].client.call(api.OpenExport(str(tmp_path / "none"), "qcow2", "", "t"), api.OpenedExport)
    with pytest.raises(PlatformError, match="nothere"):
        movers[0].client.call(api.OpenExport(str(image), "qcow2", "nothere", "t"), api.OpenedExport)


def test_images_are_probed(movers: tuple[MoverProcess, MoverProcess], tmp_path: Path) -> None:
    client = movers[0].client
    image = make_image(tmp_path / "i.qcow2", SIZE)
    add_bitmap(image, "one")
    probed = client.call(api.ProbeImage(str(image), "qcow2"), api.ImageFacts)
    found = image.stat()
    assert probed == api.ImageFacts(
        True, ("one",), (), FileMark(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    )
    process = subprocess.Popen(["qemu-nbd", "-k", tmp_path / "open.sock", "-f", "qcow2", image])
    try:
        while not greets(tmp_path / "open.sock", 10):
            time.sleep(0.01)
        in_use = client.call(api.ProbeImage(str(image), "qcow2"), api.ImageFacts)
        assert (in_use.bitmaps, in_use.open_bitmaps) == ((), ("one",))
        with pytest.raises(PlatformError, match="lock"):
            client.call(api.RemoveBitmap(str(image), "one", "o"), api.Nothing)
    finally:
        process.terminate()
        process.wait()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", tmp_path / "old", "1M")
    old = client.call(api.ProbeImage(str(tmp_path / "old"), "qcow2"), api.ImageFacts)
    assert (old.can_track, old.bitmaps) == (False, ())
    run("qemu-img", "create", "-q", "-f", "raw", tmp_path / "raw", "1M")
    assert not client.call(api.ProbeImage(str(tmp_path / "raw"), "raw"), api.ImageFacts).can_track
    with pytest.raises(PlatformError):
        client.call(api.ProbeImage(str(tmp_path / "none"), "qcow2"), api.ImageFacts)


def test_only_bitmaps_with_our_tag_are_removed(movers: tuple[MoverProcess, MoverProcess], tmp_path: Path) -> None:
    client = movers[0].client
    image = make_image(tmp_path / "i.qcow2", SIZE)
    for name in ("ours-1", "ours-2", "other"):
        add_bitmap(image, name)
    for name, tag in (("other", "ours-"), ("other", "")):
        with pytest.raises(UsageError, match="does not carry our tag"):
            client.call(api.RemoveBitmap(str(image), name, tag), api.Nothing)
    for _ in range(2):
        client.call(api.RemoveBitmap(str(image), "ours-1", "ours-"), api.Nothing)
    assert set(client.call(api.ProbeImage(str(image), "qcow2"), api.ImageFacts).bitmaps) == {"ours-2", "other"}


def test_places_are_prepared_checked_and_swept(movers: tuple[MoverProcess, MoverProcess], tmp_path: Path) -> None:
    client = movers[0].client
    scratch = tmp_path / "a" / "scratch"
    assert client.call(api.PrepareScratch(str(scratch), 64055, 64055), api.ScratchFacts).free_bytes > 0
    assert (scratch.stat().st_uid, scratch.stat().st_mode & 0o777) == (64055, 0o770)
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="no directory"):
        client.call(api.PrepareScratch(str(tmp_path / "file"), 0, 0), api.ScratchFacts)
    for name in ("us1-a", "us1-keep", "x-us1-b", "other", "us1-dir/inner"):
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).touch()
    (scratch / "us1-link").symlink_to(tmp_path / "file")
    removed = client.call(api.RemoveTagged(str(scratch), "us1", ("keep",)), api.Removed).paths
    assert removed == (str(scratch / "us1-a"),)
    with pytest.raises(UsageError):
        client.call(api.RemoveTagged(str(scratch), ""), api.Removed)
    facts = client.call(api.CheckDatastore(str(tmp_path)), api.DatastoreAnswer).facts
    assert (facts.exists, facts.writable) == (True, True)
    assert not client.call(api.CheckDatastore(str(tmp_path / "none")), api.DatastoreAnswer).facts.exists


def test_errors_come_back_as_their_class(movers: tuple[MoverProcess, MoverProcess]) -> None:
    client = movers[0].client
    with pytest.raises(NotFound):
        client.call(api.WorkQuery("nonsense"), api.WorkStatus)
    client.call(api.CancelWork("nonsense"), api.Nothing)
    client.call(api.CloseExport("nonsense"), api.Nothing)
    with pytest.raises(UsageError):
        client.call(api.InspectReplica(api.ReplicaRef("tape", "/tmp", "x")), api.ReplicaFacts)
    assert "qemu_nbd" in client.call(api.About(), api.MoverInfo).versions


def test_every_request_of_the_contract_has_a_handler() -> None:
    from understudy.mover.operations import HANDLERS

    answers = {
        "ReplicaRef", "MoverInfo", "Nothing", "ScratchFacts", "ImageFacts", "NbdSource", "NvramContent",
        "OpenedExport", "Removed", "DigestHolding", "DatastoreAnswer", "ReplicaNames", "ReplicaFacts",
        "DraftOpened", "PublishedPoint", "OwnedReplica", "HeadBound", "VerifiedDisk", "ReadSpec", "ReceiveStarted",
        "WorkState", "WorkStarted", "Progress", "ErrorFields", "WorkStatus", "RateLimit", "TargetAddress",
        "TaggedFile", "TaggedFiles", "HeldFacts", "DigestCopy", "DigestCopyList", "DatastoreSurvey", "SurveyedReplica",
        "DraftHolding", "DatastoreMarker", "CertificateRequest", "Enrolled", "EnrolmentRequest", "IdentityFacts",
        "PointExclusions", "SurveyedDisk", "SurveyedDisks", "LibraryFacts", "SampleRead",
        "ConversionFacts",
    }
    assert set(HANDLERS) == set(api.__all__) - answers
