"""A datastore that can be full: a small ext4 file system that only one lab host sees.

ext4 on a loop device and not a tmpfs with a size limit, because it is a disk: fsync and direct I/O are real, metadata
takes its share, and "no space left" comes from the calls from which it comes on a datastore. It costs one more command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from understudy.lab.commands import run
from understudy.lab.hosts import LabHost


@dataclass(frozen=True)
class SmallFs:
    """A small file system mounted on a lab host, and nowhere else.

    :ivar host: the host that sees it.
    :ivar directory: where the host sees it; outside, this directory stays empty.
    """

    host: LabHost
    directory: Path

    @classmethod
    def mount(cls, host: LabHost, directory: Path, size: int) -> SmallFs:
        """Make a file system of `size` bytes and mount it on `host` at `directory`; it is unmounted with the host.

        The directory is made if need be; its path must mean the same inside and outside, as below the lab directory.
        """
        image = host.directory / f"{directory.name}.ext4"
        with image.open("xb") as handle:
            handle.truncate(size)
        # No share for root only, so that the last byte is the same for everybody.
        run(["mkfs.ext4", "-q", "-m", "0", str(image)])
        directory.mkdir(parents=True, exist_ok=True)
        # mount frees the loop device with the last mount, so it goes with the host, also when that is killed.
        host.namespaces.run(["mount", "-o", "loop", str(image), str(directory)])
        mounted = cls(host, directory)
        (mounted.outside / "lost+found").rmdir()
        return mounted

    @property
    def outside(self) -> Path:
        """The path by which this machine reaches what the host sees at `directory`."""
        return self.host.outside_path(self.directory)

    def free(self) -> int:
        """How many bytes of data still find room."""
        state = os.statvfs(self.outside)
        return state.f_bavail * state.f_frsize

    def unmount(self) -> None:
        """Unmount it; what it held stays in its image until the lab is closed."""
        self.host.namespaces.run(["umount", str(self.directory)])
