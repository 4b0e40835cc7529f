"""Linux swap: which bytes of a swap area, or of a swap file, hold nothing that a restart needs?

The first page stays: it carries the UUID that the guest's fstab names, and swapon accepts an area whose other pages are
zero. An area that holds a hibernated system is refused.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from understudy.model.exclusion import Kind
from understudy.model.extent import span
from understudy.units import KIB
from understudy.volumes import Finding, Hibernated, Image, Unfit, Wishes

#: What :func:`check_header` wants to see: the largest page that Linux knows.
HEADER_LENGTH = 64 * KIB
#: Where distributions, installers and handbooks put a swap file.
USUAL_FILES = (
    "/swapfile", "/swap.img", "/swap", "/.swapfile", "/swap/swapfile", "/swap/swap.img", "/var/swap",
    "/var/swapfile", "/var/swap.img", "/var/lib/swap", "/var/lib/swapfile", "/mnt/swapfile",
)  # fmt: skip

_PAGE_SIZES = tuple(size * KIB for size in (4, 8, 16, 32, 64))
_SIGNATURE_LENGTH = 10
_SWAP = (b"SWAPSPACE2", b"SWAP-SPACE")
_HIBERNATED = (b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001")
_TUX_ON_ICE = b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"
_FIELDS_AT = 1024
_MOST_BAD_PAGES = (64 * KIB - 1024 - 512 - _SIGNATURE_LENGTH) // 4


@dataclass(frozen=True)
class SwapHeader:
    """A swap area that holds no hibernated system.

    :ivar keep: bytes at its begin that must stay.
    :ivar end: first byte behind its last page.
    :ivar uuid: in lower case; empty if it has none.
    """

    keep: int
    end: int
    uuid: str
    label: str


def is_swap(image: Image) -> bool:
    """Whether the image carries the signature of a swap area, or of a system hibernated into one."""
    head = image.read(0, min(HEADER_LENGTH, image.size))
    return head.startswith(_TUX_ON_ICE) or bool(_signatures(head))


def swap_finding(image: Image, wishes: Wishes) -> Finding:
    """Everything behind the first page of a swap area, if swap is to be left out.

    :raises Unfit: if it is no swap area, is damaged, or holds a hibernated system.
    """
    header = check_header(image.read(0, min(HEADER_LENGTH, image.size)), image.size)
    ranges = {Kind.SWAP: (span(header.keep, header.end),)} if wishes.swap and header.keep < header.end else {}
    return Finding(ranges, used=header.end)


def check_header(first_page: bytes, size: int) -> SwapHeader:
    """The header of a swap area, or of a swap file.

    :param first_page: its first :data:`HEADER_LENGTH` bytes, or all of a shorter one.
    :param size: of the area or file in bytes.
    :raises Unfit: if it is no swap area, or is damaged; :class:`Hibernated` if it holds a hibernated system.
    """
    found = _signatures(first_page)
    if first_page.startswith(_TUX_ON_ICE) or any(signature in _HIBERNATED for signature in found.values()):
        raise Hibernated("the swap area holds a hibernated system")
    if not found:
        raise Unfit("this is no swap area")
    page_size = min(found)
    # A second signature may be an older one, of another page size, or what was swapped out.
    keep = page_size if len(found) == 1 else HEADER_LENGTH
    order, last_page = _last_page(first_page)
    end = (last_page + 1) * page_size
    if last_page < 1 or end > size:
        raise Unfit(f"the swap area says that it has {end} bytes, and there are {size}")
    bad_pages, identity, label = struct.unpack_from(f"{order}I16s16s", first_page, _FIELDS_AT + 8)
    if bad_pages > _MOST_BAD_PAGES:
        raise Unfit("the header of the swap area is damaged")
    text = str(uuid.UUID(bytes=identity)) if any(identity) else ""
    return SwapHeader(keep, end, text, label.split(b"\0")[0].decode(errors="replace"))


def _signatures(head: bytes) -> dict[int, bytes]:
    """By page size."""
    places = {page: head[page - _SIGNATURE_LENGTH : page] for page in _PAGE_SIZES if page <= len(head)}
    return {page: text for page, text in places.items() if text in _SWAP + _HIBERNATED}


def _last_page(head: bytes) -> tuple[str, int]:
    """Byte order, and the number of the last page. Guests of the other byte order write theirs."""
    for order in "<>":
        version, last_page = struct.unpack_from(f"{order}II", head, _FIELDS_AT)
        if version == 1:
            return order, last_page
    raise Unfit("the swap area has an unknown version")
