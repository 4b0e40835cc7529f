"""A vCenter or ESXi host as a target of replication: its verbs, each told in the module that knows it."""

from __future__ import annotations

from understudy.context import Context
from understudy.errors import NotFound, PlatformError, Refused
from understudy.model.inventory import VmState
from understudy.model.replica import ReplicaIdentity
from understudy.model.snapshot import LibraryDisk, LibraryExport
from understudy.platforms import ReplicaVmSpec
from understudy.platforms.snapshot_target import PlaceSpace, SnapshotReplica, SnapshotVmSpec
from understudy.platforms.vsphere import describing, replica_making, replica_mark, replica_place, replica_points
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.replica_devices import connections
from understudy.platforms.vsphere.replica_errors import run
from understudy.platforms.vsphere.replica_mark import ReplicaVm


class VsphereTarget:
    """The part of :class:`understudy.platforms.TargetPlatform` that is about replica VMs, and
    :class:`understudy.platforms.snapshot_target.SnapshotTarget`."""

    _connection: Connection
    _lookup: Lookup

    # --- restore points are snapshots ---------------------------------------------------------------------------------

    def place_space(self, place: str) -> PlaceSpace:
        """Space of a datastore: ``name``, or ``datacenter/name`` where several have the name."""
        return replica_place.space(self._connection, place)

    def snapshot_replica(self, identity: ReplicaIdentity) -> SnapshotReplica | None:
        """The replica VM; None if there is none."""
        found = replica_mark.find(self._connection, self._lookup, identity)
        if found is None:
            return None
        there = replica_points.taken(found.machine)
        disks = replica_points.present_devices(found.machine).disks
        return SnapshotReplica(
            found.machine.name, found.state, {name: disk.capacity for name, disk in disks.items()},
            tuple(item.point for item in there if item.point), tuple(item.name for item in there if not item.point),
        )  # fmt: skip

    def make_snapshot_replica(self, ctx: Context, spec: SnapshotVmSpec) -> list[str]:
        """Make the replica VM, or make it fit."""
        return replica_making.make(ctx, self._connection, self._lookup, spec)

    def leaf_export(self, identity: ReplicaIdentity, disk: str) -> LibraryExport:
        """A disk's leaf, by the file in the VM's configuration at this moment."""
        vm = self._require(identity)
        found = replica_points.present_devices(vm.machine).disks.get(disk)
        if found is None:
            raise NotFound(f"disk {disk} of replica VM {vm.machine.name!r}", "the VM has it not", "run the job again")
        return self._export(vm, LibraryDisk(disk, vm.machine.moref, "", found.file, found.key))

    def point_export(self, identity: ReplicaIdentity, disk: str, point: str) -> LibraryExport:
        """A disk by the file and the reference of a point's snapshot."""
        vm = self._require(identity)
        snapshot, found = replica_points.point_disk(vm.machine, point, disk)
        return self._export(vm, LibraryDisk(disk, vm.machine.moref, snapshot, found.file, found.key))

    def take_point(self, ctx: Context, identity: ReplicaIdentity, point: str, text: str) -> None:
        """Snapshot the VM, which is off."""
        replica_points.take(ctx, self._require(identity), point, text)

    def revert_to_point(self, ctx: Context, identity: ReplicaIdentity, point: str) -> None:
        """Power the VM off, and put it on the snapshot again."""
        replica_points.revert(ctx, self._require(identity), point)

    def remove_points(self, ctx: Context, identity: ReplicaIdentity, points: tuple[str, ...]) -> list[str]:
        """Remove snapshots of ours; those that are not there, or whose VM is gone, are no error."""
        vm = replica_mark.find(self._connection, self._lookup, identity)
        return [] if vm is None else replica_points.remove(ctx, vm.machine, points)

    def remove_snapshot_replica(self, ctx: Context, identity: ReplicaIdentity) -> None:
        """Destroy the VM, which is off and has nothing of others."""
        vm = replica_mark.find(self._connection, self._lookup, identity)
        if vm is None:
            return
        what = f"remove replica VM {vm.machine.name!r}"
        if vm.state is not VmState.SHUT_OFF:
            raise Refused(what, f"it is {vm.state}", "run 'understudy failover undo' or shut it down first")
        if others := [item.name for item in replica_points.taken(vm.machine) if not item.point]:
            raise Refused(what, f"it has snapshots that others made: {', '.join(map(repr, others))}",
                          "remove them first, if nobody needs them")  # fmt: skip
        disks = replica_points.present_devices(vm.machine).devices.disks
        if foreign := [disk.file for disk in disks if disk.name not in vm.own_disks or not vm.has_file(disk.file)]:
            raise Refused(what, f"it has disks of others, which would be deleted: {', '.join(foreign)}",
                          "take them off the VM first, without deleting them")  # fmt: skip
        run(ctx, self._connection, what, vm.machine.ref.Destroy_Task)

    def _require(self, identity: ReplicaIdentity) -> ReplicaVm:
        return replica_mark.require(self._connection, self._lookup, identity)

    def _export(self, vm: ReplicaVm, disk: LibraryDisk) -> LibraryExport:
        if not disk.file:
            what = f"disk {disk.name} of replica VM {vm.machine.name!r}"
            raise PlatformError(what, "the server does not tell its file")
        return LibraryExport(self._connection.library_login(), disk)

    # --- the replica VM -----------------------------------------------------------------------------------------------

    def define_replica(self, spec: ReplicaVmSpec) -> list[str]:
        """Never: the disks of a replica on vSphere are no files of a proxy."""
        raise Refused(f"define replica VM {spec.name!r}", "vSphere keeps restore points as snapshots of the VM only",
                      "use a datastore of kind vsphere")  # fmt: skip

    def replica_state(self, uuid: str) -> VmState | None:
        """Power state, or None without a VM."""
        return describing.state(self._connection, self._lookup, uuid)

    def replica_disks(self, uuid: str) -> set[str]:
        """The files of the VM's disks, the present ones and those at which their chains begin."""
        return describing.disk_files(self._connection, self._lookup, uuid)

    def start_replica(self, uuid: str) -> None:
        """Connect the cards whose networks are known, and power on; no error if it is on."""
        vm = replica_mark.find_any(self._connection, self._lookup, uuid)
        if vm is None:
            raise replica_mark.gone(self._connection, uuid)
        if vm.state is VmState.RUNNING:
            return
        ctx = Context()
        changes = connections(replica_points.present_devices(vm.machine), vm.connected)
        if vm.state is VmState.SHUT_OFF:
            replica_points.reconfigure(ctx, vm.machine, list(changes))
        run(ctx, self._connection, f"start replica VM {vm.machine.name!r}", vm.machine.ref.PowerOnVM_Task)

    def stop_replica(self, uuid: str) -> None:
        """Power off at once; no error if it is off or there is none."""
        vm = replica_mark.find_any(self._connection, self._lookup, uuid)
        if vm is not None:
            replica_points.power_off(Context(), vm.machine)

    def undefine_replica(self, uuid: str) -> None:
        """Take the VM out of the inventory; its files stay. No error if there is none."""
        vm = replica_mark.find_any(self._connection, self._lookup, uuid)
        if vm is None:
            return
        if vm.state is not VmState.SHUT_OFF:
            raise Refused(f"undefine replica VM {vm.machine.name!r}", f"it is {vm.state}", "power it off first")
        self._connection.act(f"undefine replica VM {vm.machine.name!r}", vm.machine.ref.UnregisterVM)
