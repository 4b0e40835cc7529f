"""Volumes: which bytes of a guest's disks need not be replicated? What the readers of file systems share.

A reader never guesses: what it does not know, or cannot prove to be current, it refuses with :class:`Unfit`, and then
nothing of that volume is left out. Everything here reads through :class:`Image` and has no other effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from understudy.model.exclusion import Kind
from understudy.model.extent import Extent
from understudy.volumes.masks import Masks


class Image(Protocol):
    """Bytes of a disk or of a volume on it."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset`` on.

        :raises Unfit: if they lie outside, or cannot be read.
        """


class Unfit(Exception):
    """Nothing of a volume may be left out; the message says why, to an administrator."""


class Hibernated(Unfit):
    """The memory of a guest that sleeps lies there: when it wakes up, it goes on with all its disks as they were."""


@dataclass(frozen=True)
class Wishes:
    """What to leave out of one volume.

    :ivar swap: swap areas, and swap and page files.
    :ivar swap_files: paths from the volume's root of files that may be swap files, besides those of usual names.
    :ivar masks: files to leave out, by their paths from the volume's root; None for none.
    :ivar free: blocks that hold no file.
    :ivar quiesced: the guest's file systems were frozen when the snapshot was taken.
    :ivar doubt: why that is not said of this volume though the guest was frozen, to an administrator; else empty.
    :ivar seen: :attr:`Finding.candidates` of the survey before, of the same volume.
    """

    swap: bool = True
    swap_files: tuple[str, ...] = ()
    masks: Masks | None = None
    free: bool = False
    quiesced: bool = False
    doubt: str = ""
    seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What may be left out of one volume.

    :ivar ranges: bytes of the volume by kind: exact, sorted, disjoint, also between the kinds.
    :ivar used: bytes of the volume that its file system says are in use.
    :ivar notes: what was wished for and is not left out, and why; each a sentence for an administrator.
    :ivar candidates: places of files that may only be left out if they have not moved since the survey before: a digest
        of their extents, by path.
    :ivar asleep: the memory of a guest that sleeps lies there, see :class:`Hibernated`.
    """

    ranges: Mapping[Kind, tuple[Extent, ...]] = field(default_factory=dict)
    used: int = 0
    notes: tuple[str, ...] = ()
    candidates: Mapping[str, str] = field(default_factory=dict)
    asleep: bool = False


class FileSystem(Protocol):
    """A file system that a reader has recognised and opened."""

    @property
    def kind(self) -> str:
        """As the guest calls it: ``ext4``, ``xfs``, ``ntfs``."""

    @property
    def uuid(self) -> str:
        """As in the guest's fstab, in lower case; empty if it has none."""

    @property
    def label(self) -> str:
        """As in the guest's fstab; may be empty."""

    def read_file(self, path: str, most: int) -> bytes | None:
        """A regular file, by its path from the root; None if there is none, or one of more than ``most`` bytes.

        :raises Unfit: if the file system is damaged.
        """

    def find(self, wishes: Wishes) -> Finding:
        """What may be left out.

        :raises Unfit: if nothing may.
        """
