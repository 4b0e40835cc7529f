"""What a definition says of the platform that a VM came from, when another platform runs its replica.

Every definition is a domain XML. That of a VM of another platform carries in its metadata what that platform says of
the VM: above all under which names it knows the disks, because restore points keep those, and a domain has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

NAMESPACE = "https://understudy.example/xmlns/source/1"

_SOURCE = f"{{{NAMESPACE}}}source"
_DISK = f"{{{NAMESPACE}}}disk"
_NOTICE = f"{{{NAMESPACE}}}notice"
_HARDWARE = f"{{{NAMESPACE}}}hardware"


@dataclass(frozen=True)
class ForeignSource:
    """What another platform says of a VM.

    :ivar platform: its name, such as ``vsphere``.
    :ivar disks: the platform's name of each disk, by its target device in the domain.
    :ivar hardware: what the platform needs to build the VM again, in a form of its own.
    :ivar smbios_uuid: the UUID that the guest has always read in SMBIOS, or empty.
    :ivar notices: what cannot come along, for the operator.
    """

    platform: str
    disks: Mapping[str, str]
    hardware: str = field(default="", repr=False)
    smbios_uuid: str = ""
    notices: tuple[str, ...] = ()


def add_source(root: ET.Element, source: ForeignSource) -> None:
    """Write ``source`` into the metadata of a domain."""
    ET.register_namespace("source", NAMESPACE)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    element = ET.SubElement(metadata, _SOURCE, platform=source.platform)
    if source.smbios_uuid:
        element.set("uuid", source.smbios_uuid)
    for target, name in source.disks.items():
        ET.SubElement(element, _DISK, name=name, target=target)
    for notice in source.notices:
        ET.SubElement(element, _NOTICE).text = notice
    ET.SubElement(element, _HARDWARE).text = source.hardware


def foreign_source(root: ET.Element) -> ForeignSource | None:
    """What another platform says of the VM that a domain is of; None if it is the domain's own platform that has it."""
    ET.register_namespace("source", NAMESPACE)  # whoever writes the domain again keeps the prefix
    element = root.find(f"metadata/{_SOURCE}")
    if element is None:
        return None
    return ForeignSource(
        platform=element.get("platform", ""),
        disks={disk.get("target", ""): disk.get("name", "") for disk in element.iterfind(_DISK)},
        hardware=element.findtext(_HARDWARE, ""),
        smbios_uuid=element.get("uuid", ""),
        notices=tuple(notice.text or "" for notice in element.iterfind(_NOTICE)),
    )


def source_of(definition: str) -> ForeignSource | None:
    """The same of a definition as text; None for an empty one."""
    return foreign_source(ET.fromstring(definition)) if definition else None


def disk_names(root: ET.Element) -> Mapping[str, str]:
    """The name under which restore points know a disk, per target device of a domain: the same unless it is foreign."""
    source = foreign_source(root)
    targets = [target.get("dev", "") for target in root.iterfind("devices/disk/target")]
    return {target: target for target in targets} if source is None else source.disks
