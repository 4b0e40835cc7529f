"""Mounts: which masks and swap files of a guest belong to which of its volumes, and how are they called there?

A mask is a path as the guest sees it; a reader knows a volume's own root. The guest's fstab lies between the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from understudy.units import MIB
from understudy.volumes import FileSystem, Unfit
from understudy.volumes.masks import Masks, drive_of

_FSTAB = "/etc/fstab"
_MOST_BYTES = MIB
_OCTAL = re.compile(r"\\([0-7]{3})")
#: A small file of every Windows: the volume that holds it is C:.
_WINDOWS = "/Windows/System32/drivers/etc/hosts"


@dataclass(frozen=True)
class Mounted:
    """A file system; ``lv`` is ``vg/name`` if a logical volume holds it."""

    system: FileSystem
    lv: str = ""


@dataclass(frozen=True)
class Told:
    """What a volume's reader is told, in paths from its root."""

    masks: tuple[str, ...] = ()
    swap_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """What each volume's reader is told, in the order of the volumes."""

    volumes: tuple[Told, ...]


@dataclass(frozen=True)
class _Entry:
    what: str
    where: str
    kind: str


def layout_of(volumes: Sequence[Mounted], masks: Sequence[str]) -> Layout:
    """Which volume gets which masks and swap files."""
    tables = {position: table for position, volume in enumerate(volumes) if volume.system.kind != "ntfs"
              and (table := _fstab(volume.system)) is not None}
    linux = [mask for mask in masks if mask.startswith("/")]
    windows = [mask for mask in masks if not mask.startswith("/")]
    places = _places(volumes, tables)
    return Layout(tuple(
        _windows(volume.system, windows) if volume.system.kind == "ntfs"
        else _linux(places, position, len(tables), linux, tables)
        for position, volume in enumerate(volumes)))


def _fstab(system: FileSystem) -> list[_Entry] | None:
    """The mounts that a root's fstab names; None if this is no root."""
    try:
        content = system.read_file(_FSTAB, _MOST_BYTES)
    except Unfit:
        return None  # whoever looks for ranges on this volume is told why
    if content is None:
        return None
    lines = [line.split() for line in content.decode(errors="replace").splitlines()]
    return [_Entry(_plain(line[0]), _plain(line[1]), line[2]) for line in lines
            if len(line) >= 3 and not line[0].startswith("#")]


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _places(volumes: Sequence[Mounted], tables: Mapping[int, list[_Entry]]) -> dict[int, list[str]]:
    """Where the guest mounts its volumes; nothing if there are several roots."""
    if len(tables) != 1:
        return {}
    (root, table), = tables.items()
    places: dict[int, list[str]] = {root: ["/"]}
    for entry in table:
        if entry.where.startswith("/") and entry.where != "/":
            # Of two copies of a volume nobody knows which one the guest mounts.
            same = [position for position, volume in enumerate(volumes) if _is(volume, entry.what)]
            if len(same) == 1 and same[0] != root:
                places.setdefault(same[0], []).append("/" + entry.where.strip("/"))
    return places


def _is(volume: Mounted, what: str) -> bool:
    name, _, value = what.partition("=")
    value = value.strip('"')
    if name == "UUID":
        return bool(volume.system.uuid) and value.lower() == volume.system.uuid
    if name == "LABEL":
        return bool(volume.system.label) and value == volume.system.label
    vg, _, lv = volume.lv.partition("/")
    # device-mapper doubles the dashes of both names.
    mapper = f"/dev/mapper/{vg.replace('-', '--')}-{lv.replace('-', '--')}"
    return bool(lv) and what in (f"/dev/{vg}/{lv}", mapper)


def _linux(
    places: Mapping[int, list[str]], position: int, roots: int, masks: Sequence[str],
    tables: Mapping[int, list[_Entry]],
) -> Told:
    mine = places.get(position)
    if mine is None:
        if not masks:
            return Told()
        why = "several operating systems" if roots > 1 else "no /etc/fstab that names it"
        return Told(notes=(f"masks are not applied: {why}",))
    (table,) = tables.values()
    every = [entry.where for entry in table if entry.where.startswith("/")]
    swaps = [entry.what for entry in table if entry.kind == "swap" and _is_plain(entry.what)]
    found, notes = [], []
    for mount in mine:
        found += [own for mask in masks if (own := _below(mask, mount, every)) is not None]
    notes += [f"the mask {mask} is not applied: it may cross a mount point" for mask in masks
              if any(_ambiguous(mask, mount, every) for mount in mine)]
    files = [own for mount in mine for path in swaps if (own := _below(path, mount, every)) is not None]
    return Told(tuple(dict.fromkeys(found)), tuple(dict.fromkeys(files)), tuple(dict.fromkeys(notes)))


def _is_plain(path: str) -> bool:
    """Whether a path of the guest's fstab, which may hold anything, is that of a file, and no pattern."""
    names = path.split("/")[1:]
    return (path.startswith("/") and not path.startswith("/dev/") and not set(path) & set("*?\\")
            and not set(names) & {"", ".", ".."})


def _below(path: str, mount: str, mounts: Sequence[str]) -> str | None:
    """``path`` from the root of what is mounted at ``mount``; None if it may lie on another volume."""
    prefix = mount.rstrip("/")
    if not path.startswith(prefix + "/") or _ambiguous(path, mount, mounts):
        return None
    fixed = _fixed(path)
    deepest = max((place.rstrip("/") for place in mounts if _holds(place, fixed)), key=len, default="")
    return path.removeprefix(prefix) if len(deepest) <= len(prefix) else None


def _ambiguous(path: str, mount: str, mounts: Sequence[str]) -> bool:
    """Whether a pattern below ``mount`` may name files that are hidden below a deeper mount point."""
    prefix = mount.rstrip("/")
    if not path.startswith(prefix + "/"):
        return False
    masks = Masks([path])
    deeper = [place.rstrip("/") for place in mounts if place.rstrip("/") != prefix and _holds(mount, place)]
    return any(not _holds(place, _fixed(path)) and masks.may_match_below(place) for place in deeper)


def _holds(place: str, path: str) -> bool:
    return (path.rstrip("/") + "/").startswith(place.rstrip("/") + "/")


def _fixed(mask: str) -> str:
    """The directory before the first wildcard."""
    return re.split(r"[*?]", mask, maxsplit=1)[0].rpartition("/")[0] or "/"


def _windows(system: FileSystem, masks: Sequence[str]) -> Told:
    if not masks:
        return Told()
    found, notes, is_c = [], [], False
    try:
        is_c = system.read_file(_WINDOWS, _MOST_BYTES) is not None
    except Unfit as exc:
        notes.append(f"it cannot be told whether this is C: {exc}")
    for mask in masks:
        drive, own = drive_of(mask)
        if not drive:
            found.append(own)
        elif drive == "C":
            found += [own] if is_c else []
        else:
            notes.append(f"the mask {mask} is not applied: its drive letter is not known")
    return Told(tuple(found), notes=tuple(notes))
