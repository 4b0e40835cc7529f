"""Survey answer: may what the process without rights said be believed? Whoever writes to a guest's disks may have made
it say anything, so an answer that breaks one rule is refused as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from understudy.errors import TransferError
from understudy.model.exclusion import LONGEST_NOTE, MOST_NOTES, DiskSurvey, Kind, ranges_of
from understudy.model.extent import total
from understudy.mover.api import SurveyedDisk

_WHAT = "look into the volumes"
_KINDS = frozenset(str(kind) for kind in Kind)
_MOST_CANDIDATES, _LONGEST_CANDIDATE, _LONGEST_DIGEST = 10_000, 1000, 100


def checked(surveys: Sequence[DiskSurvey], disks: Sequence[SurveyedDisk]) -> tuple[DiskSurvey, ...]:
    """The surveys of ``disks``, one for each, in their order.

    :raises TransferError: if they are not, or say what cannot be of one of them.
    """
    if [item.exclusion.disk for item in surveys] != [disk.name for disk in disks]:
        raise _refused("they are not those of the disks")
    together = sum(disk.size for disk in disks)
    for survey, disk in zip(surveys, disks, strict=True):
        why = _wrong(survey, disk.size, together)
        if why:
            raise _refused(f"disk {disk.name}: {why}")
    return tuple(surveys)


def _wrong(survey: DiskSurvey, size: int, together: int) -> str:
    """What cannot be in it; a volume that lies on several disks is counted as used on its first."""
    exclusion = survey.exclusion
    try:
        ranges = ranges_of(exclusion.packed, size)
    except ValueError as exc:
        return str(exc)
    counts = exclusion.by_kind
    if not counts.keys() <= _KINDS or min(counts.values(), default=1) <= 0 or sum(counts.values()) != total(ranges):
        return "the bytes for each reason are not those of the ranges"
    if not 0 <= survey.used <= together:
        return f"{survey.used} bytes in use"
    if len(survey.notes) > MOST_NOTES or _longest(survey.notes) > LONGEST_NOTE:
        return "too many notes, or too long ones"
    seen = exclusion.candidates
    if len(seen) > _MOST_CANDIDATES or _longest(seen) > _LONGEST_CANDIDATE or _longest(seen.values()) > _LONGEST_DIGEST:
        return "too many files that may be left out later"
    return ""


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _refused(why: str) -> TransferError:
    return TransferError(_WHAT, f"the answer makes no sense: {why}")
