"""The configuration of a replica VM: the source's hardware under our name, with our mark, without media. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pyVmomi import vim

from understudy.errors import PlatformError, Refused, ReplicaError
from understudy.model.replica import ReplicaIdentity
from understudy.platforms.snapshot_target import SnapshotVmSpec
from understudy.platforms.vsphere.definition import Firmware, VmHardware, hardware_of
from understudy.platforms.vsphere.replica_devices import Changes
from understudy.platforms.vsphere.replica_mark import marks
from understudy.units import MIB

_ESCAPED = {"%": "%25", "/": "%2f", "\\": "%5c"}
# What the server itself has escaped already stays.
_TO_ESCAPE = re.compile(r"%(?!25|2[fF]|5[cC])|[/\\]")
_FACTS = {"cpu_hot_add": "cpuHotAddEnabled", "memory_hot_add": "memoryHotAddEnabled",
          "nested_virtualisation": "nestedHVEnabled"}  # fmt: skip


def hardware_for(spec: SnapshotVmSpec) -> VmHardware:
    """The hardware of the source VM, which the replica gets.

    :raises Refused: if the VM is not of vSphere.
    :raises ReplicaError: if the definition is damaged, or has not all of the disks.
    """
    what = f"replica VM {spec.identity.name!r}"
    hardware = hardware_of(spec.definition)
    if hardware is None:
        raise Refused(what, "its source VM is not of VMware vSphere: its guest may have no drivers for VMware's "
                      "devices, and nothing converts it", "choose a target of the source's platform")  # fmt: skip
    missing = spec.disks.keys() - {disk.name for disk in hardware.disks}
    if missing:
        raise ReplicaError(what, f"the definition has no disk {', '.join(sorted(missing))}", "run the job again")
    return hardware


def inventory_name(name: str) -> str:
    """A name as a server takes it: what has a meaning in inventory paths is escaped."""
    return _TO_ESCAPE.sub(lambda match: _ESCAPED[match[0]], name)


def creation(
    spec: SnapshotVmSpec, hardware: VmHardware, changes: Changes, connected: Collection[str], store: str
) -> Any:
    """The configuration to make the VM with.

    :param store: name of the datastore.
    """
    made = settings(spec.identity, hardware)
    made.name = inventory_name(spec.identity.name)
    made.version = hardware.version or None
    made.uuid, made.instanceUuid = hardware.bios_uuid or None, spec.identity.domain_uuid
    made.files = vim.vm.FileInfo(vmPathName=f"[{store}]")
    made.extraConfig = _options(marks(spec.identity, connected, spec.disks))
    made.deviceChange = list(changes.changes)
    return made


def settings(identity: ReplicaIdentity, hardware: VmHardware) -> Any:
    """What the replica has of the source besides devices."""
    facts = json.loads(hardware.facts)
    return vim.vm.ConfigSpec(
        guestId=hardware.guest_id or None, annotation=annotation(identity, hardware),
        memoryMB=hardware.memory_bytes // MIB, numCPUs=hardware.vcpus, numCoresPerSocket=hardware.cores_per_socket,
        firmware=hardware.firmware.value, bootOptions=_boot_options(hardware, None), changeTrackingEnabled=False,
        **{name: True for fact, name in _FACTS.items() if facts.get(fact)},
    )  # fmt: skip


def annotation(identity: ReplicaIdentity, hardware: VmHardware) -> str:
    """What somebody reads who looks at the VM."""
    ours = (f"Replica of VM {identity.source_vm!r}, kept by job {identity.job_name!r} of Understudy. Do not start, "
            "change or snapshot it by hand: use 'understudy failover'.")  # fmt: skip
    return f"{ours}\n\n{hardware.annotation}" if hardware.annotation else ours


def difference(
    spec: SnapshotVmSpec, hardware: VmHardware, present: VmHardware,
    marked: tuple[Mapping[str, str], Mapping[str, str]], keys: Mapping[str, int], *, tracked: bool,
) -> Any | None:
    """What of the VM's settings is to be changed; None if nothing is.

    :param marked: the settings of ours that it has, and those that it should have.
    :param keys: of the VM's disks, by name.
    :param tracked: the VM has changed block tracking on.
    """
    identity, changed = spec.identity, vim.vm.ConfigSpec()
    values: dict[str, tuple[Any, Any]] = {
        "name": (present.name, inventory_name(identity.name)),
        "guestId": (present.guest_id, hardware.guest_id or present.guest_id),
        "annotation": (present.annotation, annotation(identity, hardware)),
        "memoryMB": (present.memory_bytes // MIB, hardware.memory_bytes // MIB),
        "numCPUs": (present.vcpus, hardware.vcpus),
        "numCoresPerSocket": (present.cores_per_socket, hardware.cores_per_socket),
        "firmware": (present.firmware.value, hardware.firmware.value),
        "changeTrackingEnabled": (tracked, False),
    }  # fmt: skip
    different = {name: wanted for name, (now, wanted) in values.items() if now != wanted}
    for name, wanted in different.items():
        setattr(changed, name, wanted)
    boots = keys.get(hardware.boot_disk)
    if present.secure_boot != hardware.secure_boot or (boots is not None and present.boot_disk != hardware.boot_disk):
        changed.bootOptions = _boot_options(hardware, boots)
    if marked[0] != marked[1]:
        changed.extraConfig = _options(marked[1])
    return changed if different or changed.bootOptions or changed.extraConfig else None


def notices(hardware: VmHardware, present: VmHardware | None = None) -> Iterator[str]:
    """What the operator should know of a replica with this hardware; ``present`` is what its VM has now."""
    if hardware.tpm:
        yield ("the VM's virtual TPM does not come along: where BitLocker or other keys depend on it, have the "
               "recovery key at hand")  # fmt: skip
    if hardware.firmware is Firmware.EFI:
        yield ("the boot entries in the VM's UEFI firmware do not come along: it starts what lies at the default place "
               r"of its system partition (\EFI\BOOT)")  # fmt: skip
    for drive in hardware.drives:
        yield f"drive {drive.name} does not come along" + (f", nor {drive.medium} in it" if drive.medium else "")
    if present is not None and present.version != hardware.version:
        yield (f"the virtual hardware of the replica is {present.version}, that of the source {hardware.version}: it "
               "is never changed; delete the replica to have it made anew")  # fmt: skip


def check_disks(spec: SnapshotVmSpec, sizes: Mapping[str, int], *, whole: bool) -> None:
    """Compare the disks that the VM has with those that it should have.

    :param whole: the new ones are there already.
    :raises PlatformError: if one that is to be written is missing, or has another size.
    """
    what = f"replica VM {spec.identity.name!r}"
    anew = "run the job again; if that does not help, 'understudy replica remove' it, and have it made anew"
    for name, size in spec.disks.items():
        if name in spec.anew and not whole:
            continue
        if name not in sizes:
            raise PlatformError(what, f"its disk {name} is gone: somebody has removed it", anew)
        if sizes[name] != size:
            raise PlatformError(what, f"its disk {name} has {sizes[name]} bytes, that of the source {size}", anew)


def _boot_options(hardware: VmHardware, boots: int | None) -> Any:
    first = [] if boots is None else [vim.vm.BootOptions.BootableDiskDevice(deviceKey=boots)]
    secure = hardware.secure_boot if hardware.firmware is Firmware.EFI else None
    return vim.vm.BootOptions(efiSecureBootEnabled=secure, bootOrder=first)


def _options(texts: Mapping[str, str]) -> list[Any]:
    return [vim.option.OptionValue(key=key, value=value) for key, value in texts.items()]
