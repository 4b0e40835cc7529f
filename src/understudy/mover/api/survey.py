"""Looking into the volumes of a snapshot: what of its disks can be left out."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.model.exclusion import DiskSurvey, Exclusion
from understudy.mover.api.export import NbdSource


@dataclass(frozen=True)
class SurveyedDisk:
    """One disk of the snapshot, ``size`` bytes, and where it is read."""

    name: str
    source: NbdSource
    size: int


@dataclass(frozen=True)
class SurveyDisks:
    """Find what can be left out of disks (long); the result is :attr:`WorkStatus.surveyed`.

    :ivar disks: all of a VM, for volumes may span them.
    :ivar swap: leave out swap areas, swap files and page files.
    :ivar masks: leave out these files.
    :ivar free: leave out blocks that hold no file.
    :ivar quiesced: file systems were frozen, or the VM was off.
    :ivar former: what the point before leaves out.
    """

    disks: tuple[SurveyedDisk, ...]
    swap: bool
    masks: tuple[str, ...]
    free: bool
    quiesced: bool
    former: tuple[Exclusion, ...]


@dataclass(frozen=True)
class SurveyedDisks:
    """What the process that looked into the disks found, in their order."""

    surveys: tuple[DiskSurvey, ...]
