"""The source end of a task: which disks, what is known of their changes, the snapshot that is held while reading."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import PurePosixPath

from understudy.context import Context
from understudy.errors import Refused, TrackingLost
from understudy.guests.freezing import Quiescing
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.job import Job, SnapshotMode
from understudy.model.replica import Consistency, RestorePoint
from understudy.model.snapshot import SnapshotRequest, SourceSnapshot, Tag
from understudy.model.transfer import DiskPlan, Reason, TransferMode, TransportMode
from understudy.mover import api
from understudy.platforms import SourcePlatform
from understudy.replication.held import TransferSpec
from understudy.replication.planning import without_tracking
from understudy.replication.site import Site
from understudy.replication.source_images import Images


def prepare_scratch(site: Site) -> None:
    """Make the scratch directory writable for the source host's emulator; from elsewhere there is none."""
    user = site.source.facts().emulator_user if site.sees_files else None
    if user is None:
        return
    uid, gid = user
    site.source_mover.call(api.PrepareScratch(site.source_host.scratch_dir, uid, gid), api.ScratchFacts)


def replicated_disks(vm: Vm, job: Job) -> tuple[Disk, ...]:
    """The disks of ``vm`` that the job replicates.

    :raises Refused: if the VM, or a disk that is not excluded, cannot be replicated.
    """
    excluded = {disk for name, disk in job.excluded_disks if name == vm.name}
    disks = tuple(disk for disk in vm.disks if disk.name not in excluded)
    if vm.obstacle:
        raise Refused(f"replicate VM {vm.name!r}", vm.obstacle, "take it out of the job")
    for disk in disks:
        if disk.obstacle:
            raise Refused(f"disk {disk.name} of VM {vm.name!r}", disk.obstacle,
                          f"exclude it with --exclude-disk '{vm.name}:{disk.name}'")
    if not disks:
        raise Refused(f"replicate VM {vm.name!r}", "it has no disk to replicate", "take it out of the job")
    return disks


def check_transport(site: Site, vm: Vm, job: Job, disks: Sequence[Disk]) -> None:
    """Over the network only what the emulator itself serves can be read.

    :raises Refused: if the VM cannot be replicated like that.
    """
    if site.transport is not TransportMode.NETWORK:
        return
    block_devices = [disk.name for disk in disks if PurePosixPath(disk.path).is_relative_to("/dev")]
    host, address = site.source_host.name, site.source_host.serve_address
    obstacles = {
        "the VM is powered off": vm.state is VmState.SHUT_OFF,
        "snapshot mode external leaves files on the host": job.snapshot_mode is SnapshotMode.EXTERNAL,
        "its UEFI variables are a file on the host": bool(vm.nvram),
        f"disk {', '.join(block_devices)} is a block device, which has no place beside it for scratch files":
            bool(block_devices),
        f"host {host} has no address of its own; see 'understudy host set --nbd-address'": not address,
    }  # fmt: skip
    for obstacle, is_there in obstacles.items():
        if is_there:
            raise Refused(f"replicate VM {vm.name!r} over the network", obstacle, f"enrol a proxy on host {host}")


def sweep_source(ctx: Context, site: Site, vm: Vm, tag: Tag, replica_id: str) -> Vm:
    """Remove what dead sessions of this (VM, job) left on the source (S7); the VM as it is afterwards."""
    # Who reads a snapshot may keep it from being merged.
    site.source_mover.call(api.EndLeftovers(replica_id, tag.prefix), api.Nothing)
    for done in site.source.sweep(ctx, vm, tag):
        site.journal.warn(done)
    return remove_snapshot_files(site, vm.name, tag)


def remove_snapshot_files(site: Site, name: str, tag: Tag) -> Vm:
    """Remove our scratch files, sockets and free delta files; a delta that the VM still writes to stays.

    Over the network there are only scratch files, which the platform removes with the snapshot. If the host died
    meanwhile they stay beside the images, until a proxy on that host finds them.

    :return: the VM as it is now.
    """
    vm = site.source.describe_vm(name)
    if not site.sees_files:
        return vm
    in_use = tuple(PurePosixPath(disk.path).name for disk in vm.disks if disk.path)
    images = tuple((disk.path, disk.image_format) for disk in vm.disks if disk.path)
    beside = {PurePosixPath(disk.path).parent for disk in vm.disks if disk.path}
    # The delta of a block device is in the scratch directory; /dev itself holds no files of ours.
    places = {str(place) for place in beside if not place.is_relative_to("/dev")} | {site.source_host.scratch_dir}
    for place in sorted(places):
        site.source_mover.call(api.RemoveTagged(place, tag.prefix, in_use, images), api.Removed)
    return vm


def on_delta(vm: Vm, tag: Tag) -> bool:
    """Whether the VM writes to a snapshot delta of this job, which only a dead session can have left."""
    return any(PurePosixPath(disk.path).name.startswith(tag.prefix) for disk in vm.disks)


def tracking_since(
    site: Site, vm: Vm, disks: Sequence[Disk], images: Images, newest: RestorePoint | None
) -> dict[str, Reason]:
    """Per disk: whether the changes since the newest point's baseline are known (``Reason.NONE``), or why not."""
    if newest is None or newest.baseline is None:
        return {disk.name: Reason.NO_BASELINE for disk in disks}
    known = site.source.tracking(vm, newest.baseline)
    if site.by_library or vm.state is not VmState.SHUT_OFF:
        return known
    for disk in disks:
        image = images.get(disk.name)
        if not known[disk.name] and (image is None or newest.baseline.checkpoint not in image.bitmaps):
            known[disk.name] = Reason.BITMAP_INCONSISTENT
    return known


def snapshot_request(
    site: Site, vm: Vm, tag: Tag, disks: Sequence[Disk], plans: Sequence[DiskPlan],
    newest: RestorePoint | None,
) -> SnapshotRequest:
    """What is asked of the platform; a powered-off VM gets no new checkpoint where libvirt would have to make it."""
    since = newest.baseline if newest else None
    # A forced scan counts what tracking conceals, if there is tracking.
    audited = {disk.name for disk in disks if disk.tracked and since}
    markable = site.by_library or vm.state is not VmState.SHUT_OFF
    tracked = tuple(disk.name for disk in disks if disk.tracked) if markable else ()
    return SnapshotRequest(
        tag=tag,
        disks=tuple(disk.name for disk in disks),
        incremental=tuple(
            plan.name for plan in plans
            if plan.mode is TransferMode.INCREMENTAL or (plan.reason is Reason.FORCED and plan.name in audited)
        ),
        since=since,
        checkpoint=f"{tag}-{secrets.token_hex(2)}" if tracked else "",
        tracked=tracked,
        scratch_dir=site.source_host.scratch_dir,
        serve_at=site.source_host.serve_address if site.transport is TransportMode.NETWORK else "",
    )


def with_baseline_facts(
    site: Site, vm: Vm, snapshot: SourceSnapshot, made: str, point: str, newest: RestorePoint | None
) -> SourceSnapshot:
    """The snapshot, its baseline with the point at whose instant it was made.

    :param made: the marker that was made with the snapshot, for ``point``; the baseline of a VM that is off is older.
    """
    baseline = snapshot.baseline
    if baseline is None:
        return snapshot
    if baseline.checkpoint == made:
        made_at = site.source.markers(vm).get(made, "")
        return replace(snapshot, baseline=replace(baseline, point=point, made_at=made_at))
    former = newest.baseline if newest else None
    if former is None or former.checkpoint != baseline.checkpoint:
        return snapshot
    return replace(snapshot, baseline=replace(former, disks=baseline.disks))


def library_versions(site: Site) -> dict[str, str]:
    """Versions of what reads the disks through the vendor's disk library; nothing if that is not used."""
    if not site.by_library:
        return {}
    facts = site.source_mover.call(api.ProbeLibrary(site.source_host.library), api.LibraryFacts)
    found = {"nbdkit": facts.server_version, "nbdkit_plugin": facts.plugin_version,
             "disk_library": facts.library_version}  # fmt: skip
    return {f"source_{name}": version for name, version in found.items() if version}


def settle_digests(site: Site, spec: TransferSpec, newest: RestorePoint | None) -> None:
    """Keep the source side digests of the new point if it was published, else drop them."""
    if newest is not None and newest.id == spec.point:
        disks = tuple(disk.name for disk in newest.disks)
        began = newest.baseline.point if newest.baseline else ""
        also = (began,) if began and began != newest.id else ()
        site.source_mover.call(api.KeepDigests(spec.replica_id, spec.point, disks, also), api.Nothing)
    else:
        site.source_mover.call(api.DropDigests(spec.replica_id, spec.point), api.Removed)


def uefi_variables(site: Site, vm: Vm) -> str:
    """The VM's UEFI variables in base64, or empty; without them many guests would not find their boot loader."""
    if not vm.nvram:
        return ""
    return site.source_mover.call(api.ReadNvram(vm.nvram), api.NvramContent).content


@contextmanager
def held_snapshot(
    ctx: Context, source: SourcePlatform, vm: Vm, job: Job, request: SnapshotRequest, plans: tuple[DiskPlan, ...]
) -> Iterator[tuple[SourceSnapshot, tuple[DiskPlan, ...]]]:
    """Hold one instant of the source; if only the incremental part is refused, hold it without that and scan (S5).

    Gives the snapshot, and the plans that fit it.
    """
    with ExitStack() as held:
        try:
            snapshot = held.enter_context(source.snapshot(ctx, vm, job.snapshot_mode, request))
        except TrackingLost as exc:
            ctx.log(__name__).warning("tracking lost: %s", exc)
            plans = without_tracking(plans, Reason(exc.reason))
            whole = replace(request, incremental=())
            snapshot = held.enter_context(source.snapshot(ctx, vm, job.snapshot_mode, whole))
        for disk, reason in snapshot.lost:
            plans = without_tracking(plans, reason, only=disk)
        yield snapshot, plans


def consistency(vm: Vm, quiescing: Quiescing, snapshot: SourceSnapshot) -> Consistency:
    """How consistent a point of ``vm`` is; a guest that shut itself down has left its file systems clean."""
    if quiescing.application_consistent:
        return Consistency.APPLICATION
    clean = vm.state is VmState.SHUT_OFF and vm.clean_shutdown
    return Consistency.FILESYSTEM if quiescing.frozen or snapshot.quiesced or clean else Consistency.CRASH
