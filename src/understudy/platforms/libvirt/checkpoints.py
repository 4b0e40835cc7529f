"""Checkpoints: libvirt's dirty-bitmap markers, which are our baselines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from xml.etree import ElementTree as ET

import libvirt

from understudy.model.inventory import Vm, VmState
from understudy.model.replica import Baseline
from understudy.model.snapshot import Tag
from understudy.model.transfer import Reason
from understudy.platforms.libvirt.connection import error_text, libvirt_errors


def checkpoint_xml(name: str, tracked: Iterable[str], all_disks: Iterable[str]) -> str:
    """XML of a checkpoint that marks ``tracked``; every other disk must be named, or libvirt would mark it as well."""
    covered = set(tracked)
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = "Baseline of an Understudy replica; removing it costs one digest scan"
    disks = ET.SubElement(root, "disks")
    for disk in all_disks:
        ET.SubElement(disks, "disk", name=disk, checkpoint="bitmap" if disk in covered else "no")
    return ET.tostring(root, encoding="unicode")


def tracking(domain: libvirt.virDomain, vm: Vm, baseline: Baseline) -> dict[str, Reason]:
    """Per disk: whether the changes since ``baseline`` are known, or the reason why they are not.

    An inactive domain knows only the metadata; whether the image holds the bitmap shows when it is opened.
    """
    with libvirt_errors(f"list checkpoints of VM {vm.name!r}"):
        checkpoints = {item.getName(): item for item in domain.listAllCheckpoints()}
        found = checkpoints.get(baseline.checkpoint)
        made_at = "" if found is None else _creation_time(found)
    if found is None:
        return {disk.name: Reason.CHECKPOINT_MISSING for disk in vm.disks}
    if baseline.made_at and made_at != baseline.made_at:
        return {disk.name: Reason.SOURCE_ROLLED_BACK for disk in vm.disks}
    usable = set(baseline.disks)
    if vm.state is not VmState.SHUT_OFF:
        usable &= _measurable(found)
    return {disk.name: _disk_tracking(disk.name, disk.tracked, baseline, usable) for disk in vm.disks}


def creation_times(domain: libvirt.virDomain, vm: Vm) -> dict[str, str]:
    """When each checkpoint of the domain was made, in seconds since 1970, by name."""
    with libvirt_errors(f"list checkpoints of VM {vm.name!r}"):
        return {item.getName(): _creation_time(item) for item in domain.listAllCheckpoints()}


def _creation_time(checkpoint: libvirt.virDomainCheckpoint) -> str:
    root = ET.fromstring(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))
    return root.findtext("creationTime", "")


def remove_orphan(domain: libvirt.virDomain, vm: Vm, name: str, disks: Iterable[str]) -> str:
    """Remove bitmaps whose checkpoint libvirt has forgotten, by telling it of the checkpoint again (P3).

    libvirt 9.0 takes any creation time and needs no domain in the XML. Exactly the disks that have the bitmap must be
    named, because it refuses to delete a checkpoint if one disk lacks it.
    """
    root = ET.fromstring(checkpoint_xml(name, disks, (disk.name for disk in vm.disks)))
    ET.SubElement(root, "creationTime").text = str(int(time.time()))
    xml = ET.tostring(root, encoding="unicode")
    try:
        checkpoint = domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    except libvirt.libvirtError as exc:
        return error_text(exc)
    return _remove(checkpoint, vm)


def _disk_tracking(name: str, tracked: bool, baseline: Baseline, usable: set[str]) -> Reason:
    if not tracked:
        return Reason.TRACKING_UNSUPPORTED
    if name not in baseline.disks:
        return Reason.NO_BASELINE
    return Reason.NONE if name in usable else Reason.BITMAP_INCONSISTENT


def _measurable(checkpoint: libvirt.virDomainCheckpoint) -> set[str]:
    """Disks of a running domain whose bitmap QEMU really has.

    Asked for the size of a checkpoint, libvirt 9 gives one only for disks with a consistent bitmap; after a crash of
    QEMU the checkpoint is still listed, but without it.
    """
    try:
        root = ET.fromstring(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE))
    except libvirt.libvirtError:
        # Whatever the cause, the consequence is the same and safe: a digest scan, reported with its reason.
        return set()
    return {disk.get("name", "") for disk in root.iterfind("disks/disk") if disk.get("size") is not None}


def remove_others(domain: libvirt.virDomain, vm: Vm, tag: Tag, keep: str, former: str) -> list[str]:
    """Remove the job's checkpoints, and ``former``, except ``keep``; says what could not be removed.

    Order does not matter for safety: the changes of a removed checkpoint go to the one before it.
    """
    with libvirt_errors(f"list checkpoints of VM {vm.name!r}"):
        names = {item.getName(): item for item in domain.listAllCheckpoints()}
        ours = {name: item for name, item in names.items() if name.startswith(tag.prefix) or name == former}
        others = [item for name, item in ours.items() if name != keep]
        running = domain.isActive()
    if not running:
        # libvirt cannot change bitmaps of an inactive domain; the next run with the VM on removes them.
        return []
    return [warning for item in others if (warning := _remove(item, vm))]


def _remove(checkpoint: libvirt.virDomainCheckpoint, vm: Vm) -> str:
    name = checkpoint.getName()
    try:
        checkpoint.delete()
    except libvirt.libvirtError as first:
        # A checkpoint whose bitmap is gone or inconsistent can only be forgotten (P2).
        try:
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        except libvirt.libvirtError as second:
            return f"checkpoint {name} of VM {vm.name!r} could not be removed: {error_text(second)}"
        return f"checkpoint {name} of VM {vm.name!r} was forgotten, its bitmap may remain: {error_text(first)}"
    return ""
