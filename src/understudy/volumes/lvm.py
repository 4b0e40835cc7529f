"""LVM2: logical volumes are not read yet, so nothing on them may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.volumes import Image, Unfit


@dataclass(frozen=True)
class LogicalVolume:
    """A logical volume.

    :ivar pieces: name of the physical volume, start on it, length; linear, in order.
    :ivar refused: why nothing of it may be left out; empty if it can be read.
    """

    vg: str
    name: str
    pieces: tuple[tuple[str, int, int], ...] = ()
    refused: str = ""


def logical_volumes(pvs: Sequence[tuple[str, Image]]) -> tuple[LogicalVolume, ...]:
    """The logical volumes on physical ones.

    :raises Unfit: always, at present.
    """
    names = ", ".join(name for name, _ in pvs)
    raise Unfit(f"logical volumes are not read yet, nothing of {names} is left out")
