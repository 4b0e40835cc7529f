"""Reading near the ends of an image: what is there?"""

from __future__ import annotations

from understudy.volumes import Image


def clipped(image: Image, offset: int, length: int) -> bytes:
    """Up to ``length`` bytes from ``offset`` on; fewer, or none, where the image ends before.

    :raises Unfit: if they cannot be read.
    """
    there = min(length, image.size - offset)
    return image.read(offset, there) if there > 0 and offset >= 0 else b""
