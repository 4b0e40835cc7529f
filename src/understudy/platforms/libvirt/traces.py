"""What of ours does a domain have, whoever of us made it?"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import libvirt

from understudy.model.snapshot import TAGGED
from understudy.platforms import VmTraces
from understudy.platforms.libvirt.backup import running_backup
from understudy.platforms.libvirt.commit import commit_command, deltas_in
from understudy.platforms.libvirt.connection import libvirt_errors


def traces_of(domain: libvirt.virDomain, uri: str) -> VmTraces | None:
    """The traces on a domain of the host at ``uri``; None if it was undefined meanwhile."""
    try:
        root = ET.fromstring(domain.XMLDesc(0))
        checkpoints = sorted(item.getName() for item in domain.listAllCheckpoints())
        active = bool(domain.isActive())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        with libvirt_errors(f"look for leftovers on VM {domain.name()!r}"):
            raise
    name = root.findtext("name", "")
    deltas, backup = deltas_in(root), _backup_name(running_backup(domain)) if active else ""
    checkpoints = [item for item in checkpoints if item.startswith(TAGGED)]
    return VmTraces(
        name=name,
        uuid=root.findtext("uuid", ""),
        active=active,
        checkpoints=tuple(checkpoints),
        backup=backup,
        deltas=tuple(deltas.items()),
        images=_images(root),
        copied=_copied(root),
        by_hand={
            "thaw": (_virsh(uri, "domfsthaw", name),),
            backup: (_virsh(uri, "domjobabort", name),),
            **{item: (_virsh(uri, "checkpoint-delete", name, item),) for item in checkpoints},
            **{path: (commit_command(uri, name, disk), shlex.join(["rm", "--", path]))
               for disk, path in deltas.items()},
        },
    )


def _virsh(uri: str, *words: str) -> str:
    return shlex.join(["virsh", "-c", uri, *words])


def _backup_name(backup: str) -> str:
    """The name of ours in a backup job: of its socket, or of an export where it is served on a port."""
    if not backup:
        return ""
    root = ET.fromstring(backup)
    server = root.find("server")
    names = ["" if server is None else PurePosixPath(server.get("socket", "")).name]
    names += [disk.get("exportname", "") for disk in root.iterfind("disks/disk")]
    return next((name for name in names if name.startswith(TAGGED)), "")


def _copied(root: ET.Element) -> tuple[str, ...]:
    found = []
    for disk in root.iterfind("devices/disk"):
        mirror, target = disk.find("mirror"), disk.find("target")
        if mirror is not None and target is not None and mirror.get("job") != "active-commit":
            found.append(target.get("dev", ""))
    return tuple(found)


def _images(root: ET.Element) -> tuple[tuple[str, str], ...]:
    found = []
    for disk in root.iterfind("devices/disk"):
        source, driver = disk.find("source"), disk.find("driver")
        path = "" if source is None else source.get("file") or source.get("dev") or ""
        if path and disk.get("device", "disk") in ("disk", "lun"):
            found.append((path, "raw" if driver is None else driver.get("type", "raw")))
    return tuple(found)
