"""ext2, ext3 and ext4: which bytes of such a volume need not be replicated?

An own reader, since it must refuse what it does not know, verify every checksum, and see the volume as it will be after
the replay of its journal: of a running guest, the metadata on the disk is out of date.
"""

from __future__ import annotations

from understudy.volumes import FileSystem, Image
from understudy.volumes.ext import filesystem


def open_ext(image: Image) -> FileSystem:
    """The file system, as it will be when the guest has replayed its journal.

    :raises Unfit: if it must not be used: damaged, with unknown features, or with a journal that lies elsewhere.
    """
    return filesystem.open_ext(image)
