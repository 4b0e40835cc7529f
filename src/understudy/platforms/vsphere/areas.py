"""Which areas of a disk changed? Pages of the platform's answer, put together: pure but for asking.

Whatever is done here to save memory makes the areas more, never less: reading what did not change costs time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from understudy.model.exclusion import MOST_RANGES
from understudy.model.extent import Extent, merge, span


class AnswerError(Exception):
    """An answer that breaks its own rules; nothing of it is believed."""


@dataclass(frozen=True)
class Page:
    """What the platform says of a part of the disk: from ``start``, ``length`` bytes, these areas in it changed."""

    start: int
    length: int
    areas: tuple[Extent, ...]

    @property
    def end(self) -> int:
        """Where the next page begins."""
        return self.start + self.length


def changed_areas(ask: Callable[[int], Page], capacity: int, most: int = MOST_RANGES) -> tuple[Extent, ...]:
    """All areas that changed, or more than them: sorted, disjoint, inside the disk, at most ``most``.

    :param ask: the page that begins at an offset. Never asked at the end of the disk, which is an error there (P45).
    :raises AnswerError: if the pages do not tell of the whole disk, or make no sense.
    """
    position, known = 0, Bounded(most)
    while position < capacity:
        page = ask(position)
        known.add(checked(page, position, capacity))
        position = page.end
    return known.areas


def checked(page: Page, position: int, capacity: int) -> tuple[Extent, ...]:
    """The areas of the page that was asked for at ``position``; what reaches past the end of the disk is cut off.

    :raises AnswerError: if the page does not go on from there, or its areas are not in it, in order.
    """
    if page.start != position:
        raise AnswerError(f"the answer for offset {position} begins at {page.start}")
    if page.end <= position:
        raise AnswerError(f"the answer for offset {position} ends at {page.end}")
    end, inside = page.start, min(page.end, capacity)
    for area in page.areas:
        if area.length <= 0 or area.start < end:
            raise AnswerError(f"the area at {area.start} is not in order")
        end = area.end
        if area.start >= inside or end > page.end:
            raise AnswerError(f"the area from {area.start} to {end} is not in the part from {page.start} to {inside}")
    return tuple(span(area.start, min(area.end, capacity)) for area in page.areas)


class Bounded:
    """Areas as they come, joined where they are too many (S12)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._areas: list[Extent] = []

    def add(self, areas: Iterable[Extent]) -> None:
        """Add areas, in order, disjoint, behind those that were added before."""
        for area in areas:
            last = self._areas[-1] if self._areas else None
            if last is not None and area.start == last.end:
                self._areas[-1] = span(last.start, area.end)
            else:
                self._areas.append(area)
            if len(self._areas) >= 2 * self._most:
                self._areas = join_nearest(self._areas, self._most)

    @property
    def areas(self) -> tuple[Extent, ...]:
        """All that was added, or more."""
        return tuple(join_nearest(self._areas, self._most))


def join_nearest(areas: list[Extent], most: int) -> list[Extent]:
    """``areas`` (sorted, disjoint) as ``most`` areas at most: the smallest gaps between them are closed."""
    surplus = len(areas) - most
    if surplus <= 0:
        return areas
    gaps = sorted(range(1, len(areas)), key=lambda index: areas[index].start - areas[index - 1].end)
    closed = {index: span(areas[index - 1].end, areas[index].start) for index in gaps[:surplus]}
    filled: list[Extent] = []
    for index, area in enumerate(areas):
        filled += [closed[index], area] if index in closed else [area]
    return merge(filled)
