"""Where a disk is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NbdSource:
    """Where to read one disk.

    :ivar socket: Unix socket of the NBD server; empty if ``address`` is given.
    :ivar export: export name.
    :ivar dirty_context: NBD meta context that tells dirty areas, or empty: no tracking, everything may have changed.
        Of an :class:`OpenLibraryExport` it is no server's: the proxy itself keeps the areas with the export.
    :ivar address: ``HOST:PORT`` of an NBD server on another host, which is only talked to by TLS.
    """

    socket: str
    export: str
    dirty_context: str
    address: str = ""
