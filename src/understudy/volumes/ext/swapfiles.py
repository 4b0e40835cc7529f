"""Swap files: is this file one, and how much of it is swapped to?"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from understudy.units import KIB

#: Where installers and guides put it.
USUAL_NAMES = (
    "/swapfile", "/swap.img", "/swap", "/.swapfile", "/swap/swapfile", "/swap/swap.img", "/var/swap",
    "/var/swapfile", "/var/swap.img", "/var/lib/swap", "/var/lib/swapfile", "/mnt/swapfile",
)  # fmt: skip

#: As much of a file as :func:`swap_header` wants to see.
HEAD_SIZE = 64 * KIB

_PAGE_SIZES = (4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)
_MARKS = (b"SWAPSPACE2", b"SWAP-SPACE")
_HIBERNATED = (b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001")
_MARK_SIZE = 10
_VERSION = 1


@dataclass(frozen=True)
class SwapHeader:
    """What a swap file's first page says.

    :ivar kept: bytes at its start that the guest needs to find it again.
    :ivar end: first byte behind what is swapped to.
    """

    kept: int
    end: int


def swap_header(head: bytes, size: int) -> SwapHeader | None:
    """What the header says; None if it is no swap header.

    :param head: the first :data:`HEAD_SIZE` bytes of the file.
    :param size: of the file in bytes.
    """
    for page in _PAGE_SIZES:
        if head[page - _MARK_SIZE : page] not in _MARKS:
            continue
        version, last_page = struct.unpack_from("<II", head, KIB)
        if version != _VERSION or last_page * page > size:
            return None
        # With pages of 4 KiB the header is where it can only be with them; larger ones are kept to the largest.
        return SwapHeader(page if page == 4 * KIB else HEAD_SIZE, min((last_page + 1) * page, size))
    return None


def is_hibernated(head: bytes) -> bool:
    """Whether the file holds the memory of a guest that sleeps."""
    return any(head[page - _MARK_SIZE : page] in _HIBERNATED for page in _PAGE_SIZES)
