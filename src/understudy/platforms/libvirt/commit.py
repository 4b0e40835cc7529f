"""How does a snapshot delta get back into its disk, and what is told when it does not?"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import libvirt

from understudy.context import Context
from understudy.errors import HostUnreachable, PlatformError
from understudy.model.inventory import Vm
from understudy.model.snapshot import Tag
from understudy.platforms import CommitPatience
from understudy.platforms.libvirt.connection import error_text, libvirt_errors

_POLL_S = 0.02
_JOB_NAMES = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit below the delta",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "backup",
}


@dataclass(frozen=True)
class Deltas:
    """The deltas of a job on one VM.

    :ivar find: the domain, by a connection that lives: the daemon may be restarted between two tries.
    :ivar made: deltas that were surely made, disk name -> file; maybe merged since.
    """

    uri: str
    vm: Vm
    tag: Tag
    find: Callable[[], libvirt.virDomain]
    made: Mapping[str, str] = field(default_factory=dict)


class _StaysError(Exception):
    """Why a delta cannot be merged now."""


def tagged_deltas(domain: libvirt.virDomain, vm: Vm, tag: Tag) -> dict[str, str]:
    """Disks of the live domain that write to a delta of this job: disk name -> delta file."""
    with libvirt_errors(f"look at the disks of VM {vm.name!r}"):
        root = ET.fromstring(domain.XMLDesc(0))
    return {name: path for name, path in deltas_in(root).items() if PurePosixPath(path).name.startswith(tag.prefix)}


def deltas_in(root: ET.Element) -> dict[str, str]:
    """Disks of a definition that write to a delta of ours, of whatever job: disk name -> delta file."""
    found = {}
    for disk in root.iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is None or target is None:
            continue
        name = PurePosixPath(source.get("file", "")).name
        if name.startswith("understudy-") and name.endswith(".delta"):
            found[target.get("dev", "")] = source.get("file", "")
    return found


def commit_command(uri: str, vm: str, disk: str) -> str:
    """What an administrator types to merge a delta. Not deeper than its base, which may be a template of others."""
    return shlex.join(["virsh", "-c", uri, "blockcommit", vm, disk, "--active", "--shallow", "--pivot", "--wait",
                       "--verbose"])  # fmt: skip


def commit_deltas(ctx: Context, deltas: Deltas, patience: CommitPatience) -> list[str]:
    """Merge every delta of this job into its base; the delta files that are free now.

    What cannot be merged is tried again after each pause of ``patience``, until the operator ends the task.

    :raises PlatformError: if one stays, naming each with the command that merges it; the others are merged.
    :raises HostUnreachable: if the host does not answer, and it is not known that there are any.
    """
    standing = dict(deltas.made)
    merged: list[str] = []
    for pause in (*patience.pauses, None):
        left = _try_all(deltas, standing, merged, patience)
        if not left:
            return merged
        for disk, problem in left.items():
            ctx.log(__name__).warning("commit of disk %s of VM %r failed: %s", disk, deltas.vm.name, problem)
        if pause is None or ctx.cancel.wait(pause):
            break
    raise _left_over(deltas, standing, left)


def _try_all(
    deltas: Deltas, standing: dict[str, str], merged: list[str], patience: CommitPatience
) -> dict[str, str]:
    """Try each once; why disks are left.

    :param standing: becomes what is left, disk name -> delta file.
    """
    try:
        domain = deltas.find()
        found = tagged_deltas(domain, deltas.vm, deltas.tag)
    except HostUnreachable as exc:
        if not standing:
            raise
        return dict.fromkeys(standing, str(exc))
    standing.clear()
    standing.update(found)
    if found and not _is_active(domain, deltas.vm):
        # Only a running QEMU can merge and keep the bitmaps right; the delta is the VM's disk until then.
        raise PlatformError(f"commit the snapshot of VM {deltas.vm.name!r}", *stays_while_off(found.values()))
    left = {}
    for disk, path in found.items():
        try:
            _commit_one(domain, disk, patience.stalled_s)
        except (libvirt.libvirtError, _StaysError) as exc:
            left[disk] = error_text(exc) if isinstance(exc, libvirt.libvirtError) else str(exc)
        else:
            merged.append(path)
            del standing[disk]
    return left


def stays_while_off(paths: Iterable[str]) -> tuple[str, str]:
    """Why deltas of a VM that is off are not merged, and what to do."""
    return (
        f"the VM was powered off; {', '.join(paths)} holds its newest changes",
        "start it and run the job again, or 'understudy sweep', which merges it; never delete this file before",
    )


def _left_over(deltas: Deltas, standing: Mapping[str, str], left: Mapping[str, str]) -> PlatformError:
    name = deltas.vm.name
    advice = [f"for disk {disk} run `{commit_command(deltas.uri, name, disk)}`, and only then delete {path}"
              for disk, path in standing.items()]
    return PlatformError(
        f"commit the snapshot of VM {name!r}",
        "; ".join(f"{disk} ({standing[disk]}): {problem}" for disk, problem in left.items()),
        f"the next run or 'understudy sweep' tries again; by hand: {'; '.join(advice)}",
    )


def _is_active(domain: libvirt.virDomain, vm: Vm) -> bool:
    with libvirt_errors(f"state of VM {vm.name!r}"):
        return bool(domain.isActive())


def _commit_one(domain: libvirt.virDomain, disk: str, stalled_s: float) -> None:
    """One active commit of the top delta into the image below it, then the pivot back to that image.

    A commit that runs already is gone on with: a dead session, or the administrator, began it on our delta. Whatever
    else runs on the disk is somebody else's, and is waited for.
    """
    kind = (domain.blockJobInfo(disk, 0) or {}).get("type")
    if kind not in (None, libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT):
        raise _StaysError(f"another program runs a block job on it ({_JOB_NAMES.get(kind, f'type {kind}')})")
    if kind is None:
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
        domain.blockCommit(disk, None, None, 0, flags)
    _wait_ready(domain, disk, stalled_s, begun=kind is None)
    domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def _wait_ready(domain: libvirt.virDomain, disk: str, stalled_s: float, *, begun: bool) -> None:
    """Wait for the mirror phase, for as long as there is progress; what was begun here does not stay half done."""
    progress, deadline = 0, time.monotonic() + stalled_s
    while not _ready(domain, disk):
        job = domain.blockJobInfo(disk, 0)
        if not job and not _ready(domain, disk):
            raise _StaysError("the commit ended before it was ready; see the log of the VM on its host")
        if (done := job.get("cur", 0)) > progress:
            progress, deadline = done, time.monotonic() + stalled_s
        if time.monotonic() > deadline:
            if begun:
                domain.blockJobAbort(disk, 0)
            raise _StaysError(f"the commit made no progress for {stalled_s:.0f} s")
        time.sleep(_POLL_S)


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
    raise _StaysError(f"disk {disk} is gone")
