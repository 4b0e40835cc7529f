"""Snapshot mode ``external``: the disks become read-only bases, the VM writes to delta files, then these are merged."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import libvirt

from understudy.model.inventory import Disk, Vm
from understudy.model.replica import Baseline
from understudy.model.snapshot import ImageDisk, SnapshotRequest, SourceSnapshot
from understudy.platforms.libvirt.checkpoints import checkpoint_xml
from understudy.platforms.libvirt.connection import libvirt_errors


def delta_path(disk: Disk, request: SnapshotRequest) -> str:
    """The delta file: beside its disk, where the emulator may write and the space is the VM's own.

    A block device has no directory for files; its delta goes to the scratch directory.
    """
    name = f"{request.tag}-{disk.name}.delta"
    parent = PurePosixPath(disk.path).parent
    return str((PurePosixPath(request.scratch_dir) if parent.is_relative_to("/dev") else parent) / name)


def snapshot_xml(vm: Vm, request: SnapshotRequest, drives: Iterable[str] = ()) -> str:
    """XML of the external snapshot of the wanted disks; what is not named, libvirt would put on a delta as well.

    :param drives: drives with media, which are no disks: libvirt takes a writable floppy for one.
    """
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = str(request.tag)
    disks = ET.SubElement(root, "disks")
    for disk in vm.disks:
        if disk.name not in request.disks:
            ET.SubElement(disks, "disk", name=disk.name, snapshot="no")
            continue
        element = ET.SubElement(disks, "disk", name=disk.name, snapshot="external", type="file")
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "source", file=delta_path(disk, request))
    for name in drives:
        ET.SubElement(disks, "disk", name=name, snapshot="no")
    return ET.tostring(root, encoding="unicode")


@contextmanager
def external_snapshot(
    domain: libvirt.virDomain, vm: Vm, request: SnapshotRequest, commit: Callable[[], object]
) -> Iterator[SourceSnapshot]:
    """Let the VM write to delta files while the context lasts; leaving it merges them back, by ``commit``.

    The new checkpoint is made just before the snapshot: what is written between the two is read now and counted as
    changed next time, which is harmless; the other order would lose it.
    """
    with libvirt_errors(f"snapshot of VM {vm.name!r}"):
        if request.checkpoint:
            domain.checkpointCreateXML(
                checkpoint_xml(request.checkpoint, request.tracked, (disk.name for disk in vm.disks)), 0
            )
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        )
        domain.snapshotCreateXML(snapshot_xml(vm, request, _drives(domain, vm)), flags)
    try:
        yield SourceSnapshot(
            taken_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            disks=tuple(_image(vm.disk(name), request) for name in request.disks),
            baseline=Baseline(request.checkpoint, request.tracked) if request.checkpoint else None,
        )
    finally:
        commit()


def _drives(domain: libvirt.virDomain, vm: Vm) -> list[str]:
    """Drives of the running domain that are not among the VM's disks."""
    disks = {disk.name for disk in vm.disks}
    targets = ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk/target")
    return [name for target in targets if (name := target.get("dev", "")) and name not in disks]


def _image(disk: Disk, request: SnapshotRequest) -> ImageDisk:
    bitmap = request.since_name if disk.name in request.incremental else ""
    return ImageDisk(name=disk.name, image=disk.path, image_format=disk.image_format, bitmap=bitmap)
