"""Snapshot mode ``backup``: a pull-mode backup job with copy-before-write scratch files; nothing to merge after it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import libvirt

from understudy.errors import PlatformError, TrackingLost
from understudy.model.inventory import Vm
from understudy.model.replica import Baseline
from understudy.model.snapshot import ServedDisk, SnapshotRequest, SourceSnapshot, Tag
from understudy.platforms.libvirt.checkpoints import checkpoint_xml
from understudy.platforms.libvirt.connection import error_text, libvirt_errors

_END_TIMEOUT_S = 30.0
_TRACKING_ERRORS = frozenset({libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT})


def _bitmap(disk: str) -> str:
    return f"backup-{disk}"


def socket_path(request: SnapshotRequest) -> str:
    """Socket of the backup job's NBD server."""
    return str(PurePosixPath(request.scratch_dir) / f"{request.tag}.sock")


def backup_xml(vm: Vm, request: SnapshotRequest) -> str:
    """XML of the backup job: each wanted disk with a scratch file of ours, incremental where asked."""
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=socket_path(request))
    disks = ET.SubElement(root, "disks")
    for disk in vm.disks:
        if disk.name not in request.disks:
            ET.SubElement(disks, "disk", name=disk.name, backup="no")
            continue
        element = ET.SubElement(disks, "disk", name=disk.name, backup="yes", type="file", exportname=disk.name)
        if disk.name in request.incremental:
            element.set("backupmode", "incremental")
            element.set("incremental", request.since)
            element.set("exportbitmap", _bitmap(disk.name))
        else:
            element.set("backupmode", "full")
        ET.SubElement(element, "driver", type="qcow2")
        scratch = PurePosixPath(request.scratch_dir) / f"{request.tag}-{disk.name}.scratch"
        ET.SubElement(element, "scratch", file=str(scratch))
    return ET.tostring(root, encoding="unicode")


@contextmanager
def backup_snapshot(domain: libvirt.virDomain, vm: Vm, request: SnapshotRequest) -> Iterator[SourceSnapshot]:
    """Run the backup job while the context lasts.

    :raises TrackingLost: if the incremental part was refused.
    """
    checkpoint = None
    if request.checkpoint:
        checkpoint = checkpoint_xml(request.checkpoint, request.tracked, (disk.name for disk in vm.disks))
    _begin(domain, vm, request, checkpoint)
    try:
        yield SourceSnapshot(
            taken_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            disks=tuple(_served(request, name) for name in request.disks),
            baseline=Baseline(request.checkpoint, request.tracked) if request.checkpoint else None,
        )
    finally:
        end_backup(domain, vm, request.tag)


def _begin(domain: libvirt.virDomain, vm: Vm, request: SnapshotRequest, checkpoint: str | None) -> None:
    what = f"snapshot of VM {vm.name!r}"
    try:
        domain.backupBegin(backup_xml(vm, request), checkpoint)
    except libvirt.libvirtError as exc:
        if request.incremental and _is_about_tracking(exc, request.since):
            raise TrackingLost(what, error_text(exc)) from exc
        raise PlatformError(what, error_text(exc), _advice(exc, request)) from exc


def _is_about_tracking(error: libvirt.libvirtError, since: str) -> bool:
    return error.get_error_code() in _TRACKING_ERRORS or since in error_text(error) or "bitmap" in error_text(error)


def _advice(error: libvirt.libvirtError, request: SnapshotRequest) -> str:
    text = error_text(error)
    if "ermission denied" in text or "ailed to bind" in text or "No such file" in text:
        return f"the emulator's user must be able to write to {request.scratch_dir}; see 'host add --scratch-dir'"
    if "job" in text:
        return "another program runs a job on this VM; try again when it has ended"
    return ""


def _served(request: SnapshotRequest, name: str) -> ServedDisk:
    dirty = f"qemu:dirty-bitmap:{_bitmap(name)}" if name in request.incremental else ""
    return ServedDisk(name=name, socket=socket_path(request), export=name, dirty_context=dirty)


def running_backup(domain: libvirt.virDomain) -> str:
    """XML of the backup job that runs on the domain, or empty."""
    try:
        return str(domain.backupGetXMLDesc())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
            return ""
        with libvirt_errors(f"backup job of VM {domain.name()!r}"):
            raise


def is_ours(backup: str, tag: Tag, *, whole: bool = False) -> bool:
    """Whether a backup job's socket carries our mark; nobody else's job is ever ended (P20).

    :param whole: it must be of this very session.
    """
    if not backup:
        return False
    server = ET.fromstring(backup).find("server")
    name = "" if server is None else PurePosixPath(server.get("socket", "")).name
    return name == f"{tag}.sock" if whole else name.startswith(tag.prefix)


def end_backup(domain: libvirt.virDomain, vm: Vm, tag: Tag) -> None:
    """End our backup job and wait until it is gone; nothing to do if the VM or the job ended by itself.

    :raises PlatformError: if the job is still there after half a minute.
    """
    with libvirt_errors(f"end the snapshot of VM {vm.name!r}"):
        if not domain.isActive() or not is_ours(running_backup(domain), tag):
            return
        domain.abortJob()
        deadline = time.monotonic() + _END_TIMEOUT_S
        while domain.isActive() and running_backup(domain):
            if time.monotonic() > deadline:
                raise PlatformError(f"end the snapshot of VM {vm.name!r}", "the backup job does not end",
                                    f"run: virsh domjobabort {vm.name}")
            time.sleep(0.02)
