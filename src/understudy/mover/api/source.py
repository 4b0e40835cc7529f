"""Operations of the source side."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.model.access import DiskLibrary
from understudy.model.replica import FileMark
from understudy.model.snapshot import LibraryExport
from understudy.mover.api.export import NbdSource


@dataclass(frozen=True)
class PrepareScratch:
    """Make ``directory`` (parents too) so that the emulator, user ``uid`` and group ``gid``, can write there."""

    directory: str
    uid: int
    gid: int


@dataclass(frozen=True)
class ScratchFacts:
    """Space in the scratch directory."""

    free_bytes: int


@dataclass(frozen=True)
class ProbeImage:
    """Ask what an image file is; it may be in use."""

    image: str
    image_format: str


@dataclass(frozen=True)
class ImageFacts:
    """What an image file is.

    :ivar can_track: it can hold dirty bitmaps (qcow2 version 3).
    :ivar bitmaps: the consistent bitmaps in it; those of a running VM are in its memory and do not show.
    :ivar open_bitmaps: those that are in use by a running VM, or were when its QEMU or host crashed.
    :ivar file: its file; None for a block device.
    """

    can_track: bool
    bitmaps: tuple[str, ...]
    open_bitmaps: tuple[str, ...] = ()
    file: FileMark | None = None


@dataclass(frozen=True)
class RemoveBitmap:
    """Remove the dirty bitmap ``name`` from an image that nobody has open; an image without it is no error.

    :ivar tag: what the name must begin with, so that no bitmap of somebody else is ever removed.
    """

    image: str
    name: str
    tag: str


@dataclass(frozen=True)
class ReadNvram:
    """Read the file with a VM's UEFI variables."""

    path: str


@dataclass(frozen=True)
class NvramContent:
    """UEFI variables in base64; empty if the VM was never started and so has no file yet."""

    content: str


@dataclass(frozen=True)
class OpenExport:
    """Serve an image read-only with qemu-nbd: a powered-off VM's disk, or the base below a snapshot delta.

    :ivar bitmap: dirty bitmap in the image to export, or empty.
    """

    image: str
    image_format: str
    bitmap: str
    tag: str


@dataclass(frozen=True)
class OpenLibraryExport:
    """Serve a disk through the vendor's disk library.

    :ivar writable: it can be written, too: a disk of a VM that is powered off, without a snapshot reference.
    """

    export: LibraryExport
    tag: str
    writable: bool = False


@dataclass(frozen=True)
class ProbeLibrary:
    """Ask whether the vendor's disk library can be used."""

    library: DiskLibrary


@dataclass(frozen=True)
class LibraryFacts:
    """What a proxy has to reach disks through the vendor's disk library.

    :ivar server_version: of nbdkit; empty if it is missing.
    :ivar plugin_version: of its plugin; empty if it is missing.
    :ivar library_version: of the library, as far as it tells; empty if it cannot be loaded.
    :ivar problem: why it cannot be used, and what to do; empty if it can.
    """

    server_version: str = ""
    plugin_version: str = ""
    library_version: str = ""
    problem: str = ""


@dataclass(frozen=True)
class OpenedExport:
    """An export of :class:`OpenExport` or :class:`OpenLibraryExport`, which :class:`CloseExport` ends."""

    id: str
    source: NbdSource


@dataclass(frozen=True)
class ReadSample:
    """Read some bytes of an export, spread over the disk: whether it can be read, and how fast. Nothing is kept.

    :ivar length: at most so many bytes; the whole disk if it is smaller.
    """

    source: NbdSource
    length: int


@dataclass(frozen=True)
class SampleRead:
    """What was read of ``size`` bytes; ``zero_bytes`` of the ``read_bytes`` were in pieces of zeros."""

    size: int
    read_bytes: int
    zero_bytes: int
    seconds: float


@dataclass(frozen=True)
class CloseExport:
    """End an export; unknown ids are no error."""

    id: str


@dataclass(frozen=True)
class EndLeftovers:
    """End what a dead session left running at a source proxy that outlived it.

    :ivar replica_id: transfers that read for this replica are cancelled; none if it is empty.
    :ivar tag: exports whose tag begins so are closed.
    """

    replica_id: str
    tag: str


@dataclass(frozen=True)
class RemoveTagged:
    """Remove plain files and sockets in ``directory`` whose name begins with ``tag``, but has none of ``keep``.

    :ivar images: ``(file, format)`` of images that VMs use; snapshot deltas below them stay, too.
    """

    directory: str
    tag: str
    keep: tuple[str, ...] = ()
    images: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Removed:
    """Paths that were removed."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class DigestRef:
    """A source side digest copy: which replica, disk and point. As a request: answered by :class:`DigestHolding`."""

    replica_id: str
    disk: str
    point: str


@dataclass(frozen=True)
class DigestHolding:
    """Whether the source mover holds a usable digest copy of the point."""

    usable: bool


@dataclass(frozen=True)
class KeepDigests:
    """The point was published: keep the source side digest copies that its transfers made, drop those of older points.

    :ivar also: older points whose copies stay: the one since which changes are tracked, if it is not this one.

    Again is no error. :class:`~understudy.errors.NotFound` if a disk has no copy of this point.
    """

    replica_id: str
    point: str
    disks: tuple[str, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class DropDigests:
    """Remove source side digest copies, unfinished ones too: of one ``point``, or all of the replica if it is empty."""

    replica_id: str
    point: str = ""
