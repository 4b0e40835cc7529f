"""Device names: by which names may a guest's fstab, or the registry of Windows, call a volume? Pure.

Every name has one form here, that of fstab's tags where there is one: ``UUID=...``, ``/dev/mapper/vg-lv``. Names that
depend on the order in which a kernel found its disks, as ``/dev/sda1``, prove nothing and are never those of a volume.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Iterator

from understudy.volumes.partitions import Partition

_TAGS = {"UUID": True, "LABEL": False, "PARTUUID": True, "PARTLABEL": False}  # whether case does not count
_BY = re.compile(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/(.+)")
_DM_NAME = "/dev/disk/by-id/dm-name-"
_MAPPER = "/dev/mapper/"
_ESCAPED = re.compile(rb"\\x([0-9A-Fa-f]{2})")
_LV = re.compile(r"/dev/([^/]+)/([^/]+)")


def names_of(uuid: str, label: str, partition: Partition | None = None, lv: str = "") -> frozenset[str]:
    """The names of a volume; an empty part is none.

    :param lv: ``vg/name`` of a logical volume.
    """
    part_uuid, part_label = (partition.uuid, partition.label) if partition else ("", "")
    tags = {"UUID": uuid, "LABEL": label, "PARTUUID": part_uuid, "PARTLABEL": part_label}
    windows = [_registered(partition)] if partition and part_uuid else []
    return frozenset((*(_tagged(tag, value) for tag, value in tags.items() if value), *_mapper(lv), *windows))


def canonical(what: str) -> str:
    """The one form of a name that stands in an fstab."""
    tag, _, value = what.partition("=")
    if tag in _TAGS:
        return _tagged(tag, value.strip('"'))
    by = _BY.fullmatch(what)
    if by:
        return _tagged(by[1].upper(), _plain(by[2]))
    if what.startswith(_DM_NAME):
        return _MAPPER + _plain(what.removeprefix(_DM_NAME))
    lv = _LV.fullmatch(what)
    if lv and lv[1] not in ("mapper", "disk"):
        return next(_mapper(f"{lv[1]}/{lv[2]}"))
    return what


def windows_name(data: bytes) -> str:
    """The one form of what Windows has in its registry for a drive letter."""
    return f"MountedDevices={data.hex()}"


def _registered(partition: Partition) -> str:
    """Of a GPT, its partition's identity; of an MBR, that of the disk and where the partition begins."""
    if partition.type.startswith("0x"):
        disk = int(partition.uuid.split("-")[0], 16)
        return windows_name(disk.to_bytes(4, "little") + partition.start.to_bytes(8, "little"))
    return windows_name(b"DMIO:ID:" + uuids.UUID(partition.uuid).bytes_le)


def _tagged(tag: str, value: str) -> str:
    return f"{tag}={value.lower() if _TAGS[tag] else value}"


def _mapper(lv: str) -> Iterator[str]:
    """device-mapper doubles the dashes of both names."""
    if lv:
        vg, _, name = lv.partition("/")
        yield f"{_MAPPER}{vg.replace('-', '--')}-{name.replace('-', '--')}"


def _plain(text: str) -> str:
    """A name without the escapes of udev."""
    raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), text.encode(errors="surrogateescape"))
    return raw.decode(errors="replace")
