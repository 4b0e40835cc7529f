"""The source changes behind our back, goes away in the middle, or carries things of others: points stay right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
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
)
from understudy.lab.disks import DataDisk
from understudy.lab.lab import Lab
from understudy.lab.vm import LabVm

_CHECKPOINT = "<domaincheckpoint><name>{}</name></domaincheckpoint>"


@dataclass
class Scene:
    """One VM, its job ``nightly``, and what its disks were at the instant of each point."""

    installation: Installation
    vm: LabVm
    instants: list[Instant] = field(default_factory=list)

    @property
    def image(self) -> Path:
        """The image of vdb."""
        return self.vm.disks[1].path

    def write(self, place: int) -> None:
        """Change 192 KiB of vdb at a MiB, and something on vda."""
        self.vm.run(f"dd if=/dev/urandom of=/dev/vdb bs=64k count=3 seek={place * 16} oflag=direct conv=notrunc;"
                    f"echo {place} >/data/place; sync")

    def start(self) -> None:
        """Power the VM on, and wait for it."""
        self.vm.start()
        self.vm.wait_agent()

    def replicate(self) -> Instant:
        """Make a point, at an instant that is known."""
        make = replicate_paused if self.vm.is_running() else replicate_off
        self.instants.append(make(self.installation, self.vm, "nightly"))
        return self.instants[-1]

    def bitmaps(self) -> dict[str, set[str]]:
        """Names of the bitmaps that each disk has, in QEMU if the VM runs, else in its image."""
        if not self.vm.is_running():
            return {disk.target: bitmaps_in(disk.path) for disk in self.vm.disks}
        with self.vm.domain() as domain:
            said = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-block"}', 0))
        drives = [drive["inserted"] for drive in said["return"] if "inserted" in drive]
        return {disk.target: {item["name"] for drive in drives if drive["file"] == str(disk.path)
                              for item in drive.get("dirty-bitmaps", [])} for disk in self.vm.disks}


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
    try:
        made = Scene(installation, vm)
        made.write(1)
        made.replicate()
        yield made
    finally:
        remove_vms(lab)


def test_an_image_rolled_back_to_between_a_point_and_its_older_baseline_loses_nothing(scene: Scene) -> None:
    scene.write(2)
    scene.vm.shutdown()
    saved = scene.image.read_bytes()
    scene.start()
    scene.write(3)
    scene.write(2)
    scene.vm.shutdown()
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    # In place, so that only the content tells; it has the bitmap of the baseline.
    scene.image.write_bytes(saved)
    scene.start()
    scene.write(4)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    assert_points_are(scene.installation, "life_replica", *scene.instants)


def test_an_image_whose_file_is_older_than_it_was_is_scanned(scene: Scene) -> None:
    scene.vm.shutdown()
    saved, before = scene.image.read_bytes(), scene.image.stat()
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    scene.start()
    scene.write(5)
    scene.vm.shutdown()
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    scene.image.write_bytes(saved)
    os.utime(scene.image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scene.replicate().how() == {"vda": INCREMENTAL, "vdb": ("digest_scan", "source_rolled_back")}
    assert scene.instants[-1].disk("vdb")["sent_bytes"] <= MIB


def test_an_image_that_was_replaced_at_its_path_is_scanned(scene: Scene) -> None:
    other = scene.image.with_suffix(".other")
    shutil.copy2(scene.image, other)
    subprocess.run(["qemu-io", "-c", "write -P 7 6M 64k", other], check=True, capture_output=True)
    other.chmod(0o666)
    other.rename(scene.image)
    assert scene.replicate().how() == {"vda": INCREMENTAL, "vdb": ("digest_scan", "source_replaced")}
    assert scene.instants[-1].disk("vdb")["sent_bytes"] <= MIB
    scene.start()
    scene.write(7)
    assert scene.replicate().how() == {"vda": INCREMENTAL, "vdb": ("digest_scan", "no_baseline")}
    scene.write(8)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}


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
    scene.write(12)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    assert_points_are(scene.installation, "life_replica", *scene.instants)


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
    scene.start()
    scene.write(15)
    scene.replicate()
    scene.write(16)
    assert set(scene.replicate().how().values()) == {INCREMENTAL}
    assert_points_are(scene.installation, "life_replica", *scene.instants)
