"""Windows: which masks with and without drive letters are those of which volume, and is there a Windows at all?

What a drive letter stands for is in the registry of the one volume that Windows runs from; without it, that is C:.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from understudy.units import MIB
from understudy.volumes import Unfit
from understudy.volumes.device_names import windows_name
from understudy.volumes.masks import Masks, drive_of
from understudy.volumes.mounted import Mounted, Told
from understudy.volumes.registry import values_of

#: A small file of every Windows.
_HOSTS = "/Windows/System32/drivers/etc/hosts"
_REGISTRY = "/Windows/System32/config/SYSTEM"
_MOST_HOSTS, _MOST_REGISTRY = MIB, 128 * MIB
_LETTERS, _LETTER = ("MountedDevices",), "\\DosDevices\\"


@dataclass(frozen=True)
class _Letters:
    """Volumes by drive letter; ``unknown`` says why there are no others."""

    volumes: Mapping[str, int] = field(default_factory=dict)
    unknown: str = "no volume has it"


def told_by_letters(volumes: Sequence[Mounted], masks: Sequence[str]) -> list[Told]:
    """What the reader of each volume of NTFS is told.

    :param masks: those of Windows: each begins with a drive letter or with a backslash, which means every volume.
    """
    if not masks:
        return [Told() for _ in volumes]
    letters = _letters(volumes) if any(drive_of(mask)[0] for mask in masks) else _Letters()
    found: list[list[str]] = [[] for _ in volumes]
    notes: list[str] = []
    for mask in masks:
        drive, own = drive_of(mask)
        if not drive:
            for each in found:
                each.append(own)
        elif drive in letters.volumes:
            found[letters.volumes[drive]].append(own)
        else:
            notes.append(f"the mask {mask} is not applied, for {drive}: is not known: {letters.unknown}")
    return [Told(Masks(own, ignore_case=True) if own else None, notes=tuple(notes)) for own in found]


def runs_from(volume: Mounted) -> bool:
    """Whether a Windows runs from a volume: its registry is there, and knows that very volume as C:.

    Where the files of a Windows were copied to, it knows another one.

    :raises Unfit: if the volume cannot be read.
    """
    hive = volume.system.read_file(_REGISTRY, _MOST_REGISTRY)
    try:
        entries = values_of(hive, _LETTERS, latest=False) if hive is not None else {}
    except Unfit:
        return False
    data = entries.get(f"{_LETTER}C:")
    return data is not None and windows_name(data) in volume.names


def _letters(volumes: Sequence[Mounted]) -> _Letters:
    try:
        systems = [position for position, volume in enumerate(volumes)
                   if volume.system.read_file(_HOSTS, _MOST_HOSTS) is not None]
    except Unfit as exc:
        return _Letters(unknown=str(exc))
    if len(systems) != 1:
        return _Letters(unknown="there are several Windows" if systems else "there is no Windows")
    try:
        hive = volumes[systems[0]].system.read_file(_REGISTRY, _MOST_REGISTRY)
        entries = values_of(hive, _LETTERS) if hive is not None else {}
    except Unfit as exc:
        return _Letters({"C": systems[0]}, str(exc))
    if not entries:
        return _Letters({"C": systems[0]}, "the registry does not tell")
    named = {name.removeprefix(_LETTER)[0].upper(): windows_name(data) for name, data in entries.items()
             if name.startswith(_LETTER) and name.endswith(":") and len(name) == len(_LETTER) + 2}
    return _Letters(dict(_of_one(volumes, named)))


def _of_one(volumes: Sequence[Mounted], named: Mapping[str, str]) -> list[tuple[str, int]]:
    """Letters with the volume that each stands for; of two copies of a volume nobody knows which one it is."""
    found = [(letter, [position for position, volume in enumerate(volumes) if name in volume.names])
             for letter, name in named.items()]
    return [(letter, same[0]) for letter, same in found if len(same) == 1]
