"""Which restore points go. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def points_to_retire(points: Sequence[str], keep: int) -> tuple[str, ...]:
    """The oldest of ``points`` (oldest first) beyond ``keep``; the newest always stays.

    :raises ValueError: if ``keep`` is less than one.
    """
    if keep < 1:
        raise ValueError("retention must keep at least one restore point")
    return tuple(points[: max(0, len(points) - keep)])
