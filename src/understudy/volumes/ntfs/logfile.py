"""$LogFile: was the volume unmounted cleanly? Pure."""

from __future__ import annotations

import struct

from understudy.units import KIB
from understudy.volumes import Unfit
from understudy.volumes.ntfs.records import fixed_up

#: What :func:`is_clean` wants to see: the two restart pages.
HEAD_LENGTH = 8 * KIB

_PAGE = 4 * KIB
_CLEAN = 2  # cleared when Windows mounts the volume, set when it unmounts it


def is_clean(head: bytes) -> bool:
    """Whether Windows has said, in both restart pages, that all of the log's changes are on the volume.

    A log that is empty (all ones) proves nothing: the drivers of Linux empty it when they begin to write.
    """
    return len(head) == HEAD_LENGTH and all(_is_clean(head[at : at + _PAGE]) for at in (0, _PAGE))


def _is_clean(page: bytes) -> bool:
    system_page, log_page, area_at = struct.unpack_from("<IIH", page, 16)
    if page[:4] != b"RSTR" or (system_page, log_page) != (_PAGE, _PAGE) or not 30 <= area_at <= _PAGE - 64:
        return False
    try:
        area = fixed_up(page, b"RSTR")[area_at:]
    except Unfit:
        return False
    (flags,) = struct.unpack_from("<H", area, 14)
    return bool(flags & _CLEAN)
