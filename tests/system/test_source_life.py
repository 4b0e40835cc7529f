"""The source changes behind our back, goes away in the middle, or carries things of others: points stay right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from tests.system.aftermath import remove_vms
from tests.system.installation import Installation, frozen_copy
from tests.system.steps import (
    INCREMENTAL,
    MIB,
    QUIET,
    Instant,
    assert_points_are,
    checkpoints,
    disk_paths,
    our_checkpoints,
    replicate_off,
    replicate_paused,
    wait_until,
)
from understudy.lab.disks import DataDisk
from understudy.lab.domain_xml import VmDisk
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm

_CHECKPOINT = "<domaincheckpoint><name>{}</name></domaincheckpoint>"


@dataclass
class Scene:
    """One VM, its job ``nightly``, and what its disks were at the instant of each point."""

    installation: Installation
    vm: LabVm
    instants: list[Instant]
    external: list[Instant]

    @property
    def image(self) -> Path:
        """The image of vdb."""
        return self.vm.disks[1].path

    def write(self, place: int) -> None:
        """Change 192 KiB of vdb at a MiB, and something on vda."""
        self.vm.run(f"dd if=/dev/urandom of=/dev/vdb bs=64k count=3 seek={place * 16} oflag=direct conv=notrunc;"
                    f"echo {place} >/data/place; sync")

    def change_image(self, place: int) -> None:
        """Change 64 KiB of vdb at a MiB while the VM is off, as its QEMU would; the bitmaps in the image notice."""
        change_image(self.image, place)

    def start(self) -> None:
        """Power the VM on, and wait for it."""
        self.vm.start()
        self.vm.wait_agent()

    def replicate(self) -> Instant:
        """Make a point, at an instant that is known."""
        make = replicate_paused if self.vm.is_running() else replicate_off
        self.instants.append(make(self.installation, self.vm, "nightly"))
        return self.instants[-1]

    def replicate_both(self) -> tuple[Instant, Instant]:
        """The same with both jobs, one after the other, each in its snapshot mode."""
        shown = LabVm(self.vm.host, self.vm.name, [
            VmDisk(name, Path(path), "qcow2") for name, path in disk_paths(self.vm).items()
        ])  # fmt: skip
        for job, instants in (("nightly", self.instants), ("external", self.external)):
            instants.append(replicate_paused(self.installation, shown, job))
        return self.instants[-1], self.external[-1]

    def assert_points_are_right(self) -> None:
        """Every point of both jobs is what the disks were."""
        assert_points_are(self.installation, "life_replica", *self.instants)
        if self.external:
            assert_points_are(self.installation, "life_external", *self.external)

    def bitmaps(self) -> dict[str, set[str]]:
        """Names of the bitmaps that each disk has, in QEMU if the VM runs, else in its image."""
        if not self.vm.is_running():
            return {disk.target: bitmaps_in(disk.path) for disk in self.vm.disks}
        with self.vm.domain() as domain:
            said = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-block"}', 0))
        drives = [drive["inserted"] for drive in said["return"] if "inserted" in drive]
        return {disk.target: {item["name"] for drive in drives if drive["file"] == str(disk.path)
                              for item in drive.get("dirty-bitmaps", [])} for disk in self.vm.disks}


def change_image(image: Path, place: int) -> None:
    """Change 64 KiB of an image that nobody has open, at a MiB."""
    change = f"write -P {place} {place}M 64k"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", change, image], check=True, capture_output=True)


def snapshots_in(image: Path) -> list[str]:
    """Names of the internal snapshots in an image file."""
    said = subprocess.run(["qemu-img", "info", "-U", "--output=json", image], capture_output=True, check=True).stdout
    return [item["name"] for item in json.loads(said).get("snapshots", [])]


def bitmaps_in(image: Path) -> set[str]:
    """Names of the bitmaps in an image file."""
    said = subprocess.run(["qemu-img", "info", "-U", "--output=json", image], capture_output=True, check=True).stdout
    return {item["name"] for item in json.loads(said)["format-specific"]["data"].get("bitmaps", [])}


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Scene]:
    place = lab.directory / "test-source-life"
    place.mkdir()
    installation = Installation(lab, place)
    vm = lab.create_vm(lab.alpha, "life", data_disks=[DataDisk(16 * MIB)])
    vm.wait_agent()
    installation.job("nightly", vm.name, options=("--points", "99", *QUIET))
    external = ("--points", "99", "--suffix", "_external", "--snapshot-mode", "external", *QUIET)
    installation.job("external", vm.name, options=external)
    try:
        made = Scene(installation, vm, [], [])
        made.write(1)
        made.replicate()
        yield made
    finally:
        remove_vms(lab)


def test_an_image_rolled_back_to_between_a_point_and_its_older_baseline_loses_nothing(scene: Scene) -> None:
    scene.write(2)
    scene.vm.shutdown()
    saved = scene.image.read_bytes()
    scene.change_image(3)
    scene.change_image(2)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    # In place, so that only the content tells; it has the bitmap of the baseline.
    scene.image.write_bytes(saved)
    scene.start()
    scene.write(4)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    scene.assert_points_are_right()


def test_an_overlay_that_was_committed_by_hand_is_followed_and_no_internal_snapshot_goes_back(scene: Scene) -> None:
    scene.vm.shutdown()
    overlay = scene.image.with_suffix(".overlay")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", scene.image, overlay], check=True)
    change_image(overlay, 5)
    subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", overlay], check=True)
    overlay.unlink()
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    subprocess.run(["qemu-img", "snapshot", "-c", "theirs", scene.image], check=True)
    refused = subprocess.run(["qemu-img", "snapshot", "-a", "theirs", scene.image], capture_output=True, check=False)
    assert b"Device has active dirty bitmaps" in refused.stderr
    subprocess.run(["qemu-img", "snapshot", "-d", "theirs", scene.image], check=True)


def test_an_image_whose_file_is_older_than_it_was_is_scanned(scene: Scene) -> None:
    saved, before = scene.image.read_bytes(), scene.image.stat()
    scene.change_image(6)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    scene.image.write_bytes(saved)
    os.utime(scene.image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scene.replicate().how() == {"vda": INCREMENTAL, "vdb": ("digest_scan", "source_rolled_back")}
    assert scene.instants[-1].disk("vdb")["sent_bytes"] <= MIB


def test_an_image_that_was_replaced_at_its_path_is_scanned(scene: Scene) -> None:
    other = scene.image.with_suffix(".other")
    shutil.copy2(scene.image, other)
    change_image(other, 7)
    other.chmod(0o666)
    other.rename(scene.image)
    assert scene.replicate().how() == {"vda": INCREMENTAL, "vdb": ("digest_scan", "source_replaced")}
    assert scene.instants[-1].disk("vdb")["sent_bytes"] <= MIB
    scene.start()
    scene.write(7)
    assert scene.replicate().how() == {"vda": INCREMENTAL, "vdb": ("digest_scan", "no_baseline")}


def test_a_vm_that_is_powered_off_while_it_is_read_gets_its_point_in_the_same_session(scene: Scene) -> None:
    scene.write(9)
    with scene.installation.stalled("nightly", "read.before") as run:
        scene.vm.shutdown()
        copies = frozen_copy(scene.vm, scene.installation.place)
    assert run.ended.status == 0, run.ended
    scene.instants.append(Instant(run.ended.json, copies))
    assert set(scene.instants[-1].how().values()) == {INCREMENTAL}
    assert scene.instants[-1].task["state"] == "warning"
    assert any("planned anew, because it was powered off" in text for text in scene.instants[-1].task["warnings"])
    assert scene.instants[-1].task["consistency"] == "filesystem"
    scene.start()
    scene.write(10)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    assert len(our_checkpoints(scene.vm)) == 1


def test_a_vm_whose_hypervisor_crashes_while_it_is_read_and_runs_again_gets_its_point(scene: Scene) -> None:
    scene.write(11)
    with scene.installation.stalled("nightly", "read.before") as run:
        scene.vm.process().signal(signal.SIGKILL)
        scene.vm.wait_off()
        scene.start()
        with scene.vm.domain() as domain:
            domain.suspend()
        copies = frozen_copy(scene.vm, scene.installation.place)
    with scene.vm.domain() as domain:
        domain.resume()
    assert run.ended.status == 0, run.ended
    scene.instants.append(Instant(run.ended.json, copies))
    assert {mode for mode, _ in scene.instants[-1].how().values()} == {"digest_scan"}
    assert any("planned anew, because it was restarted" in text for text in scene.instants[-1].task["warnings"])


def _redefine(vm: LabVm) -> None:
    """Undefine and define a VM that is off: libvirt forgets its checkpoints, the images keep the bitmaps."""
    with vm.host.connection() as connection:
        domain = connection.lookupByName(vm.name)
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        connection.defineXML(xml)


def test_bitmaps_without_a_checkpoint_are_removed_from_a_running_vm_and_foreign_ones_stay(scene: Scene) -> None:
    with scene.vm.domain() as domain:
        domain.checkpointCreateXML(_CHECKPOINT.format("other-tool"), 0)
    (orphan,) = our_checkpoints(scene.vm)
    scene.vm.shutdown()
    _redefine(scene.vm)
    scene.start()
    assert scene.bitmaps() == {"vda": {"other-tool", orphan}, "vdb": {"other-tool", orphan}}
    scene.write(13)
    scene.replicate()
    scene.write(14)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    (ours,) = our_checkpoints(scene.vm)
    assert scene.bitmaps() == {"vda": {"other-tool", ours}, "vdb": {"other-tool", ours}}
    assert checkpoints(scene.vm) == [ours]
    assert orphan not in bitmaps_in(scene.image)


def test_bitmaps_without_a_checkpoint_are_removed_from_a_vm_that_is_off(scene: Scene) -> None:
    (orphan,) = our_checkpoints(scene.vm)
    scene.vm.shutdown()
    _redefine(scene.vm)
    scene.replicate()
    scene.replicate()
    assert scene.bitmaps() == {"vda": {"other-tool"}, "vdb": {"other-tool"}}
    assert any(f"removed bitmap {orphan}" in text for text in scene.instants[-1].task["warnings"])
    for disk in scene.vm.disks:
        subprocess.run(["qemu-img", "snapshot", "-c", "theirs", disk.path], check=True)
    scene.start()
    scene.replicate_both()
    scene.write(15)
    for instant in scene.replicate_both():
        assert set(instant.how().values()) == {INCREMENTAL}
    assert [snapshots_in(disk.path) for disk in scene.vm.disks] == [["theirs"], ["theirs"]]


def test_an_external_snapshot_of_somebody_else_is_left_alone_and_costs_scans_when_it_comes_and_goes(
    scene: Scene,
) -> None:
    if not scene.external:
        scene.replicate_both()
    with scene.vm.domain() as domain:
        domain.snapshotCreateXML("<domainsnapshot><name>theirs</name></domainsnapshot>",
                                 libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
        described = domain.snapshotLookupByName("theirs").getXMLDesc()
    overlays = disk_paths(scene.vm)
    assert all(path.endswith(".theirs") for path in overlays.values())
    scene.write(1)
    for instant in scene.replicate_both():
        assert set(instant.how().values()) == {("digest_scan", "source_replaced")}
        assert instant.disk("vdb")["sent_bytes"] <= MIB
    scene.write(2)
    for instant in scene.replicate_both():
        assert set(instant.how().values()) == {INCREMENTAL}
    assert disk_paths(scene.vm) == overlays
    with scene.vm.domain() as domain:
        assert [item.getName() for item in domain.listAllSnapshots()] == ["theirs"]
        assert domain.snapshotLookupByName("theirs").getXMLDesc() == described
        for disk in overlays:
            _commit(domain, disk)
        domain.snapshotLookupByName("theirs").delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    scene.write(3)
    for instant in scene.replicate_both():
        assert set(instant.how().values()) == {("digest_scan", "source_replaced")}
    scene.assert_points_are_right()


def test_the_end_of_one_job_leaves_the_baseline_of_the_other(scene: Scene) -> None:
    before = set(our_checkpoints(scene.vm))
    assert len(before) == 2
    scene.installation.ok("replica", "remove", "life_external", "--delete-files")
    scene.installation.ok("job", "delete", "external")
    scene.write(5)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    assert len(set(our_checkpoints(scene.vm)) & before) == 1
    assert_points_are(scene.installation, "life_replica", *scene.instants)


def _commit(domain: libvirt.virDomain, disk: str) -> None:
    """Merge the whole chain of a disk, as an administrator would."""
    domain.blockCommit(disk, None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    wait_until(lambda: '<mirror type=' in domain.XMLDesc(0) and "ready='yes'" in domain.XMLDesc(0), 30, "the merge")
    domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
