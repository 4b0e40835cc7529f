# ruff: noqa: ARG002 - a protocol has parameters that not every platform needs

"""A vCenter or ESXi host as a source of replication: the verbs of snapshots, each told in the module that knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from understudy.context import Context
from understudy.errors import GuestError, NotFound, PlatformError
from understudy.model.exclusion import pack
from understudy.model.guest_operations import GuestLogin, GuestOperations
from understudy.model.inventory import Vm
from understudy.model.job import SnapshotMode
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, LibraryExport, SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import Reason
from understudy.platforms import CommitPatience, VmTraces
from understudy.platforms.vsphere import tracking
from understudy.platforms.vsphere.changes import Question, all_changes, snapshot_gone
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.guest_operations import open_guest_operations
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.machine import Machine, snapshot_disks, tracking_of
from understudy.platforms.vsphere.removal import sweep_snapshots
from understudy.platforms.vsphere.snapshots import held_again, held_snapshot
from understudy.platforms.vsphere.traces import traces_of


class VsphereSource:
    """The part of :class:`understudy.platforms.SourcePlatform` that takes snapshots and reads them."""

    def __init__(self, connection: Connection, lookup: Lookup, patience: CommitPatience) -> None:
        """:param patience: with snapshots that cannot be removed."""
        self._connection = connection
        self._lookup = lookup
        self._patience = patience

    def tracking(self, vm: Vm, baseline: Baseline) -> dict[str, Reason]:
        """Whether changes since ``baseline`` are known, per disk, by the change ids of the live disks."""
        return tracking.tracking(vm, tracking_of(self._machine(vm)), baseline)

    @contextmanager
    def snapshot(
        self, ctx: Context, vm: Vm, mode: SnapshotMode, request: SnapshotRequest
    ) -> Iterator[SourceSnapshot]:
        """Hold one instant. There is one mode only: the server's own snapshots."""
        with held_snapshot(ctx, self._machine(vm), vm, request, self._patience) as snapshot:
            yield snapshot

    @contextmanager
    def hold_again(
        self, ctx: Context, vm: Vm, request: SnapshotRequest, snapshot: SourceSnapshot
    ) -> Iterator[SourceSnapshot]:
        """Take over a snapshot by its name, which is the session's own tag."""
        with held_again(ctx, self._machine(vm), vm, request, snapshot, self._patience) as again:
            yield again

    def library_export(self, disk: LibraryDisk) -> LibraryExport:
        """Where the disk library finds the disk; with the areas that changed, if those are wanted."""
        login = self._connection.library_login()
        if not disk.since:
            return LibraryExport(login, disk)
        machine = Machine(self._connection, self._connection.managed("VirtualMachine", disk.vm), disk.vm)
        try:
            held = snapshot_disks(machine, disk.snapshot).get(disk.name)
        except NotFound as exc:
            raise snapshot_gone(machine, exc) from exc
        if held is None or held.key != disk.key:
            raise PlatformError(f"disk {disk.name} of {disk.vm}", "it is not in the snapshot", "run the job again")
        areas = all_changes(Question(machine, disk.snapshot, held, disk.since))
        return LibraryExport(login, disk, pack(areas))

    def markers(self, vm: Vm) -> dict[str, str]:
        """None: a change id needs no marker on the server."""
        return {}

    def remove_orphan(self, vm: Vm, name: str, disks: tuple[str, ...]) -> str:
        """Nothing is left of a change id."""
        return ""

    def keep_baseline(self, vm: Vm, tag: Tag, keep: str, former: str) -> list[str]:
        """Nothing is to be removed of older baselines."""
        return []

    def sweep(self, ctx: Context, vm: Vm, tag: Tag) -> list[str]:
        """Remove the job's snapshots that dead sessions left, and merge what they left."""
        return sweep_snapshots(ctx, self._machine(vm), tag)

    def traces(self) -> tuple[VmTraces, ...]:
        """The snapshots of ours that each VM has."""
        return traces_of(self._connection, self._lookup)

    def freeze(self, vm_uuid: str, timeout_s: float) -> int:
        """Never: the guest is quiesced with the snapshot, by VMware Tools."""
        raise _no_agent(vm_uuid)

    def thaw(self, vm_uuid: str, timeout_s: float) -> int:
        """Never: nothing was frozen this way."""
        raise _no_agent(vm_uuid)

    def agent_command(self, vm_uuid: str, command: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
        """Never: there is no such agent."""
        raise _no_agent(vm_uuid)

    def guest_operations(self, vm_uuid: str, login: GuestLogin) -> GuestOperations:
        """By VMware Tools in the guest."""
        return open_guest_operations(lambda: self._machine_of(vm_uuid, vm_uuid), login)

    def _machine(self, vm: Vm) -> Machine:
        return self._machine_of(vm.uuid, vm.name)

    def _machine_of(self, uuid: str, name: str) -> Machine:
        ref = self._lookup.by_uuid(uuid)
        if ref is None:
            raise NotFound(f"VM {name!r}", f"server {self._connection.address.name} has no VM of UUID {uuid}",
                           "see 'understudy host vms'")  # fmt: skip
        return Machine(self._connection, ref, name)


def _no_agent(vm_uuid: str) -> GuestError:
    return GuestError(
        f"guest agent of VM {vm_uuid}", "on vSphere no QEMU guest agent can be reached",
        "VMware Tools quiesce the guest with the snapshot; programs in it need --transport vmtools, or ssh",
    )  # fmt: skip
