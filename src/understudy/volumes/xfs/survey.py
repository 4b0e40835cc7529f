"""Survey: which bytes of an XFS file system need not be replicated?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from understudy.model.exclusion import Kind
from understudy.model.extent import Extent, merge, span, unite
from understudy.units import KIB
from understudy.volumes import Finding, Hibernated, Image, Unfit, Wishes
from understudy.volumes.gate import checked
from understudy.volumes.masks import Masks
from understudy.volumes.swap import USUAL_FILES, check_header
from understudy.volumes.xfs.directories import Entry, entries
from understudy.volumes.xfs.geometry import Geometry, read_geometry
from understudy.volumes.xfs.groups import Group, read_group
from understudy.volumes.xfs.inodes import Inode, Inodes, Piece
from understudy.volumes.xfs.log import dirt

_PAGE = 4 * KIB
_DEEPEST = 1000


@dataclass
class Xfs:
    """An XFS file system, opened; see :class:`understudy.volumes.FileSystem`."""

    _image: Image
    _geometry: Geometry
    _dirt: str
    kind: str = "xfs"
    _groups: dict[int, Group] = field(default_factory=dict)

    @classmethod
    def open(cls, image: Image) -> Xfs:
        """Read the superblock and judge the log.

        :raises Unfit: if it is damaged, or not of a kind that is known here.
        """
        geometry = read_geometry(image)
        return cls(image, geometry, dirt(image, geometry))

    @property
    def uuid(self) -> str:
        """As in the guest's fstab."""
        return str(self._geometry.uuid)

    @property
    def label(self) -> str:
        """As in the guest's fstab; may be empty."""
        return self._geometry.label

    def read_file(self, path: str, most: int) -> bytes | None:
        """A regular file, by its path from the root; None if there is none, or one of more than ``most`` bytes.

        With a dirty log it may be one that has just been replaced: good for hints only.

        :raises Unfit: if the file system is damaged.
        """
        inodes = self._inodes()
        inode = _look_up(inodes, path)
        if inode is None or inode.size > most or inode.realtime:
            return None
        data = bytearray(inode.size)
        for piece in inodes.pieces(inode):
            at = piece.first * self._geometry.block_size
            length = min(piece.place.length, inode.size - at)
            if length > 0 and not piece.unwritten:
                data[at : at + length] = self._image.read(piece.place.start, length)
        return bytes(data)

    def find(self, wishes: Wishes) -> Finding:
        """What may be left out: nothing, with a note, if the log is dirty.

        :raises Unfit: if the file system is damaged, or two of its parts contradict each other.
        """
        if self._dirt:
            note = f"nothing of the XFS file system is left out: {self._dirt}"
            return Finding(notes=(note,), asleep=self._may_sleep(wishes))
        inodes = self._inodes()
        try:
            swap = list(_swap_files(inodes, wishes.swap_files))
        except Hibernated as exc:
            return Finding(notes=(str(exc),), asleep=True)
        swap = swap if wishes.swap else []
        notes = [note for _, _, note in swap if note]
        swap_extents = [item for _, found, _ in swap for item in found]
        masked: list[Extent] = []
        if wishes.masks is not None:
            walk = _Walk(inodes, wishes.masks, {number for number, _, _ in swap})
            masked = list(walk.run())
            notes.extend(f"{count} files that are to be left out are replicated: {why}"
                         for why, count in sorted(walk.spared.items()))  # fmt: skip
        ranges = self._gated(inodes, swap_extents, masked, free=wishes.free)
        used = self._geometry.blocks - sum(group.free_blocks for group in self._groups.values())
        return Finding(ranges, used * self._geometry.block_size, tuple(notes))

    def _may_sleep(self, wishes: Wishes) -> bool:
        """Whether a swap file holds a hibernated guest, as far as a file system can be read whose log is dirty."""
        try:
            list(_swap_files(self._inodes(), wishes.swap_files))
        except Unfit as exc:
            return isinstance(exc, Hibernated)
        return False

    def _inodes(self) -> Inodes:
        if not self._groups:
            self._groups = {
                number: read_group(self._image, self._geometry, number) for number in range(self._geometry.group_count)
            }
        return Inodes(self._image, self._geometry, self._groups)

    def _gated(
        self, inodes: Inodes, swap: list[Extent], masked: list[Extent], *, free: bool
    ) -> dict[Kind, tuple[Extent, ...]]:
        geometry = self._geometry
        trees = merge(sorted(inodes.trees, key=lambda item: item.start))
        inside = [item for group in self._groups.values() for item in group.metadata]
        forbidden = unite(unite(geometry.headers, [geometry.log]), unite(merge(inside), trees))
        size, unit = geometry.blocks * geometry.block_size, geometry.block_size
        empty = checked((item for group in self._groups.values() for item in group.free), size, unit, forbidden)
        checked([*swap, *masked], size, unit, unite(forbidden, empty))
        found = {Kind.SWAP: checked(swap, size, unit, forbidden), Kind.MASK: checked(masked, size, unit, forbidden)}
        if free:
            found[Kind.FREE] = empty
        return {kind: ranges for kind, ranges in found.items() if ranges}


@dataclass
class _Walk:
    """The files that masks name.

    :ivar apart: inodes that are left out for another reason.
    :ivar spared: how many files are named and not left out, by the reason.
    """

    inodes: Inodes
    masks: Masks
    apart: set[int]
    spared: Counter[str] = field(default_factory=Counter)

    def run(self) -> Iterator[Extent]:
        """The bytes of all of them."""
        root = self.inodes.geometry.root
        seen, pending = {root}, [("", root, 0)]
        while pending:
            path, number, depth = pending.pop()
            directory = self.inodes.get(number)
            if not directory.is_directory or depth > _DEEPEST:
                raise Unfit(f"the XFS inode {number} should be a directory")
            for entry in entries(self.inodes, directory):
                below = f"{path}/{entry.name}"
                if entry.is_directory and self.masks.may_match_below(below):
                    if entry.inode in seen:
                        raise Unfit(f"two XFS directories hold the directory {entry.inode}")
                    seen.add(entry.inode)
                    pending.append((below, entry.inode, depth + 1))
                elif entry.is_file and entry.inode not in self.apart and self.masks.match(below):
                    yield from self._file(entry)

    def _file(self, entry: Entry) -> Iterable[Extent]:
        inode = self.inodes.get(entry.inode)
        if not inode.is_file:
            raise Unfit(f"the XFS inode {entry.inode} should be a file")
        why = _why_spared(inode)
        if why:
            self.spared[why] += 1
            return ()
        return [piece.place for piece in self.inodes.pieces(inode)]


def _why_spared(inode: Inode) -> str:
    if inode.links != 1:
        return "they have several names"
    if inode.realtime:
        return "they lie on another device"
    return "they share blocks with others, or did" if inode.shared else ""


def _look_up(inodes: Inodes, path: str) -> Inode | None:
    """The regular file at a path, in which no link is followed."""
    inode = inodes.get(inodes.geometry.root)
    names = [name for name in path.split("/") if name]
    for position, name in enumerate(names):
        if not inode.is_directory:
            return None
        wanted = next((entry for entry in entries(inodes, inode) if entry.name == name), None)
        if wanted is None or not (wanted.is_file if position == len(names) - 1 else wanted.is_directory):
            return None
        inode = inodes.get(wanted.inode)
    return inode if inode.is_file else None


def _swap_files(inodes: Inodes, more: Iterable[str]) -> Iterator[tuple[int, list[Extent], str]]:
    """Number and bytes of each swap file, or a note why it is not left out; its first page always stays.

    :raises Hibernated: if one holds the memory of a guest.
    """
    seen = set[int]()
    for path in dict.fromkeys((*USUAL_FILES, *more)):
        inode = _look_up(inodes, path)
        if inode is None or inode.number in seen:
            continue
        seen.add(inode.number)
        why = _why_spared(inode)
        if why:
            yield inode.number, [], f"the swap file {path} is replicated: files are not left out if {why}"
            continue
        pieces = inodes.pieces(inode)
        last = _last_page(inodes, inode, pieces)
        if last is not None:
            yield inode.number, list(_pages(pieces, last, inodes.geometry.block_size)), ""


def _last_page(inodes: Inodes, inode: Inode, pieces: list[Piece]) -> int | None:
    """The last page of a swap area that is in use as such; None if the file is none.

    :raises Hibernated: if it holds the memory of a guest.
    """
    header = b""
    for piece in pieces:
        if piece.first * inodes.geometry.block_size != len(header) or piece.unwritten or len(header) >= _PAGE:
            break
        header += inodes.image.read(piece.place.start, min(piece.place.length, _PAGE - len(header)))
    try:
        return check_header(header, inode.size).end // _PAGE - 1
    except Hibernated:
        raise
    except Unfit:
        return None


def _pages(pieces: list[Piece], last: int, block: int) -> Iterator[Extent]:
    """The bytes of all pages but the first, in whole blocks."""
    begin, end = max(_PAGE, block), (last + 1) * _PAGE // block * block
    for piece in pieces:
        at = piece.first * block
        low, high = max(at, begin), min(at + piece.place.length, end)
        if low < high:
            yield span(piece.place.start + low - at, piece.place.start + high - at)
