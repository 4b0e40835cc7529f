"""Changed areas that no server tells of: the platform told them, and the mover keeps them beside the export's socket.

They are a file: whoever reads the export finds them by the socket, and they are gone with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from understudy.errors import TrackingLost, UsageError
from understudy.model.exclusion import unpack
from understudy.model.extent import Extent, span, subtract, within
from understudy.mover import api
from understudy.nbd import DIRTY_FLAG, NbdClient

_CONTEXT = "understudy:changed:"


def context_of(key: str) -> str:
    """The name of the dirty context of an export."""
    return f"{_CONTEXT}{key}"


def areas_path(socket: Path) -> Path:
    """Where the changed areas of the export at ``socket`` are."""
    return socket.with_suffix(".changed")


def write_areas(socket: Path, packed: str | None) -> None:
    """Keep changed areas of the export at ``socket``; with None, there are none to be kept any more.

    :param packed: see :func:`understudy.model.exclusion.pack`.
    :raises UsageError: if they cannot be understood.
    """
    if packed is None:
        areas_path(socket).unlink(missing_ok=True)
        return
    try:
        unpack(packed)
    except ValueError as exc:
        raise UsageError("changed areas of a disk", str(exc), "use the same version everywhere") from exc
    areas_path(socket).write_text(packed)


def areas_of(where: api.NbdSource) -> tuple[Extent, ...] | None:
    """The changed areas that are kept for an export; None if the server tells of them, or nobody.

    :raises TrackingLost: if they are gone.
    """
    if not where.dirty_context.startswith(_CONTEXT):
        return None
    try:
        return unpack(areas_path(Path(where.socket)).read_text())
    except (OSError, ValueError) as exc:
        raise TrackingLost(f"read {where.socket}", f"its changed areas are gone ({exc})") from exc


class ChangedClient:
    """A connection whose block status tells of changed areas, too, which its server knows nothing of.

    :param areas: sorted and disjoint.
    :param alone: block status tells of them alone, and costs the server nothing.
    """

    def __init__(self, client: NbdClient, context: str, areas: Sequence[Extent], *, alone: bool) -> None:
        self.client = client
        self._context = context
        self._areas = areas
        self._alone = alone
        self.name, self.size, self.multi_conn = client.name, client.size, client.multi_conn

    def has(self, context: str) -> bool:
        """Whether block status tells of the context."""
        return context == self._context or self.client.has(context)

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        """As of the connection, see :meth:`understudy.nbd.NbdClient.statuses`."""
        known, told = (length, {}) if self._alone else self.client.statuses(start, length, at_least)
        return known, {**told, self._context: tiled(self._areas, start, start + known)}

    def start_read(self, view: memoryview, offset: int) -> int:
        """As of the connection."""
        return self.client.start_read(view, offset)

    def finished(self, cookie: int) -> bool:
        """As of the connection."""
        return self.client.finished(cookie)

    def read(self, view: memoryview, offset: int) -> None:
        """As of the connection."""
        self.client.read(view, offset)

    def poll(self, timeout_s: float) -> None:
        """As of the connection."""
        self.client.poll(timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self.client.abort()


def tiled(areas: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """The status list of ``start..end`` in which ``areas`` are dirty and nothing else is."""
    dirty = [Extent(item.start, item.length, DIRTY_FLAG) for item in within(areas, start, end)]
    clean = subtract([span(start, end)], dirty)
    return sorted([*clean, *dirty], key=lambda item: item.start)
