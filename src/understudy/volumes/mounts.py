"""Mounts: what is each volume's reader told of the masks and swap files of its guest?

A mask is a path as the guest sees it; a reader knows a volume's own root. The guest's fstab lies between the two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from understudy.units import MIB
from understudy.volumes import FileSystem, Unfit
from understudy.volumes.device_names import canonical
from understudy.volumes.masks import Masks, below, holds
from understudy.volumes.mounted import Mounted, Told
from understudy.volumes.windows import told_by_letters

_FSTAB = "/etc/fstab"
_MOST_BYTES = MIB
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class _Entry:
    """``what`` is mounted at ``where``; ``what`` as :func:`canonical` has it."""

    what: str
    where: str
    kind: str


@dataclass(frozen=True)
class _Tree:
    """What a guest mounts where.

    :ivar root: the volume that its fstab is on.
    :ivar places: mount points of each volume.
    :ivar mounts: all mount points.
    :ivar strange: those of them where something is mounted that is no volume of ``places``, and lies on a disk.
    :ivar swap_files: paths that it swaps to.
    """

    root: int
    places: Mapping[int, Sequence[str]]
    mounts: Sequence[str]
    strange: Sequence[str] = ()
    swap_files: Sequence[str] = ()


def layout_of(volumes: Sequence[Mounted], masks: Sequence[str]) -> tuple[Told, ...]:
    """What the reader of each volume is told, in the order of the volumes."""
    tables = {position: table for position, volume in enumerate(volumes) if volume.system.kind != "ntfs"
              and (table := _fstab(volume.system)) is not None}
    roots = [position for position, table in tables.items() if not _is_copy(volumes, position, table)]
    tree = _tree(volumes, roots[0], tables[roots[0]]) if len(roots) == 1 else None
    linux = [mask for mask in masks if mask.startswith("/")]
    why = "several operating systems" if len(roots) > 1 else "no /etc/fstab that names it"
    windows = [volume for volume in volumes if volume.system.kind == "ntfs"]
    letters = iter(told_by_letters(windows, [mask for mask in masks if not mask.startswith("/")]))
    return tuple(next(letters) if volume.system.kind == "ntfs" else _linux(tree, position, linux, why)
                 for position, volume in enumerate(volumes))


def _fstab(system: FileSystem) -> list[_Entry] | None:
    """The mounts that a root's fstab names; None if this is no root."""
    try:
        content = system.read_file(_FSTAB, _MOST_BYTES)
    except Unfit:
        return None  # whoever looks for ranges on this volume is told why
    if content is None:
        return None
    lines = [line.split() for line in content.decode(errors="replace").splitlines()]
    return [_Entry(canonical(_plain(line[0])), _mount_point(_plain(line[1])), line[2]) for line in lines
            if len(line) >= 3 and not line[0].startswith("#")]


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _mount_point(path: str) -> str:
    """Without doubled and closing slashes; what is no path stays."""
    return "/" + "/".join(filter(None, path.split("/"))) if path.startswith("/") else path


def _is_copy(volumes: Sequence[Mounted], position: int, table: Sequence[_Entry]) -> bool:
    """Whether a volume's fstab says that another volume is the root: then it is a backup, or one of a container."""
    roots = {other for entry in table if entry.where == "/"
             for other, volume in enumerate(volumes) if entry.what in volume.names}
    return bool(roots) and position not in roots


def _tree(volumes: Sequence[Mounted], root: int, table: Sequence[_Entry]) -> _Tree:
    places: dict[int, list[str]] = {root: ["/"]}
    mounted = [entry for entry in table if entry.where.startswith("/") and entry.where != "/"]
    often = Counter(entry.where for entry in mounted)
    strange: list[str] = []
    for entry in mounted:
        # Of two copies of a volume, and of two entries for one place, nobody knows which one the guest mounts.
        same = [position for position, volume in enumerate(volumes) if entry.what in volume.names]
        if len(same) == 1 and same[0] != root and often[entry.where] == 1 and volumes[same[0]].system.kind != "ntfs":
            places.setdefault(same[0], []).append(entry.where)
        elif "=" in entry.what or (entry.what.startswith("/") and not entry.what.startswith("//")):
            strange.append(entry.where)
    swaps = [entry.what for entry in table if entry.kind == "swap" and _is_plain(entry.what)]
    return _Tree(root, places, list(often), list(dict.fromkeys(strange)), swaps)


def _is_plain(path: str) -> bool:
    """Whether a path of the guest's fstab, which may hold anything, is that of a file."""
    names = path.split("/")[1:]
    return path.startswith("/") and not path.startswith("/dev/") and not set(names) & {"", ".", ".."}


def _linux(tree: _Tree | None, position: int, masks: Sequence[str], why: str) -> Told:
    if tree is None or position not in tree.places:
        return Told(notes=(f"masks are not applied: {why}",)) if masks else Told()
    places = tree.places[position]
    notes = []
    if position == tree.root:
        notes = [f"the mask {mask} is not applied to what is mounted at {place}: it is not read, or not known"
                 for mask in masks for place in tree.strange if Masks([mask]).may_match_below(place)]
    files = [own for path in tree.swap_files for place in places if (own := _own(path, place, tree.mounts))]
    found = Masks(masks, mounts=places, hidden=tree.mounts) if masks else None
    return Told(found, tuple(dict.fromkeys(files)), tuple(notes))


def _own(path: str, place: str, mounts: Sequence[str]) -> str:
    """A guest's path from the root of the volume mounted at ``place``; empty if it lies on another one."""
    other = not holds(place, path) or any(holds(deeper, path) for deeper in below(place, mounts))
    return "" if other else path.removeprefix(place.rstrip("/"))
