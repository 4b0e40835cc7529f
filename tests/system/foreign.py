"""A replica of a VM from vSphere, made without a vSphere: a restore point with the bytes of images of this machine."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.system.installation import Installation
from understudy.model.replica import Consistency, ReplicaIdentity
from understudy.model.transfer import TransferMode
from understudy.mover import api
from understudy.mover.process import MoverProcess
from understudy.platforms.vsphere.definition import (
    DiskController,
    Firmware,
    HardwareDisk,
    HardwareNic,
    NicModel,
    VmHardware,
    domain_definition,
)
from understudy.storage.values import NewDisk, PointMeta
from understudy.units import MIB

REPLICA = "dätabase 1_replica"
BIOS_UUID = "564d3ca2-9f01-1b22-8f2f-6a0a5f1e2d3c"
MAC = "00:50:56:aa:bb:cc"


def _size_of(image: Path) -> int:
    said = subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True, check=True).stdout
    return int(json.loads(said)["virtual-size"])


def hardware(disks: Sequence[tuple[str, DiskController, Path]], memory_bytes: int = 192 * MIB) -> VmHardware:
    """A VM with a disk of the size of each image, and one network card."""
    return VmHardware(
        name="dätabase 1", instance_uuid=str(uuid.uuid4()), bios_uuid=BIOS_UUID, version="vmx-19",
        guest_id="debian12_64Guest", memory_bytes=memory_bytes, vcpus=1, firmware=Firmware.BIOS,
        disks=tuple(HardwareDisk(name, controller, 0, unit, _size_of(image))
                    for unit, (name, controller, image) in enumerate(disks)),
        nics=(HardwareNic(MAC, NicModel.VMXNET3, "VM Network"),),
    )  # fmt: skip


def publish(installation: Installation, vm: VmHardware, images: Sequence[Path]) -> None:
    """Put a restore point of the VM into the datastore as a session does, by a proxy, from these images."""
    place, replica_id = installation.place, str(uuid.uuid4())
    identity = ReplicaIdentity(replica_id, REPLICA, "job", "job", vm.name, vm.instance_uuid, str(uuid.uuid4()))
    ref = api.ReplicaRef("qcow2", str(installation.store), REPLICA)
    disks = tuple(NewDisk(disk.name, disk.capacity, chained=False) for disk in vm.disks)
    with MoverProcess("maker", place / "run", place / "state", place / "maker.log") as mover:
        call = mover.client.call
        draft = call(api.BeginPoint(ref, identity, 1, "p0001", disks), api.DraftOpened).draft
        for disk, image in zip(vm.disks, images, strict=True):
            opened = call(api.OpenExport(str(image), "qcow2", "", "t"), api.OpenedExport)
            read = api.ReadSpec(opened.source, disk.name, disk.capacity, TransferMode.FULL, MIB, False, replica_id, "",
                                "p0001")
            work = call(api.CopyDisk(read, draft), api.WorkStarted).work
            while (status := call(api.WorkQuery(work, 10.0), api.WorkStatus)).state is api.WorkState.RUNNING:
                pass
            assert status.error is None, status.error
            call(api.CloseExport(opened.id), api.Nothing)
        meta = PointMeta("p0001", "2026-01-02T03:04:05Z", Consistency.CRASH, 1, MIB, None, {}, domain_definition(vm))
        call(api.PublishPoint(draft, meta), api.PublishedPoint)
        call(api.ReleaseDraft(draft), api.Nothing)
