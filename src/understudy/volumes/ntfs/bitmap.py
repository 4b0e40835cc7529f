"""$Bitmap: which clusters of the volume are free? Pure, apart from reading."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from understudy.model.extent import Extent, merge
from understudy.units import KIB

#: Bytes looked at at once: a string of eight times as many characters is made of them.
_CHUNK = 128 * KIB
_FREE = re.compile("0+")


def free_ranges(read: Callable[[int, int], bytes], clusters: int, cluster: int) -> list[Extent]:
    """The free clusters as a range list, in bytes; bits behind the last cluster stand for nothing.

    :param read: bytes of the bitmap by offset and length.
    """
    return merge(_free(read, clusters, cluster))


def _free(read: Callable[[int, int], bytes], clusters: int, cluster: int) -> Iterator[Extent]:
    size = -(-clusters // 8)
    for offset in range(0, size, _CHUNK):
        raw = read(offset, min(_CHUNK, size - offset))
        first, count = offset * 8, min(len(raw) * 8, clusters - offset * 8)
        # The lowest bit of a byte is its first cluster.
        bits = f"{int.from_bytes(raw, 'little'):0{len(raw) * 8}b}"[::-1][:count]
        for found in _FREE.finditer(bits):
            yield Extent((first + found.start()) * cluster, (found.end() - found.start()) * cluster)
