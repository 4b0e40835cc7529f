"""NTFS: which bytes of a volume of Windows need not be replicated?

Names come from libfsntfs; where files lie is read by it and by the small reader here, and both must say the same.
"""

from __future__ import annotations

from understudy.volumes import FileSystem, Image
from understudy.volumes.clipped import clipped
from understudy.volumes.ntfs.boot import SECTOR, parse_boot
from understudy.volumes.ntfs.filesystem import NtfsFileSystem
from understudy.volumes.ntfs.fsntfs import Library
from understudy.volumes.ntfs.mft import Mft


def open_ntfs(image: Image) -> FileSystem:
    """The file system on a volume.

    :raises Unfit: if it is none, or is damaged.
    """
    boot = parse_boot(clipped(image, 0, SECTOR), image.size)
    return NtfsFileSystem(image, boot, Mft(image, boot), Library(image))
