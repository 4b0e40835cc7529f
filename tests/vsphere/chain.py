"""DiskChain: the files of one virtual disk in a datastore folder, as snapshots make and unmake them.

On ESXi a snapshot leaves the file where it is and the VM writes on into a new delta, `-000001.vmdk`; removing the
snapshot merges the delta into the file below. Here each file of a chain holds the whole content of its instant, so a
delta is a copy, and merging is renaming; names, parents and contents are what a client of ESXi would see.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_DELTA = re.compile(r"-\d{6}\.vmdk$")


class Locked(Exception):
    """The disk library has the file open."""


@dataclass(eq=False)
class Node:
    """One file of a chain."""

    path: str
    parent: Node | None

    @property
    def below(self) -> list[Node]:
        """Its ancestors, nearest first."""
        found, node = [], self.parent
        while node is not None:
            found.append(node)
            node = node.parent
        return found


class DiskChain:
    """A disk's live file and those that its snapshots keep."""

    def __init__(self, path: str, folder: Path) -> None:
        self._folder = folder
        self.live = Node(path, None)
        self.frozen: dict[str, Node] = {}

    def file(self, node: Node) -> Path:
        """The local file with the node's bytes."""
        return flat_file(self._folder, node.path)

    @property
    def nodes(self) -> list[Node]:
        """All files of the disk, each once."""
        found: dict[int, Node] = {}
        for tip in (self.live, *self.frozen.values()):
            for node in (tip, *tip.below):
                found[id(node)] = node
        return list(found.values())

    def freeze(self, snapshot: str) -> None:
        """The live content becomes the snapshot's, and the VM writes into a new delta."""
        self.frozen[snapshot] = self.live
        self.live = self._delta_of(self.live)

    def revert(self, snapshot: str) -> None:
        """The live content becomes the snapshot's again, in a new delta; what was written since is gone."""
        dropped = self.live
        self.live = self._delta_of(self.frozen[snapshot])
        self.discard([dropped])

    def forget(self, snapshot: str) -> None:
        """The snapshot keeps nothing any more; `merge` then removes what only it kept."""
        del self.frozen[snapshot]

    @property
    def superfluous(self) -> list[Node]:
        """Files that neither the VM nor a snapshot stands on and that have one child at most: they can be merged."""
        kept = [self.live, *self.frozen.values()]
        nodes = self.nodes
        return [
            node for node in nodes if node not in kept and sum(child.parent is node for child in nodes) < 2
        ]  # fmt: skip

    def merge(self) -> None:
        """Merge all superfluous files.

        :raises Locked: if one of them, or what would be merged into it, is open.
        """
        while nodes := self.superfluous:
            node = nodes[0]
            (child,) = [other for other in self.nodes if other.parent is node]
            with locked([self.file(node), self.file(child)]):
                self.file(child).replace(self.file(node))
                self._descriptor(child.path).unlink(missing_ok=True)
            child.path, child.parent = node.path, node.parent

    def discard(self, tips: list[Node]) -> None:
        """Remove those files among `tips` and below them that nothing stands on any more."""
        kept = self.nodes
        for tip in tips:
            for node in (tip, *tip.below):
                if node not in kept:
                    self._remove(node)

    def _delta_of(self, parent: Node) -> Node:
        """A new file above `parent`, with its content."""
        stem = _DELTA.sub(".vmdk", parent.path).removesuffix(".vmdk")
        number = 1
        while flat_file(self._folder, path := f"{stem}-{number:06}.vmdk").exists():
            number += 1
        node = Node(path, parent)
        copy_sparse(self.file(parent), self.file(node))
        self._descriptor(path).touch()
        return node

    def _remove(self, node: Node) -> None:
        self.file(node).unlink(missing_ok=True)
        self._descriptor(node.path).unlink(missing_ok=True)

    def _descriptor(self, path: str) -> Path:
        return self._folder / relative(path)


def relative(path: str) -> str:
    """The part of a datastore path that names the file: "[store] vm/disk.vmdk" is "vm/disk.vmdk"."""
    return path.partition("] ")[2]


def flat_file(folder: Path, path: str) -> Path:
    """The local file that has the bytes of the disk at a datastore path."""
    return folder / (relative(path).removesuffix(".vmdk") + "-flat.vmdk")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes, by reference where the file system can."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", "--", source, target], check=True)


@contextmanager
def locked(files: list[Path]) -> Iterator[None]:
    """Hold the exclusive lock of all `files`.

    :raises Locked: if the disk library has one open.
    """
    with ExitStack() as held:
        for file in files:
            descriptor = os.open(file, os.O_RDWR)
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(str(file)) from None
        yield


def allocated(file: Path, granularity: int) -> set[int]:
    """The numbers of the blocks of `granularity` that have data in `file`."""
    blocks: set[int] = set()
    with file.open("rb") as opened:
        size, position = os.fstat(opened.fileno()).st_size, 0
        while position < size:
            try:
                start = os.lseek(opened.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            position = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            blocks.update(range(start // granularity, (position - 1) // granularity + 1))
    return blocks
