"""NTFS as the survey sees it: page files, masked files and free clusters, all through one gate.

The log of a volume in use may say what its tables do not say yet: then only a page file that has not moved since the
survey before is left out.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, intersect, merge, total
from understudy.volumes import Finding, Image, Unfit, Wishes
from understudy.volumes.gate import checked
from understudy.volumes.ntfs.bitmap import free_ranges
from understudy.volumes.ntfs.boot import Boot
from understudy.volumes.ntfs.files import FIRST_FILE, Files, Plain
from understudy.volumes.ntfs.fsntfs import Library
from understudy.volumes.ntfs.logfile import HEAD_LENGTH, is_clean
from understudy.volumes.ntfs.mft import Mft, extents, joined, read_runs
from understudy.volumes.ntfs.records import DATA, VOLUME_INFORMATION, Attribute, number_of

_LOGFILE, _VOLUME, _BITMAP, _EXTEND = 2, 3, 6, 11
_UNUSED = range(12, FIRST_FILE)  # records that stand ready for files of later versions
_DIRTY = 1
_PAGE_FILES = ("/pagefile.sys", "/swapfile.sys")
_HIBERNATION = "/hiberfil.sys"
_DUMPS = (b"PAGEDU64", b"PAGEDUMP")
_RESUMED = (b"WAKE", b"wake", bytes(4))
_BOOT_LENGTH = 8 * 1024
_VSS_AT, _VSS = 0x1E00, bytes.fromhex("6b87083876c1484eb7ae04046e6cc752")
_MOST_OWN_FILES = 10_000


@dataclass
class _Search:
    """What is found on the way; ``heads`` are the first clusters of page files, which stay."""

    files: Files
    current: bool
    heads: list[Extent] = field(default_factory=list)
    swap: list[Extent] = field(default_factory=list)
    masks: list[Extent] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    candidates: dict[str, str] = field(default_factory=dict)


class NtfsFileSystem:
    """See :class:`understudy.volumes.FileSystem`."""

    kind = "ntfs"

    def __init__(self, image: Image, boot: Boot, mft: Mft, library: Library) -> None:
        self._image = image
        self._boot = boot
        self._mft = mft
        self._library = library

    @property
    def uuid(self) -> str:
        """The volume's serial number as 16 hexadecimal digits."""
        return f"{self._boot.serial:016x}"

    @property
    def label(self) -> str:
        """The volume's name."""
        return self._library.label

    def read_file(self, path: str, most: int) -> bytes | None:
        """As :meth:`FileSystem.read_file`; the case of the path does not count."""
        found = self._library.find(path)
        return found.content(most) if found is not None else None

    def find(self, wishes: Wishes) -> Finding:
        """As :meth:`FileSystem.find`."""
        free = free_ranges(self._bitmap(), self._boot.clusters, self._boot.cluster)
        used = self._boot.size - total(free)
        if self._is_hibernated():
            return Finding(used=used, notes=("Windows is hibernated on the volume",), asleep=True)
        search = _Search(Files(self._boot, self._mft), wishes.quiesced or self._was_unmounted())
        if wishes.swap:
            for path in (*_PAGE_FILES, _HIBERNATION):
                self._add_page_file(search, path, wishes)
        if wishes.masks:
            self._add_masked(search, wishes)
        ranges = self._passed(search, free, leave_out=wishes.free and self._may_leave_out_free(search, wishes))
        return Finding(ranges, used, tuple(search.notes), search.candidates)

    def _add_page_file(self, search: _Search, path: str, wishes: Wishes) -> None:
        plain = self._in_root(search, path)
        if plain is None:
            return
        if not plain.is_whole:
            search.notes.append(f"{path} is compressed or sparse and is replicated")
            return
        if not plain.runs:
            return
        if self._image.read(plain.runs[0].start, 8) in _DUMPS:
            search.notes.append(f"{path} holds a crash dump and is replicated")
            return
        search.candidates[path] = _digest(plain.runs)
        if not search.current and wishes.seen.get(path) != search.candidates[path]:
            search.notes.append(f"{path} is replicated until it is found at the same place once more")
            return
        first, *others = plain.runs
        search.heads.append(Extent(first.start, self._boot.cluster))
        rest = Extent(first.start + self._boot.cluster, first.length - self._boot.cluster)
        search.swap += [rest, *others] if rest.length else others

    def _in_root(self, search: _Search, path: str) -> Plain | None:
        root = self._library.root
        entry = self._library.find(path)
        if entry is None or entry.is_directory:
            return None
        plain = search.files.plain(entry, path, root.reference)
        if plain is None:
            search.notes.append(f"{path} has several names, is encrypted or a reparse point, and is replicated")
        return plain

    def _add_masked(self, search: _Search, wishes: Wishes) -> None:
        if not search.current:
            search.notes.append(_needs_proof("masks", wishes))
            return
        besides = (*_PAGE_FILES, _HIBERNATION) if wishes.swap else ()
        assert wishes.masks is not None
        for plain in search.files.named(self._library.root, wishes.masks, besides):
            search.masks += plain.runs
        if search.files.kept:
            search.notes.append(f"{search.files.kept} files that the masks name have several names, are encrypted or "
                                "reparse points, and are replicated")  # fmt: skip

    def _may_leave_out_free(self, search: _Search, wishes: Wishes) -> bool:
        if not search.current:
            search.notes.append(_needs_proof("free clusters", wishes))
            return False
        if self._image.read(_VSS_AT, len(_VSS)) == _VSS:
            search.notes.append("free clusters are replicated: the volume has shadow copies")
            return False
        return True

    def _passed(self, search: _Search, free: Sequence[Extent], *, leave_out: bool) -> dict[Kind, tuple[Extent, ...]]:
        """The ranges by kind, all through the gate, also against one another."""
        size, unit = self._boot.size, self._boot.cluster
        forbidden = self._forbidden(search.files.metadata)
        claimed = checked([*search.heads, *search.swap, *search.masks], size, unit, forbidden)
        loose = intersect(claimed, free)
        if loose:
            raise Unfit(f"a file claims the free cluster at {loose[0].start}")
        if intersect(free, forbidden):
            raise Unfit("a cluster of the file system's own files is free")
        kinds = {Kind.SWAP: search.swap, Kind.MASK: search.masks, Kind.FREE: list(free) if leave_out else []}
        return {kind: checked(found, size, unit, forbidden) for kind, found in kinds.items() if found}

    def _forbidden(self, indexes: Iterable[Extent]) -> list[Extent]:
        """Where the file system's own files lie, and the indexes of directories."""
        found = [Extent(0, max(_BOOT_LENGTH, self._boot.cluster)), *indexes]
        for number in range(FIRST_FILE):
            found += self._places(number)
        waiting = [self._mft.record(_EXTEND) and self._library.find("/$Extend")]
        count = 0
        while waiting:
            directory = waiting.pop()
            for entry in directory.children() if directory else ():
                count += 1
                if count > _MOST_OWN_FILES:
                    raise Unfit("the NTFS has too many files of its own")
                found += self._places(number_of(entry.reference))
                if entry.is_directory:
                    waiting.append(entry)
        return merge(sorted(found, key=lambda item: item.start))

    def _places(self, number: int) -> list[Extent]:
        """Everything of a file that does not lie in its record."""
        if number in _UNUSED and not self._mft.is_written(number):
            return []
        record = self._mft.record(number)
        if record is None or (record.base and number in _UNUSED):
            return []  # the MFT's own list of attributes may go on in the latter
        if record.base:
            raise Unfit("a file of the file system's own is damaged")
        return [place for item in self._mft.attributes(record) for place in extents(item.runs, self._boot.cluster)]

    def _own(self, number: int) -> Attribute:
        """The data of one of the file system's own files."""
        record = self._mft.record(number)
        if record is None or record.base:
            raise Unfit("a file of the file system's own is missing")
        data = joined(item for item in self._mft.attributes(record) if item.type == DATA and not item.name)
        if data.resident or data.flags or any(run.first is None for run in data.runs):
            raise Unfit("a file of the file system's own is damaged")
        return data

    def _bitmap(self) -> Callable[[int, int], bytes]:
        data = self._own(_BITMAP)
        if data.size * 8 < self._boot.clusters:
            raise Unfit("the bitmap of the NTFS is too short")
        return lambda offset, length: read_runs(self._image, self._boot, data.runs, offset, length)

    def _was_unmounted(self) -> bool:
        """Whether nothing has used the volume since Windows unmounted it cleanly."""
        record = self._mft.record(_VOLUME)
        about = [item.value for item in record.attributes if item.type == VOLUME_INFORMATION] if record else []
        if len(about) != 1 or len(about[0]) < 12:
            raise Unfit("the NTFS does not say what volume it is")
        (flags,) = struct.unpack_from("<H", about[0], 10)
        log = self._own(_LOGFILE)
        head = read_runs(self._image, self._boot, log.runs, 0, HEAD_LENGTH) if log.size >= HEAD_LENGTH else b""
        return not flags & _DIRTY and is_clean(head)

    def _is_hibernated(self) -> bool:
        """Whether the guest goes on from what is in its memory file: then its page file belongs to that memory."""
        entry = self._library.find(_HIBERNATION)
        if entry is None or entry.is_directory:
            return False
        head = entry.start(4)
        return bool(head) and head not in _RESUMED


def _needs_proof(what: str, wishes: Wishes) -> str:
    needed = f"{what} need a snapshot of frozen file systems, or a volume that was unmounted"
    return f"{needed}; {wishes.doubt}" if wishes.doubt else needed


def _digest(runs: Sequence[Extent]) -> str:
    return hashlib.sha256(";".join(f"{run.start}+{run.length}" for run in runs).encode()).hexdigest()
