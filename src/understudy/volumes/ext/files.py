"""Files: from a path to an inode, and through the directories that masks speak of."""

from __future__ import annotations

from collections.abc import Iterator

from understudy.model.extent import Extent
from understudy.volumes import Image, Unfit
from understudy.volumes.ext.contents import read_blocks, read_start
from understudy.volumes.ext.directories import DIRECTORY, REGULAR, UNKNOWN, Entry, entries
from understudy.volumes.ext.groups import Groups
from understudy.volumes.ext.inodes import ROOT, Inode, Inodes
from understudy.volumes.ext.maps import Maps, Run
from understudy.volumes.masks import Masks

#: Longer than any path a program can name; what is deeper is replicated.
_LONGEST_PATH = 4096


class Files:
    """Names, inodes and maps of one file system.

    :ivar unsearched: inodes of directories whose names lie where the reader does not look.
    """

    def __init__(self, image: Image, groups: Groups) -> None:
        self._image = image
        self._layout = groups.layout
        self._inodes = Inodes(image, groups)
        self._maps = Maps(image, groups.layout)
        self._directories: dict[int, list[Run]] = {}
        self.unsearched: set[int] = set()

    def inode(self, number: int) -> Inode:
        """One inode, whoever it belongs to.

        :raises Unfit: if it is damaged.
        """
        return self._inodes.inode(number)

    def runs(self, inode: Inode) -> list[Run]:
        """As :meth:`Maps.runs`."""
        return self._maps.runs(inode)

    def start_of(self, inode: Inode, length: int) -> bytes:
        """The first ``length`` bytes of a file with plain data.

        :raises Unfit: if it is damaged.
        """
        return read_start(self._image, self.runs(inode), self._layout.block_size, length)

    def find(self, path: str) -> Inode | None:
        """The regular file at a path from the root; links are not followed. None if there is none.

        :raises Unfit: if a directory on the way is damaged.
        """
        names = [name for name in path.split("/") if name]
        found = self._directory(ROOT)
        for position, name in enumerate(names, 1):
            entry = next((entry for entry in self._entries(found) if entry.name == name), None)
            if entry is None:
                return None
            found = self._named(entry)
            if position < len(names) and not found.is_directory:
                return None
        return found if found.is_regular and names else None

    def matching(self, masks: Masks) -> Iterator[Inode]:
        """The regular files that masks name, in no order; directories without any are not entered.

        :raises Unfit: if a directory is damaged, or is in two places.
        """
        waiting = [(ROOT, "")] if masks.may_match_below("/") else []
        seen = {ROOT}
        while waiting:
            number, above = waiting.pop()
            files, below = self._chosen(self._directory(number), above, masks)
            # Inodes of one directory lie together, its names do not.
            for entry in sorted(files):
                inode = self._named(entry)
                if inode.is_regular:
                    yield inode
            for entry in below:
                if entry.inode in seen:
                    raise Unfit(f"the directory with the inode {entry.inode} is in two places")
                seen.add(entry.inode)
                waiting.append((entry.inode, f"{above}/{entry.name}"))

    def metadata(self) -> list[Extent]:
        """The blocks of directories and maps that were read up to now, sorted."""
        size = self._layout.block_size
        found = [Extent(block * size, size) for block in self._maps.nodes]
        for runs in self._directories.values():
            found += [Extent(run.block * size, run.blocks * size) for run in runs]
        return sorted(found, key=lambda item: item.start)

    def _chosen(self, directory: Inode, above: str, masks: Masks) -> tuple[list[Entry], list[Entry]]:
        """Entries that may be files which masks name, and directories to enter."""
        files: list[Entry] = []
        below: list[Entry] = []
        for entry in self._entries(directory):
            path = f"{above}/{entry.name}"
            kind = entry.kind
            if kind == UNKNOWN:
                inode = self._named(entry)
                kind = DIRECTORY if inode.is_directory else REGULAR if inode.is_regular else -1
            if kind == REGULAR and masks.match(path):
                files.append(entry)
            elif kind == DIRECTORY and len(path) <= _LONGEST_PATH and masks.may_match_below(path):
                below.append(entry)
        return files, below

    def _entries(self, directory: Inode) -> Iterator[Entry]:
        if not directory.has_plain_data:
            self.unsearched.add(directory.number)
            return
        runs = self.runs(directory)
        self._directories[directory.number] = runs
        size = self._layout.block_size
        yield from entries(self._layout, directory, read_blocks(self._image, runs, size, -(-directory.size // size)))

    def _directory(self, number: int) -> Inode:
        inode = self.inode(number)
        if not inode.is_directory or not inode.links:
            raise Unfit(f"the inode {number} is no directory, but a directory says so")
        return inode

    def _named(self, entry: Entry) -> Inode:
        if entry.inode < self._layout.first_inode:
            raise Unfit(f"a directory names the inode {entry.inode}, which is the file system's own")
        inode = self.inode(entry.inode)
        kinds = {REGULAR: inode.is_regular, DIRECTORY: inode.is_directory}
        if not inode.links or not kinds.get(entry.kind, True):
            raise Unfit(f"a directory and the inode {entry.inode} do not agree on what it is")
        return inode
