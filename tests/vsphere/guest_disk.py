"""GuestDisk: what a guest that does not run writes into the ext4 file system of a VM's disk.

No guest of the simulated vCenter runs. debugfs changes a copy of the disk; what then differs goes to the front as the
guest's writes, block by block, so that changed block tracking sees what a guest would have shown it, and no more.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.vsphere.chain import copy_sparse
from tests.vsphere.front import Front
from tests.vsphere.machines import Disk
from understudy.model.extent import Extent

#: What a file system writes at once.
BLOCK = 4096


@dataclass(frozen=True)
class GuestDisk:
    """A disk of a running VM with one ext4 file system.

    :ivar start: where on the disk the file system begins.
    """

    vcenter: Front
    vm: str
    key: int
    start: int

    @property
    def disk(self) -> Disk:
        """The disk as the front has it."""
        (found,) = [item for item in self.vcenter.disks(self.vm) if item.key == self.key]
        return found

    def put(self, name: str, data: bytes) -> list[Extent]:
        """Write a file of that name, in place of one that is there; the areas of the disk that were written."""
        with tempfile.TemporaryDirectory() as directory:
            content = Path(directory) / "content"
            content.write_bytes(data)
            written = self._change([f"rm {name}", f"write {content} {name}"])
        assert self.read(name) == data
        return written

    def remove(self, name: str) -> list[Extent]:
        """Remove a file; the areas of the disk that were written."""
        written = self._change([f"rm {name}"])
        assert self.read(name) is None
        return written

    def read(self, name: str) -> bytes | None:
        """A file's content now, or None."""
        with tempfile.TemporaryDirectory() as directory:
            content = Path(directory) / "content"
            self._debugfs(self.disk.file, [f"dump {name} {content}"])
            return content.read_bytes() if content.exists() else None

    def _change(self, requests: list[str]) -> list[Extent]:
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / "copy"
            copy_sparse(self.disk.file, copy)
            self._debugfs(copy, requests, "-w")
            # debugfs tells no failure by its status; a file system that it spoilt would be no guest's.
            subprocess.run(["e2fsck", "-fn", self._place(copy)], check=True, capture_output=True)
            after = copy.read_bytes()
        written = differing(self.disk.file.read_bytes(), after)
        for area in written:
            self.vcenter.write(self.vm, self.key, area.start, after[area.start : area.end])
        return written

    def _debugfs(self, image: Path, requests: list[str], *options: str) -> None:
        script = "".join(f"{request}\n" for request in requests)
        subprocess.run(["debugfs", *options, "-f", "-", self._place(image)], input=script, text=True, check=True,
                       capture_output=True)  # fmt: skip

    def _place(self, image: Path) -> str:
        return f"{image}?offset={self.start}"


def differing(before: bytes, after: bytes) -> list[Extent]:
    """Where two contents of a disk differ, in whole blocks, joined where they touch."""
    assert len(before) == len(after)
    areas: list[Extent] = []
    for start in range(0, len(after), BLOCK):
        if before[start : start + BLOCK] == after[start : start + BLOCK]:
            continue
        length = min(BLOCK, len(after) - start)
        if areas and areas[-1].end == start:
            areas[-1] = Extent(areas[-1].start, areas[-1].length + length)
        else:
            areas.append(Extent(start, length))
    return areas
