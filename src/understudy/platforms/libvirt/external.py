"""Snapshot mode ``external``: the disks become read-only bases, the VM writes to delta files, then these are merged."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import libvirt

from understudy.context import Context
from understudy.errors import PlatformError
from understudy.model.inventory import Disk, Vm
from understudy.model.replica import Baseline
from understudy.model.snapshot import ImageDisk, SnapshotRequest, SourceSnapshot, Tag
from understudy.platforms.libvirt.checkpoints import checkpoint_xml
from understudy.platforms.libvirt.connection import error_text, libvirt_errors

COMMIT_TRIES = 4
_READY_TIMEOUT_S = 600.0


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
    ctx: Context, domain: libvirt.virDomain, vm: Vm, request: SnapshotRequest
) -> Iterator[SourceSnapshot]:
    """Let the VM write to delta files while the context lasts; leaving it merges them back.

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
        commit_deltas(ctx, domain, vm, request.tag)


def _drives(domain: libvirt.virDomain, vm: Vm) -> list[str]:
    """Drives of the running domain that are not among the VM's disks."""
    disks = {disk.name for disk in vm.disks}
    targets = ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk/target")
    return [name for target in targets if (name := target.get("dev", "")) and name not in disks]


def _image(disk: Disk, request: SnapshotRequest) -> ImageDisk:
    bitmap = request.since if disk.name in request.incremental else ""
    return ImageDisk(name=disk.name, image=disk.path, image_format=disk.image_format, bitmap=bitmap)


def tagged_deltas(domain: libvirt.virDomain, vm: Vm, tag: Tag) -> dict[str, str]:
    """Disks of the live domain that write to a delta of this job: disk name -> delta file."""
    with libvirt_errors(f"look at the disks of VM {vm.name!r}"):
        root = ET.fromstring(domain.XMLDesc(0))
    found = {}
    for disk in root.iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is None or target is None:
            continue
        name = PurePosixPath(source.get("file", "")).name
        if name.startswith(tag.prefix) and name.endswith(".delta"):
            found[target.get("dev", "")] = source.get("file", "")
    return found


def commit_deltas(ctx: Context, domain: libvirt.virDomain, vm: Vm, tag: Tag) -> list[str]:
    """Merge every delta of this job into its base; the delta files that are free now.

    :raises PlatformError: if one stays, naming it and the commands that merge it by hand; the others are merged.
    """
    deltas = tagged_deltas(domain, vm, tag)
    if deltas and not _is_active(domain, vm):
        # Only a running QEMU can merge and keep the bitmaps right; the delta is the VM's disk until then.
        raise PlatformError(
            f"commit the snapshot of VM {vm.name!r}",
            f"the VM was powered off; {', '.join(deltas.values())} holds its newest changes",
            "start it and run the job again, which merges it",
        )
    left = []
    for disk, path in deltas.items():
        problem = _commit_with_retries(ctx, domain, disk)
        if problem:
            left.append(f"{disk} ({path}): {problem}")
    if left:
        disk = next(iter(deltas))
        raise PlatformError(
            f"commit the snapshot of VM {vm.name!r}",
            "; ".join(left),
            f"run: virsh blockcommit {vm.name} {disk} --active --pivot --wait (for each disk)",
        )
    return list(deltas.values())


def _is_active(domain: libvirt.virDomain, vm: Vm) -> bool:
    with libvirt_errors(f"state of VM {vm.name!r}"):
        return bool(domain.isActive())


def _commit_with_retries(ctx: Context, domain: libvirt.virDomain, disk: str) -> str:
    problem = ""
    for attempt in range(COMMIT_TRIES):
        try:
            _commit_one(domain, disk)
        except libvirt.libvirtError as exc:
            problem = error_text(exc)
            ctx.log(__name__).warning("commit of disk %s failed: %s", disk, problem)
            time.sleep(0.2 * 4**attempt)
        else:
            return ""
    return problem


def _commit_one(domain: libvirt.virDomain, disk: str) -> None:
    """One active commit of the top delta into the image below it, then the pivot back to that image."""
    if not domain.blockJobInfo(disk, 0):
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
        domain.blockCommit(disk, None, None, 0, flags)
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while not _ready(domain, disk):
        if time.monotonic() > deadline:
            domain.blockJobAbort(disk, 0)
            raise libvirt.libvirtError("the commit does not become ready")
        time.sleep(0.02)
    domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def _ready(domain: libvirt.virDomain, disk: str) -> bool:
    """Whether the mirror phase is reached.

    ``cur == end`` is true for an instant before it too, so the XML, which libvirt updates on QEMU's event, decides.
    """
    root = ET.fromstring(domain.XMLDesc(0))
    for element in root.iterfind("devices/disk"):
        target = element.find("target")
        if target is not None and target.get("dev") == disk:
            mirror = element.find("mirror")
            return mirror is not None and mirror.get("ready") == "yes"
    raise libvirt.libvirtError(f"disk {disk} is gone")
