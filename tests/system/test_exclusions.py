"""What a job leaves out of a real VM: E of each restore point, what moves in and out of it, and who applies it.

One VM goes through a life: off, running, cut off while it writes, with other settings, with a lost record, as a replica
that runs, under a new name. Each new point is compared with what the guest had.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.system.aftermath import remove_vms
from tests.system.installation import Installation, assert_same
from tests.system.steps import INCREMENTAL, MIB, Instant, replicate_off, replicate_paused, run_in_replica
from tests.system.test_whereabouts import bring, take_away
from tests.unit.volumes.xfs import images as xfs
from understudy.lab.commands import run
from understudy.lab.disks import DataDisk
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm
from understudy.lab.writer import GuestWriter
from understudy.model.exclusion import unpack
from understudy.model.extent import PART, Extent

NAME = "spare"
REPLICA = f"{NAME}_replica"
MASKS = ("--exclude", "/cache/**", "--exclude", f"{NAME}:/srv/cache/**")
FSTAB = "LABEL=files / ext4 defaults 0 1\nLABEL=lab /srv xfs defaults 0 2\n"
BIG = 4 * MIB
#: Only whole parts of 64 KiB are left out (G13), so that less than two parts of each piece of a file travel.
BORDERS = 2 * PART
#: What a guest writes besides: superblocks, times, logs, of which XFS marks 2 MiB at each mount.
LITTLE = 3 * MIB
EXT, XFS = "vdb", "vdc"
FILE_SYSTEMS = {EXT: "ext4", XFS: "xfs"}


@dataclass
class Scene:
    """The VM, its job, and what the points must show.

    :ivar kept: by disk and path, the hash of each file that must be whole in the next point.
    :ivar shown: by point and disk, its content.
    """

    installation: Installation
    vm: LabVm
    kept: dict[str, dict[str, str]]
    shown: dict[str, dict[str, Path]] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The replica's."""
        return self.installation.store / REPLICA

    def images(self) -> dict[str, dict[str, Path]]:
        """By point and disk, the layer that shows it, straight from the record."""
        points = json.loads((self.directory / "replica.json").read_text())["replica"]["points"]
        return {point["id"]: {disk["name"]: self.directory / "layers" / disk["layer"] for disk in point["disks"]}
                for point in points}  # fmt: skip

    def left_out(self, point: str) -> dict[str, tuple[Extent, ...]]:
        """E of a point, by disk, straight from its file."""
        path = self.directory / "points" / f"{point}.excluded"
        disks = json.loads(path.read_text())["disks"] if path.exists() else []
        return {item["disk"]: unpack(item["packed"]) for item in disks}

    def assert_shows(self, instant: Instant) -> None:
        """The new point is what the VM had, with E zeroed; what it was made from becomes that."""
        for disk, ranges in self.left_out(instant.point).items():
            with instant.copies[disk].open("r+b") as handle:
                for item in ranges:
                    os.pwrite(handle.fileno(), bytes(item.length), item.start)
        self.shown[instant.point] = instant.copies
        self.check_points(instant.point)

    def check_points(self, only: str = "") -> None:
        """Points that were compared when they were new show the same."""
        for point, images in self.images().items():
            if point in self.shown and only in ("", point):
                for disk, image in images.items():
                    assert_same(image, self.shown[point][disk])

    def look(self, point: str, disk: str, script: str = "true") -> dict[str, str]:
        """Mount a copy of a disk of a point as its guest would, and run a script there; a hash of every file.

        :raises CommandFailed: if it cannot be mounted, the script fails, or the file system's checker finds anything.
        """
        raw, place = self.installation.place / f"{disk}.raw", self.installation.place / "look"
        run(["qemu-img", "convert", "-O", "raw", str(self.images()[point][disk]), str(raw)])
        place.mkdir(exist_ok=True)
        said = run(["unshare", "--mount", "sh", "-ec", _LOOK, "sh", str(raw), str(place), FILE_SYSTEMS[disk], script])
        raw.unlink()
        return {path.removeprefix("."): digest for digest, path in (line.split() for line in said.splitlines())}

    def assert_kept(self, point: str, script: str = "true") -> None:
        """Every file that is kept is whole in a point, and its file systems are."""
        for disk, kept in self.kept.items():
            found = self.look(point, disk, script)
            assert {path: found.get(path) for path in kept} == kept


# A copy is mounted for writing, so that the kernel replays its log; then nothing may be left to repair.
_LOOK = """
mount -t "$3" -o loop "$1" "$2"
cd "$2"; (eval "$4") >&2; find . -type f -exec sha256sum {} +; cd /
umount "$2"
if [ "$3" = ext4 ]; then e2fsck -fn "$1"; else xfs_repair -n "$1"; fi >&2
"""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tree(seed: bytes) -> dict[str, bytes]:
    """Files to keep and to leave out, by path; no two of them have the same content."""
    names = ("/keep/stays", "/keep/in", "/cache/a", "/cache/b", "/cache/out")
    return {name: hashlib.shake_256(seed + name.encode()).digest(BIG) for name in names}


def make_ext(place: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = place / "tree" / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    image = place / "ext.img"
    image.write_bytes(b"")
    os.truncate(image, 96 * MIB)
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    run(["mkfs.ext4", "-q", "-L", "files", "-E", lazy, "-d", str(place / "tree"), str(image)])
    return image


def make_strange(place: Path) -> Path:
    """A disk with what nobody may look into: encrypted, damaged, of an unknown feature."""
    size = 8 * MIB
    made = place / "made"
    made.write_bytes(bytes(size))
    run(["mkfs.ext4", "-q", "-F", str(made)])
    encrypted, damaged, unknown = volumes = [
        bytearray(os.urandom(size)), bytearray(made.read_bytes()), bytearray(made.read_bytes())
    ]
    encrypted[:8] = b"LUKS\xba\xbe\x00\x02"
    damaged[1024 + 0x78] ^= 1  # the label, of which the checksum is, too
    unknown[1024 + 0x63] |= 0x40
    table = bytearray(MIB)
    for number in range(len(volumes)):
        first = (MIB + number * size) // 512
        struct.pack_into("<B3xB3xII", table, 446 + 16 * number, 0, 0x83, first, size // 512)
    table[510:512] = b"\x55\xaa"
    image = place / "strange.img"
    image.write_bytes(b"".join([table, *volumes]))
    return image


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Scene]:
    """A VM that never ran, and its job, which leaves out all that it may."""
    place = lab.directory / "test-exclusions"
    place.mkdir()
    files = {EXT: {**tree(b"ext"), "/etc/fstab": FSTAB.encode()}, XFS: tree(b"xfs")}
    contents = [make_ext(place, files[EXT]), xfs.make(place, files[XFS]), make_strange(place)]
    disks = [DataDisk(content.stat().st_size, content=content) for content in contents]
    vm = LabVm.create(lab.alpha, NAME, lab.guest, data_disks=disks)
    installation = Installation(lab, place)
    installation.job("nightly", NAME, options=("--points", "3", "--free-blocks", "exclude", *MASKS))
    kept = {disk: {path: digest(content) for path, content in found.items() if not path.startswith("/cache/")}
            for disk, found in files.items()}
    yield Scene(installation, vm, kept)
    remove_vms(lab)


def parts_with_data(path: Path) -> int:
    """How many parts of 64 KiB of a raw image are not zero."""
    nothing = bytes(PART)
    with path.open("rb") as handle:
        return sum(part != nothing[: len(part)] for part in iter(lambda: handle.read(PART), b""))


def test_a_vm_that_is_off_arrives_with_e_zeroed_and_nothing_of_e_travels(scene: Scene) -> None:
    instant = replicate_off(scene.installation, scene.vm, "nightly")
    whole = {disk: parts_with_data(copy) for disk, copy in instant.copies.items()}
    scene.assert_shows(instant)
    for disk, copy in instant.copies.items():
        assert instant.disk(disk)["sent_bytes"] == parts_with_data(copy) * PART
    for disk in FILE_SYSTEMS:
        masked = instant.disk(disk)["excluded"]["mask"]
        saved = whole[disk] * PART - instant.disk(disk)["sent_bytes"]
        assert 3 * (BIG - BORDERS) <= masked <= saved <= 3 * BIG
    assert instant.disk("vda")["excluded"]["swap"] == scene.installation.lab.guest.swap_size - PART
    scene.assert_kept(instant.point)


def test_what_nobody_knows_is_copied_and_the_session_says_why(scene: Scene) -> None:
    (session, *_) = scene.installation.json("session", "list")
    shown = scene.installation.json("session", "show", str(session["id"]))
    (disk,) = [disk for disk in shown["tasks"][0]["disks"] if disk["name"] == "vdd"]
    assert disk["excluded"] == {}
    assert disk["notes"] == [
        "disk vdd, partition 1: LUKS is not read, nothing of it is left out",
        "disk vdd, partition 2: the checksum of the superblock is wrong",
        "disk vdd, partition 3: it uses the feature incompat 0x40000000, which is not supported",
    ]
    said = scene.installation.ok("session", "show", str(session["id"])).out
    assert all(f"{NAME}: {note}\n" in said for note in disk["notes"])
    assert f"{NAME}: disk {EXT}: left out: mask 11.9 MiB, free " in said


def replicate_frozen(scene: Scene) -> Any:
    (task,) = scene.installation.replicate("nightly")["tasks"]
    assert (task["state"], task["consistency"], task["warnings"]) == ("success", "filesystem", [])
    return task


def disk_of(task: Any, name: str) -> Any:
    return next(disk for disk in task["disks"] if disk["name"] == name)


def test_a_digest_scan_leaves_out_the_same(scene: Scene) -> None:
    vm = scene.vm
    vm.start()
    vm.wait_agent()
    # Mounted anew without discard, so that old data stays in blocks that become free.
    for disk, kind in FILE_SYSTEMS.items():
        vm.run(f"umount /mnt/{disk}; mount -t {kind} /dev/{disk} /mnt/{disk}; "
               f"dd if=/dev/urandom of=/mnt/{disk}/cache/b bs=1M count=4 conv=notrunc; sync")
    task = replicate_frozen(scene)
    for disk in FILE_SYSTEMS:
        report = disk_of(task, disk)
        assert (report["mode"], report["reason"], report["notes"]) == ("digest_scan", "no_baseline", [])
        assert 3 * (BIG - BORDERS) <= report["excluded"]["mask"] <= 3 * BIG
        assert report["sent_bytes"] <= LITTLE
    scene.assert_kept(task["restore_point"])


_MOVE = """
set -e
cd /mnt/{disk}
mv cache/out keep/out
mv keep/in cache/in
ln cache/a keep/alias
fallocate -l $(( ($(df -k . | tail -n 1 | awk '{{print $4}}') - 1024) * 1024 )) keep/ballast
rm cache/b; sync
dd if=/dev/urandom of=keep/new bs=1M count=4 conv=fsync
sync
sha256sum keep/new | cut -d ' ' -f 1
"""


def test_what_leaves_e_is_copied_though_nobody_wrote_to_it_and_what_enters_it_becomes_zero(scene: Scene) -> None:
    """A file that is moved out, one that gets a second name, and blocks of a deleted one that another one took."""
    for disk, kept in scene.kept.items():
        seed = {EXT: b"ext", XFS: b"xfs"}[disk]
        new = scene.vm.run(_MOVE.format(disk=disk)).strip()
        del kept["/keep/in"]
        kept |= {"/keep/out": digest(tree(seed)["/cache/out"]), "/cache/a": digest(tree(seed)["/cache/a"]),
                 "/keep/alias": digest(tree(seed)["/cache/a"]), "/keep/new": new}
    task = replicate_frozen(scene)
    for disk in FILE_SYSTEMS:
        report = disk_of(task, disk)
        assert (report["mode"], report["reason"], report["mismatched_blocks"]) == (*INCREMENTAL, 0)
        assert BIG - BORDERS <= report["excluded"]["mask"] <= BIG
        assert 3 * BIG <= report["sent_bytes"] <= 3 * BIG + LITTLE
    scene.assert_kept(task["restore_point"], "test $(tr -d '\\0' <cache/in | wc -c) -lt 131072")
    scene.installation.ok("replica", "verify", REPLICA)


def test_a_point_that_is_cut_off_leaves_out_what_the_replay_of_the_log_proves(scene: Scene) -> None:
    installation, vm = scene.installation, scene.vm
    vm.run("".join(f"rm /mnt/{disk}/keep/ballast /mnt/{disk}/keep/new;" for disk in FILE_SYSTEMS) + "sync")
    for kept in scene.kept.values():
        del kept["/keep/new"]
    installation.ok("job", "guest", "nightly", "--policy", "off")
    with ExitStack() as stack:
        writers = [stack.enter_context(GuestWriter.in_files(vm, f"/mnt/{disk}/{name}/writer", pause_ms=5))
                   for disk in FILE_SYSTEMS for name in ("keep", "cache")]  # fmt: skip
        while min(writer.rounds() for writer in writers) < 10:
            pass
        instant = replicate_paused(installation, vm, "nightly")
    assert instant.task["consistency"] == "crash"
    assert instant.how()[EXT] == instant.how()[XFS] == INCREMENTAL
    assert instant.disk(EXT)["excluded"]["mask"] >= BIG - BORDERS
    assert instant.disk(EXT)["notes"] == [
        f"disk {EXT} (ext4): 1 files that the masks name have several names and are replicated"
    ]
    assert instant.disk(XFS)["excluded"] == {}
    assert "nothing of the XFS file system is left out" in instant.disk(XFS)["notes"][0]
    scene.assert_shows(instant)
    # A checksum that was just renamed may be empty after a power cut; it never has zeros in it.
    scene.assert_kept(instant.point, "cd keep/writer; for sum in *.md5; do [ ! -s $sum ] || md5sum -c $sum; done")


def test_what_is_left_out_no_longer_is_copied_though_nobody_wrote_to_it(scene: Scene) -> None:
    installation = scene.installation
    installation.ok("job", "set", "nightly", "--no-excludes", "--swap", "keep", "--free-blocks", "keep")
    instant = replicate_paused(installation, scene.vm, "nightly")
    assert set(instant.how().values()) == {INCREMENTAL}
    assert [disk["excluded"] for disk in instant.task["disks"]] == [{}] * 4
    assert [disk["mismatched_blocks"] for disk in instant.task["disks"]] == [0] * 4
    assert instant.disk(EXT)["sent_bytes"] >= BIG
    scene.assert_shows(instant)


def test_a_rebuilt_record_knows_e_and_a_replica_that_runs_finds_its_files_and_swap(scene: Scene) -> None:
    installation = scene.installation
    (scene.directory / "replica.json").unlink()
    installation.ok("replica", "rebuild", f"ds/{REPLICA}")
    installation.ok("job", "set", "nightly", "--swap", "exclude", *MASKS)
    installation.ok("job", "guest", "nightly", "--policy", "default")
    task = replicate_frozen(scene)
    for name, kind in (("vda", "swap"), (EXT, "mask"), (XFS, "mask")):
        report = disk_of(task, name)
        assert (report["mode"], report["reason"], report["mismatched_blocks"]) == (*INCREMENTAL, 0)
        assert set(report["excluded"]) == {kind}
        assert report["sent_bytes"] <= LITTLE
    installation.ok("failover", "start", REPLICA)
    assert "/dev/vda2" in run_in_replica(installation, REPLICA, "cat /proc/swaps")
    for disk, kept in scene.kept.items():
        paths = " ".join(f".{path}" for path in kept)
        said = run_in_replica(installation, REPLICA, f"cd /mnt/{disk}; sha256sum {paths}")
        assert {path[1:]: found for found, path in map(str.split, said.splitlines())} == kept
    installation.ok("failover", "undo", REPLICA)
    scene.check_points()


def test_a_vm_of_another_name_keeps_its_masks_and_lost_tracking_its_e(scene: Scene) -> None:
    scene.vm.shutdown()
    scene.vm = bring(scene.vm, scene.vm.host, "renamed", take_away(scene.vm), start=False)
    instant = replicate_off(scene.installation, scene.vm, "nightly")
    assert [text for text in instant.task["warnings"] if f"VM {NAME!r} is called 'renamed' now" in text]
    assert set(instant.how().values()) == {("digest_scan", "checkpoint_missing")}
    for disk in FILE_SYSTEMS:
        assert instant.disk(disk)["excluded"]["mask"] >= BIG - BORDERS
        assert instant.disk(disk)["sent_bytes"] <= LITTLE
    scene.assert_shows(instant)
    scene.assert_kept(instant.point)
    scene.installation.ok("replica", "verify", REPLICA, "--all")
