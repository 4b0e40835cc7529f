"""Source snapshots: one instant of all disks of a VM, and what is known of the changes in them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pyVmomi import vim

from understudy.context import Context
from understudy.errors import GuestError, NotFound, PlatformError, TrackingLost, UnderstudyError
from understudy.model.inventory import Vm, VmState
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, SnapshotRequest, SourceSnapshot
from understudy.model.transfer import Reason
from understudy.platforms import CommitPatience
from understudy.platforms.vsphere import tasks
from understudy.platforms.vsphere.changes import Question, try_changes
from understudy.platforms.vsphere.devices import VirtualDisk
from understudy.platforms.vsphere.enabling import switch_on
from understudy.platforms.vsphere.faults import fault_text
from understudy.platforms.vsphere.machine import Machine, snapshot_disks, snapshots_of
from understudy.platforms.vsphere.removal import end_snapshot
from understudy.platforms.vsphere.tracking import change

_DESCRIPTION = "Made by Understudy while it reads the disks; it removes it itself."
_TOOLS = "guest.toolsRunningStatus"
_CRASH = "the restore point is crash-consistent"
# By its type; many hosts only say it in words.
_QUIESCE_FAULTS = (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault, vim.fault.ToolsUnavailable)


@dataclass(frozen=True)
class _Taken:
    """A snapshot that was made.

    :ivar at: the instant, as :attr:`SourceSnapshot.taken_at`.
    :ivar notes: why the guest is not quiesced although it was wished.
    """

    moref: str
    at: str
    quiesced: bool
    notes: tuple[str, ...]


@contextmanager
def held_snapshot(
    ctx: Context, machine: Machine, vm: Vm, request: SnapshotRequest, patience: CommitPatience
) -> Iterator[SourceSnapshot]:
    """Hold a snapshot while the context lasts.

    :raises PlatformError: if it is refused, or a disk is not as it was planned.
    :raises GuestError: if the guest has to be quiesced and cannot.
    """
    notes = switch_on(ctx, machine, request.tracked)
    try:
        # Made or not, by us or by a call whose answer was lost: it is ended by its name.
        taken = _take(ctx, machine, vm, request)
        disks = snapshot_disks(machine, taken.moref)
        check_disks(vm, request, disks)
        yield _told(machine, request, disks, taken, notes)
    finally:
        end_snapshot(ctx, machine, str(request.tag), patience)


def _take(ctx: Context, machine: Machine, vm: Vm, request: SnapshotRequest) -> _Taken:
    if not request.quiesce or vm.state is not VmState.RUNNING:
        return _taken(ctx, machine, request, quiesce=False)
    if machine.get(_TOOLS).get(_TOOLS) != "guestToolsRunning":
        # The server would not refuse: it would take no notice of the wish.
        why = "VMware Tools do not run in the guest"
    else:
        try:
            return _taken(ctx, machine, request, quiesce=True)
        except UnderstudyError as exc:
            if not _about_quiescing(exc.__cause__):
                raise
            why = exc.why
    if request.must_quiesce:
        raise GuestError(f"quiesce the guest of VM {machine.name!r}", why,
                         "see VMware Tools in the guest, or use --guest-processing try")  # fmt: skip
    return _taken(ctx, machine, request, quiesce=False, notes=(f"the guest is not quiesced, {_CRASH}: {why}",))


def _taken(
    ctx: Context, machine: Machine, request: SnapshotRequest, *, quiesce: bool, notes: tuple[str, ...] = ()
) -> _Taken:
    name = str(request.tag)
    ctx.check()
    # Not given up in the middle: it would be made all the same, and nobody would be there to remove it.
    made = tasks.run(
        Context(fields=ctx.fields), machine.connection, f"snapshot of VM {machine.name!r}",
        lambda: machine.ref.CreateSnapshot_Task(name=name, description=_DESCRIPTION, memory=False, quiesce=quiesce),
    )  # fmt: skip
    ctx.check()
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    moref = str(made._moId)
    found = next((item for item in snapshots_of(machine) if item.moref == moref), None)
    if found is None:
        raise PlatformError(f"snapshot of VM {machine.name!r}", "it was made, and is gone", "run the job again")
    if quiesce and not found.quiesced:
        notes = (*notes, f"the guest is not quiesced, {_CRASH}: the server says so of the snapshot")
    return _Taken(moref, at, quiesce and found.quiesced, notes)


def _about_quiescing(fault: BaseException | None) -> bool:
    if isinstance(fault, _QUIESCE_FAULTS):
        return True
    keys = [str(item.key) for item in getattr(fault, "faultMessage", None) or ()]
    return fault is not None and "quiesc" in " ".join((fault_text(fault), *keys)).lower()


def check_disks(vm: Vm, request: SnapshotRequest, disks: Mapping[str, VirtualDisk]) -> None:
    """Compare the disks of a snapshot with the plan; nothing was read yet.

    :raises PlatformError: if one is missing, or has another size.
    """
    what = f"snapshot of VM {vm.name!r}"
    for name in request.disks:
        if name not in disks:
            raise PlatformError(what, f"disk {name} is not in it: it was removed just now, or is independent",
                                f"run the job again, or exclude it with --exclude-disk '{vm.name}:{name}'")  # fmt: skip
        planned, found = vm.disk(name).size, disks[name].capacity
        if planned != found:
            raise PlatformError(what, f"disk {name} was resized just now, from {planned} to {found} bytes",
                                "run the job again")  # fmt: skip


def _told(
    machine: Machine, request: SnapshotRequest, disks: Mapping[str, VirtualDisk], taken: _Taken,
    notes: tuple[str, ...],
) -> SourceSnapshot:
    """What the snapshot holds. Change ids are the snapshot's: the live disk's is of a later instant (P44)."""
    lost = {name: reason for name in request.incremental if (reason := _why_lost(machine, request, taken, disks[name]))}
    untracked = [name for name in request.tracked if not disks[name].change_id]
    if untracked and not notes:
        notes = (f"disk {', '.join(untracked)} has no change id in the snapshot: the next run compares all of it",)
    return SourceSnapshot(
        taken_at=taken.at,
        disks=tuple(_library_disk(machine, taken.moref, request, disks[name], lost) for name in request.disks),
        baseline=_baseline(request, disks),
        lost=tuple(lost.items()),
        quiesced=taken.quiesced,
        notes=(*notes, *taken.notes),
    )


def _why_lost(machine: Machine, request: SnapshotRequest, taken: _Taken, disk: VirtualDisk) -> Reason:
    """Why the changes of a disk that was to be incremental are not known."""
    since = request.since.change_id(disk.name) if request.since else ""
    if reason := change(since, disk.change_id, taken=True):
        return reason
    try:
        try_changes(Question(machine, taken.moref, disk, since))
    except TrackingLost as exc:
        return Reason(exc.reason)
    return Reason.NONE


def _library_disk(
    machine: Machine, snapshot: str, request: SnapshotRequest, disk: VirtualDisk, lost: Mapping[str, Reason]
) -> LibraryDisk:
    wanted = disk.name in request.incremental and disk.name not in lost and request.since is not None
    since = request.since.change_id(disk.name) if wanted and request.since is not None else ""
    return LibraryDisk(disk.name, machine.moref, snapshot, disk.file, disk.key, since)


def _baseline(request: SnapshotRequest, disks: Mapping[str, VirtualDisk]) -> Baseline | None:
    known = [disks[name] for name in request.tracked if disks[name].change_id]
    if not request.checkpoint or not known:
        return None
    return Baseline(request.checkpoint, tuple(disk.name for disk in known),
                    change_ids=tuple(disk.change_id for disk in known))  # fmt: skip


@contextmanager
def held_again(
    ctx: Context, machine: Machine, vm: Vm, request: SnapshotRequest, snapshot: SourceSnapshot,
    patience: CommitPatience,
) -> Iterator[SourceSnapshot]:
    """Take over a snapshot that a dead controller made, if it is that very one.

    :raises PlatformError: if it is not held any more.
    """
    name = str(request.tag)
    held = next((item for item in snapshots_of(machine) if item.name == name), None)
    problem = "it is not held any more" if held is None else _another(machine, vm, request, snapshot, held.moref)
    if problem:
        raise PlatformError(f"snapshot {name!r} of VM {machine.name!r}", problem, "run the job again")
    try:
        yield snapshot
    finally:
        end_snapshot(ctx, machine, name, patience)


def _another(machine: Machine, vm: Vm, request: SnapshotRequest, snapshot: SourceSnapshot, moref: str) -> str:
    """Why a snapshot of the right name is not the one that was made; empty if it is."""
    before = {disk.name: disk for disk in snapshot.disks if isinstance(disk, LibraryDisk)}
    if before.keys() != set(request.disks) or {disk.snapshot for disk in before.values()} != {moref}:
        return "another snapshot has its name now"
    try:
        now = snapshot_disks(machine, moref)
    except NotFound:
        return "it is not held any more"
    check_disks(vm, request, now)
    known = snapshot.baseline
    for name, disk in before.items():
        found, change_id = now[name], known.change_id(name) if known else ""
        if (found.file, found.key) != (disk.file, disk.key) or change_id not in ("", found.change_id):
            return f"disk {name} in it is another one now"
    return ""
