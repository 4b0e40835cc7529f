"""The ext reader: from an image to what may be left out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, merge, unite
from understudy.volumes import Finding, Hibernated, Image, Unfit, Wishes
from understudy.volumes.ext import superblock as sb
from understudy.volumes.ext.bitmaps import free_ranges, require_allocated, used_bytes
from understudy.volumes.ext.files import Files
from understudy.volumes.ext.groups import Groups
from understudy.volumes.ext.inodes import Inode
from understudy.volumes.ext.journal import is_empty, replayed
from understudy.volumes.ext.maps import Run
from understudy.volumes.ext.superblock import Superblock, read_superblock
from understudy.volumes.gate import checked
from understudy.volumes.masks import Masks
from understudy.volumes.swap import HEADER_LENGTH, USUAL_FILES, check_header

_VALID, _ERRORS = 0x1, 0x2
#: More pieces of files than this are not worth their memory.
_MOST_RANGES = 2_000_000


@dataclass(frozen=True)
class _Search:
    """What one search has found up to now; ranges are neither sorted nor checked.

    :ivar memories: swap files that hold the memory of a hibernated guest.
    """

    files: Files
    swap: list[Extent] = field(default_factory=list)
    masks: list[Extent] = field(default_factory=list)
    swap_inodes: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    memories: list[str] = field(default_factory=list)


class ExtFileSystem:
    """An ext2, ext3 or ext4 file system, its journal replayed in memory."""

    def __init__(self, image: Image, journal: Sequence[Run]) -> None:
        self._image = image
        self._layout = read_superblock(image)
        if self._layout.state & _ERRORS:
            raise Unfit("the guest has recorded errors of the file system: it needs a check (fsck)")
        self._groups = Groups(image, self._layout)
        self._journal = journal

    @property
    def kind(self) -> str:
        """``ext2``, ``ext3`` or ``ext4``."""
        return self._layout.kind

    @property
    def uuid(self) -> str:
        """As in the guest's fstab."""
        return self._layout.uuid_text

    @property
    def label(self) -> str:
        """As in the guest's fstab."""
        return self._layout.label

    def read_file(self, path: str, most: int) -> bytes | None:
        """As :meth:`FileSystem.read_file`."""
        files = Files(self._image, self._groups)
        inode = files.find(path)
        if inode is None or inode.size > most or not inode.has_plain_data:
            return None
        return files.start_of(inode, inode.size)

    def find(self, wishes: Wishes) -> Finding:
        """As :meth:`FileSystem.find`."""
        self._require_current(wishes)
        search = _Search(Files(self._image, self._groups))
        for path in dict.fromkeys((*USUAL_FILES, *wishes.swap_files)):
            self._add_swap_file(search, path, leave_out=wishes.swap)
        if wishes.masks:
            self._add_masked(search, wishes.masks)
        free = self._free(search) if wishes.free else []
        ranges = self._passed(search, free)
        return Finding(ranges, used_bytes(self._groups), tuple(search.notes), asleep=bool(search.memories))

    def _require_current(self, wishes: Wishes) -> None:
        """Without a journal, nothing shows whether the newest metadata is on the disk."""
        if self._layout.compat & sb.HAS_JOURNAL:
            return
        if not wishes.quiesced:
            raise Unfit("it has no journal, and was not frozen when the snapshot was taken")
        if not self._layout.state & _VALID:
            raise Unfit("it has no journal, and was not unmounted or frozen cleanly")

    def _add_swap_file(self, search: _Search, path: str, *, leave_out: bool) -> None:
        inode = search.files.find(path)
        if inode is None or inode.number in search.swap_inodes or not inode.has_plain_data:
            return
        head = search.files.start_of(inode, min(HEADER_LENGTH, inode.size))  # what is damaged there condemns the volume
        try:
            header = check_header(head, inode.size)
        except Hibernated:
            search.swap_inodes.add(inode.number)
            search.memories.append(path)
            search.notes.append(f"{path} holds the memory of a hibernated guest and is replicated")
            return
        except Unfit:  # a file of that name that is no swap file
            return
        if not leave_out:
            return
        search.swap_inodes.add(inode.number)
        if inode.links != 1:
            search.notes.append(f"{path} has several names and is replicated")
            return
        size = self._layout.block_size
        search.swap.extend(_within(search.files.runs(inode), -(-header.keep // size), header.end // size, size))

    def _add_masked(self, search: _Search, masks: Masks) -> None:
        size = self._layout.block_size
        several = special = 0
        for inode in search.files.matching(masks):
            if inode.number in search.swap_inodes:
                continue
            if inode.links != 1:
                several += 1
                continue
            if not inode.has_plain_data:
                special += 1
                continue
            search.masks.extend(Extent(run.block * size, run.blocks * size) for run in search.files.runs(inode))
            if len(search.masks) > _MOST_RANGES:
                raise Unfit("the files that the masks name lie in too many pieces")
        if search.files.unsearched:
            search.notes.append(
                f"directories that the masks speak of, {len(search.files.unsearched)} in number, keep their names in "
                "their inodes (inline_data) or are encrypted: what lies below them is replicated"
            )
        if several:
            search.notes.append(f"{several} files that the masks name have several names and are replicated")
        if special:
            search.notes.append(f"{special} files that the masks name lie in their inodes or are encrypted")

    def _free(self, search: _Search) -> list[Extent]:
        if self._layout.ro_compat & sb.BIGALLOC:
            search.notes.append("free blocks are replicated: the file system uses bigalloc")
            return []
        found = free_ranges(self._image, self._groups)
        if found is None:
            search.notes.append("free blocks are replicated: they lie in too many pieces")
        return found or []

    def _passed(self, search: _Search, free: list[Extent]) -> dict[Kind, tuple[Extent, ...]]:
        """The ranges by kind, all through the gate, also against one another."""
        size = self._layout.block_size
        limit = self._layout.blocks * size
        journal = sorted((Extent(run.block * size, run.blocks * size) for run in self._journal), key=_start)
        forbidden = unite(unite(self._groups.metadata(), merge(journal)), merge(search.files.metadata()))
        claimed = checked([*search.swap, *search.masks], limit, size, forbidden)
        require_allocated(self._image, self._groups, claimed)
        kinds = {Kind.SWAP: search.swap, Kind.MASK: search.masks, Kind.FREE: free}
        checked([*claimed, *free], limit, size, forbidden)
        return {kind: checked(found, limit, size, forbidden) for kind, found in kinds.items() if found}


def open_ext(image: Image) -> ExtFileSystem:
    """The file system, as it will be when the guest has replayed its journal.

    :raises Unfit: if it must not be used: damaged, with unknown features, or with a journal that lies elsewhere.
    """
    layout = read_superblock(image)
    if not layout.compat & sb.HAS_JOURNAL:
        if layout.incompat & sb.RECOVER:
            raise Unfit("it needs the replay of a journal that it does not have")
        return ExtFileSystem(image, ())
    if not layout.journal_inode:
        raise Unfit("its journal lies on another device")
    files = Files(image, Groups(image, layout))
    inode = files.inode(layout.journal_inode)
    runs = _journal_runs(files, inode, layout)
    blocks = inode.size // layout.block_size
    if not layout.incompat & sb.RECOVER:
        if not is_empty(image, runs, layout.block_size, blocks):
            raise Unfit("its journal is not empty, but the superblock says so")
        return ExtFileSystem(image, runs)
    if layout.compat & sb.FAST_COMMIT:
        raise Unfit("its journal may hold fast commits, which cannot be replayed")
    return ExtFileSystem(replayed(image, runs, layout.block_size, blocks, layout.blocks), runs)


def _journal_runs(files: Files, inode: Inode, layout: Superblock) -> list[Run]:
    if not inode.is_regular or not inode.links or not inode.has_plain_data:
        raise Unfit("the inode of its journal is damaged")
    runs = files.runs(inode)
    places = [Extent(run.block * layout.block_size, run.blocks * layout.block_size) for run in runs]
    checked(places, layout.blocks * layout.block_size, layout.block_size, ())
    return runs


def _within(runs: Sequence[Run], first: int, after: int, block_size: int) -> Iterator[Extent]:
    """What of the runs lies in blocks ``first..after`` of the file, as ranges of the volume."""
    for run in runs:
        start, end = max(run.logical, first), min(run.logical + run.blocks, after)
        if start < end:
            yield Extent((run.block + start - run.logical) * block_size, (end - start) * block_size)


def _start(item: Extent) -> int:
    return item.start
