"""Files of NTFS: whose clusters may be left out, and where do they lie?

A file that is not plain is kept; that what the directory, the record and the library say of a file differs condemns
the volume.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from understudy.model.extent import Extent, merge
from understudy.volumes import Unfit
from understudy.volumes.masks import Masks
from understudy.volumes.ntfs import records
from understudy.volumes.ntfs.boot import Boot
from understudy.volumes.ntfs.fsntfs import Entry
from understudy.volumes.ntfs.mft import Mft, extents, joined
from understudy.volumes.ntfs.records import Attribute, Record, file_name, number_of

ROOT = 5
#: Records below are those of the file system's own files.
FIRST_FILE = 24

_EXTEND, _VOLUME_INFORMATION = "$extend", "system volume information"
_REPARSE, _OFFLINE, _ENCRYPTED = 0x400, 0x1000, 0x4000
_DEEPEST = 512


@dataclass(frozen=True)
class Plain:
    """A file whose data lies in clusters of its own.

    :ivar runs: its extents in the order of the file, in bytes of the volume.
    """

    path: str
    runs: tuple[Extent, ...]
    is_whole: bool


class Files:
    """The files of a volume.

    :ivar kept: how many files that were asked for are kept, as they are not plain.
    :ivar metadata: where indexes of the directories lie that were walked, and their attributes.
    """

    def __init__(self, boot: Boot, mft: Mft) -> None:
        self._boot = boot
        self._mft = mft
        self.kept = 0
        self.metadata: list[Extent] = []

    def named(self, root: Entry, masks: Masks, besides: Sequence[str]) -> Iterator[Plain]:
        """The plain files that masks name, without those at paths ``besides``, given in lower case.

        :raises Unfit: if a directory or a file is damaged.
        """
        visited = {ROOT}
        waiting = [(root, "", 0)]
        while waiting:
            directory, above, depth = waiting.pop()
            for entry in directory.children():
                path = f"{above}/{entry.name}"
                if not entry.name or "/" in entry.name or "\\" in entry.name or self._is_own(entry, above):
                    continue
                if entry.is_directory:
                    if masks.may_match_below(path) and self._enter(entry, visited, depth):
                        waiting.append((entry, path, depth + 1))
                elif path.lower() not in besides and masks.match(path):
                    plain = self.plain(entry, path, directory.reference)
                    if plain is None:
                        self.kept += 1
                    elif plain.runs:
                        yield plain

    def plain(self, entry: Entry, path: str, directory: int) -> Plain | None:
        """The file, None if it is not plain: it has several names, is encrypted, a reparse point, or of odd holes.

        :raises Unfit: if it is damaged.
        """
        record = self._mft.file(entry.reference)
        attributes = self._mft.attributes(record)
        if record.number < FIRST_FILE or record.is_directory or _is_special(attributes):
            return None
        if not _has_one_name(record, attributes, entry.name, directory):
            return None
        data = joined(item for item in attributes if item.type == records.DATA and not item.name)
        if data.resident:
            return Plain(path, (), is_whole=True)
        if data.flags & records.ENCRYPTED:
            return None
        runs = extents(data.runs, self._boot.cluster)
        if not self._agree(entry, data, runs):
            return None
        return Plain(path, tuple(runs), is_whole=not data.flags and len(runs) == len(data.runs))

    def _agree(self, entry: Entry, data: Attribute, runs: Sequence[Extent]) -> bool:
        """Whether all clusters are there, as many as the file says.

        Drivers differ in how they count those of a file with holes; of another one it is damage.

        :raises Unfit: if it is, or the library knows other clusters.
        """
        theirs = [Extent(start, length) for start, length in entry.extents()]
        if _normal(theirs) != _normal(runs):
            raise Unfit(f"two readers do not agree about the clusters of the file {entry.name}")
        size = sum(run.count for run in data.runs) * self._boot.cluster
        stored = sum(run.length for run in runs)
        agree = size == data.allocated and size >= data.size and stored == data.stored
        if not agree and not data.flags:
            raise Unfit(f"the clusters of the file {entry.name} are not as many as it says")
        return agree

    def _is_own(self, entry: Entry, above: str) -> bool:
        own = number_of(entry.reference) < FIRST_FILE
        return own or (not above and entry.name.lower() in (_EXTEND, _VOLUME_INFORMATION))

    def _enter(self, entry: Entry, visited: set[int], depth: int) -> bool:
        """Whether a directory is one, and not a junction to another."""
        record = self._mft.file(entry.reference)
        if record.number in visited or depth > _DEEPEST:
            raise Unfit("the directories of the NTFS go round in a circle")
        visited.add(record.number)
        attributes = self._mft.attributes(record)
        if not record.is_directory or any(item.type == records.REPARSE_POINT for item in attributes):
            return False
        for item in attributes:
            self.metadata += extents(item.runs, self._boot.cluster)
        return True


def _is_special(attributes: Sequence[Attribute]) -> bool:
    if any(item.type == records.REPARSE_POINT for item in attributes):
        return True
    standard = [item.value for item in attributes if item.type == records.STANDARD_INFORMATION]
    if len(standard) != 1 or len(standard[0]) < 36:
        raise Unfit("a file has no attributes")
    (flags,) = struct.unpack_from("<I", standard[0], 32)
    return bool(flags & (_REPARSE | _OFFLINE | _ENCRYPTED))


def _has_one_name(record: Record, attributes: Sequence[Attribute], name: str, directory: int) -> bool:
    """A DOS name goes with the long one, and is none of its own.

    :raises Unfit: if the file's name is not that of the directory.
    """
    names = [file_name(item) for item in attributes if item.type == records.FILE_NAME]
    own = [item for item in names if item.space != records.DOS_NAME]
    if record.links not in (len(names), len(own)):
        raise Unfit(f"the file {name} does not have as many names as it says")
    if len(own) != 1:
        return False
    if own[0].name.lower() != name.lower() or own[0].parent != directory:
        raise Unfit(f"the file {name} and its directory do not name each other")
    return True


def _normal(ranges: Sequence[Extent]) -> list[Extent]:
    return merge(sorted(ranges, key=lambda item: item.start))
