"""XFS: which bytes of such a file system need not be replicated? Only format 5, whose metadata carries checksums."""

from __future__ import annotations

from understudy.volumes import FileSystem, Image
from understudy.volumes.xfs.survey import Xfs


def open_xfs(image: Image) -> FileSystem:
    """Recognise and open the file system of a volume; its log decides what :meth:`FileSystem.find` may find.

    :raises Unfit: if it is damaged, or has features that are not known here.
    """
    return Xfs.open(image)
