"""Snapshot mode ``backup``: a pull-mode backup job with copy-before-write scratch files; nothing to merge after it.

The emulator serves the disks on a Unix socket of its host, or by TLS to other hosts. Then nobody of ours can touch
files there: the scratch files lie beside the images, where the emulator may write; libvirt removes them with the job.
"""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import libvirt

from understudy.errors import PlatformError, TrackingLost
from understudy.model.inventory import Disk, Vm
from understudy.model.replica import Baseline
from understudy.model.snapshot import ServedDisk, SnapshotRequest, SourceSnapshot, Tag
from understudy.platforms.libvirt.checkpoints import checkpoint_xml
from understudy.platforms.libvirt.connection import error_text, libvirt_errors

_END_TIMEOUT_S = 30.0
#: Where emulators serve disks to other hosts; each backup job takes one port.
PORTS = range(10809, 10873)
_TRACKING_ERRORS = frozenset({libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT})


def _bitmap(disk: str) -> str:
    return f"backup-{disk}"


def socket_path(request: SnapshotRequest) -> str:
    """Socket of the backup job's NBD server."""
    return str(PurePosixPath(request.scratch_dir) / f"{request.tag}.sock")


def export_name(request: SnapshotRequest, disk: str) -> str:
    """Export of a disk; on a port, nothing but the exports can carry our tag."""
    return f"{request.tag}-{disk}" if request.serve_at else disk


def scratch_path(disk: Disk, request: SnapshotRequest) -> str:
    """Scratch file of a disk: in the scratch directory, or beside the image if nobody can prepare that directory."""
    parent = PurePosixPath(disk.path).parent if request.serve_at else PurePosixPath(request.scratch_dir)
    return str(parent / f"{request.tag}-{disk.name}.scratch")


def backup_xml(vm: Vm, request: SnapshotRequest, listen: tuple[str, int] | None = None) -> str:
    """XML of the backup job, incremental where asked.

    :param listen: number and port to serve at by TLS; without it, on our socket.
    """
    root = ET.Element("domainbackup", mode="pull")
    if listen is not None:
        ET.SubElement(root, "server", transport="tcp", tls="yes", name=listen[0], port=str(listen[1]))
    else:
        ET.SubElement(root, "server", transport="unix", socket=socket_path(request))
    disks = ET.SubElement(root, "disks")
    for disk in vm.disks:
        if disk.name not in request.disks:
            ET.SubElement(disks, "disk", name=disk.name, backup="no")
            continue
        exported = export_name(request, disk.name)
        element = ET.SubElement(disks, "disk", name=disk.name, backup="yes", type="file", exportname=exported)
        if disk.name in request.incremental:
            element.set("backupmode", "incremental")
            element.set("incremental", request.since_name)
            element.set("exportbitmap", _bitmap(disk.name))
        else:
            element.set("backupmode", "full")
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "scratch", file=scratch_path(disk, request))
    return ET.tostring(root, encoding="unicode")


@contextmanager
def backup_snapshot(domain: libvirt.virDomain, vm: Vm, request: SnapshotRequest) -> Iterator[SourceSnapshot]:
    """Run the backup job while the context lasts.

    :raises TrackingLost: if the incremental part was refused.
    """
    checkpoint = None
    if request.checkpoint:
        checkpoint = checkpoint_xml(request.checkpoint, request.tracked, (disk.name for disk in vm.disks))
    port = _begin_on_port(domain, vm, request, checkpoint) if request.serve_at else 0
    if not port:
        _begin(domain, vm, request, checkpoint)
    try:
        yield SourceSnapshot(
            taken_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            disks=tuple(_served(request, name, port) for name in request.disks),
            baseline=Baseline(request.checkpoint, request.tracked) if request.checkpoint else None,
        )
    finally:
        end_backup(domain, vm, request.tag)


def _begin_on_port(domain: libvirt.virDomain, vm: Vm, request: SnapshotRequest, checkpoint: str | None) -> int:
    """Begin the job on the first free port: only the emulator can tell which one is, and it takes it at once."""
    number = _number(vm, request.serve_at)
    for port in PORTS:
        try:
            _begin(domain, vm, request, checkpoint, (number, port))
        except PlatformError as exc:
            if "Address already in use" not in exc.why:
                raise
        else:
            return port
    raise PlatformError(f"snapshot of VM {vm.name!r}", f"no port from {PORTS[0]} to {PORTS[-1]} is free on its host",
                        "let fewer snapshots be open at the same time")


def _number(vm: Vm, name: str) -> str:
    """The address that a name has for other hosts; on the host itself it is often that of the loopback."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise PlatformError(f"snapshot of VM {vm.name!r}", f"the address of {name} is not known: {exc.strerror}",
                            "see 'host set --nbd-address'") from exc


def _begin(
    domain: libvirt.virDomain, vm: Vm, request: SnapshotRequest, checkpoint: str | None,
    listen: tuple[str, int] | None = None,
) -> None:  # fmt: skip
    what = f"snapshot of VM {vm.name!r}"
    try:
        domain.backupBegin(backup_xml(vm, request, listen), checkpoint)
    except libvirt.libvirtError as exc:
        if request.incremental and _is_about_tracking(exc, request.since_name):
            raise TrackingLost(what, error_text(exc)) from exc
        raise PlatformError(what, error_text(exc), _advice(exc, request)) from exc


def _is_about_tracking(error: libvirt.libvirtError, since: str) -> bool:
    return error.get_error_code() in _TRACKING_ERRORS or since in error_text(error) or "bitmap" in error_text(error)


def _advice(error: libvirt.libvirtError, request: SnapshotRequest) -> str:
    text = error_text(error)
    if request.serve_at:
        return _network_advice(text)
    if "ermission denied" in text or "ailed to bind" in text or "No such file" in text:
        return f"the emulator's user must be able to write to {request.scratch_dir}; see 'host add --scratch-dir'"
    if "job" in text:
        return "another program runs a job on this VM; try again when it has ended"
    return ""


def _network_advice(text: str) -> str:
    if any(word in text for word in ("credentials", "certificate", "TLS", "x509")):
        return "put what 'understudy host certificate' writes into /etc/pki/qemu of the host, readable for the emulator"
    if "bind" in text or "listen" in text or "port" in text:
        return "the host must have that address; see 'host set --nbd-address'"
    if "qcow2 v2" in text:
        return "convert the image with 'qemu-img amend -o compat=1.1', or enrol a proxy on the host"
    return "a proxy on the host of the disks needs none of this; see 'understudy proxy'"


def _served(request: SnapshotRequest, name: str, port: int) -> ServedDisk:
    dirty = f"qemu:dirty-bitmap:{_bitmap(name)}" if name in request.incremental else ""
    if not port:
        return ServedDisk(name=name, socket=socket_path(request), export=name, dirty_context=dirty)
    host = f"[{request.serve_at}]" if ":" in request.serve_at else request.serve_at
    return ServedDisk(name, "", export_name(request, name), dirty, f"{host}:{port}")


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
    """Whether a backup job's socket or exports carry our mark; nobody else's job is ever ended (P20).

    :param whole: it must be of this very session.
    """
    if not backup:
        return False
    root = ET.fromstring(backup)
    server = root.find("server")
    names = [disk.get("exportname", "") for disk in root.iterfind("disks/disk")]
    names.append("" if server is None else PurePosixPath(server.get("socket", "")).name)
    marks = (f"{tag}.", f"{tag}-") if whole else (tag.prefix,)
    return any(name.startswith(marks) for name in names)


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
