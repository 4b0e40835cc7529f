"""The images of a VM's disks as files: what they are now, and bitmaps of ours in them that no checkpoint names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from understudy.errors import UnderstudyError
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.replica import ImageGeneration, SourceGeneration
from understudy.model.snapshot import Tag
from understudy.mover import api
from understudy.replication.site import Site

Images = Mapping[str, api.ImageFacts]


def look_at_images(site: Site, disks: Iterable[Disk]) -> dict[str, api.ImageFacts]:
    """What the images are that may hold changed block tracking, by disk name; from elsewhere nobody can look."""
    if not site.sees_files:
        return {}
    return {
        disk.name: site.source_mover.call(api.ProbeImage(disk.path, disk.image_format), api.ImageFacts)
        for disk in disks
        if disk.tracked
    }


def with_tracking_facts(disks: Iterable[Disk], images: Images) -> tuple[Disk, ...]:
    """The disks, with ``tracked`` true only where the image really can hold a dirty bitmap (qcow2 version 3).

    Of what nobody looked at it stays true; the platform refuses the snapshot if an image cannot.
    """
    return tuple(
        replace(disk, tracked=disk.tracked and (disk.name not in images or images[disk.name].can_track))
        for disk in disks
    )


def generation(vm: Vm, images: Images) -> SourceGeneration | None:
    """What the point's record is to say of the images; None if nothing is known."""
    found = []
    for disk, facts in images.items():
        if facts.file is not None:
            bitmaps = _names(facts) if vm.state is VmState.SHUT_OFF else None
            found.append(ImageGeneration(disk, facts.file, bitmaps))
    return SourceGeneration(tuple(found)) if found else None


def orphans(images: Images, markers: Collection[str], tag: Tag, keep: str) -> dict[str, tuple[str, ...]]:
    """Bitmaps of this job that lie in images without a marker of their name: per name, the disks that have it.

    The platform forgets its markers when the VM is undefined; the bitmaps stay, cost memory, and slow writes down.

    :param keep: the baseline, which stays in any case.
    """
    found: dict[str, tuple[str, ...]] = {}
    for disk, facts in images.items():
        for name in _names(facts):
            if name.startswith(tag.prefix) and name not in markers and name != keep:
                found[name] = (*found.get(name, ()), disk)
    return found


def remove_orphans(site: Site, vm: Vm, images: Images, tag: Tag, keep: str) -> dict[str, api.ImageFacts]:
    """Remove bitmaps of this job that no marker names any more (S7), and say so; the images as they are then."""
    left = orphans(images, site.source.markers(vm), tag, keep)
    for name, disks in left.items():
        problem = _remove(site, vm, name, disks, tag)
        if problem:
            commands = "; ".join(f"qemu-img bitmap --remove {vm.disk(disk).path} {name}" for disk in disks)
            site.journal.warn(f"bitmap {name} without a checkpoint stays in disk {', '.join(disks)} of VM {vm.name!r}: "
                              f"{problem}; run, while the VM is off: {commands}")  # fmt: skip
        else:
            site.journal.warn(f"removed bitmap {name}, which had no checkpoint, from disk {', '.join(disks)}")
    touched = {disk for disks in left.values() for disk in disks}
    return {**images, **look_at_images(site, (disk for disk in vm.disks if disk.name in touched))}


def _remove(site: Site, vm: Vm, name: str, disks: Sequence[str], tag: Tag) -> str:
    try:
        if vm.state is not VmState.SHUT_OFF:
            return site.source.remove_orphan(vm, name, tuple(disks))
        for disk in disks:
            site.source_mover.call(api.RemoveBitmap(vm.disk(disk).path, name, tag.prefix), api.Nothing)
    except UnderstudyError as exc:
        return str(exc)
    return ""


def _names(facts: api.ImageFacts) -> tuple[str, ...]:
    return (*facts.bitmaps, *facts.open_bitmaps)
