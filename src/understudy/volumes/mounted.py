"""Mounted: volumes as the guest that mounts them knows them, and what their readers are told of its masks."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.volumes import FileSystem
from understudy.volumes.masks import Masks


@dataclass(frozen=True)
class Mounted:
    """A file system, and what the guest may call it, see :mod:`understudy.volumes.device_names`."""

    system: FileSystem
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Told:
    """What a volume's reader is told.

    :ivar masks: None for none.
    :ivar swap_files: paths from the volume's root.
    :ivar notes: what of the masks is not applied to it, and why.
    """

    masks: Masks | None = None
    swap_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
