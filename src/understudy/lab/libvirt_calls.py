"""The border to the libvirt library: connections, and libvirt's errors turned into the lab's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from understudy.lab.errors import HypervisorFailed


@contextmanager
def libvirt_calls(what: str) -> Iterator[None]:
    """Turn an error of libvirt into HypervisorFailed; `what` names the act and its object."""
    try:
        yield
    except libvirt.libvirtError as exc:
        raise HypervisorFailed(what, exc.get_error_message()) from exc


@contextmanager
def open_connection(uri: str) -> Iterator[libvirt.virConnect]:
    """Connect to a libvirt host and close the connection afterwards."""
    # Without this the C library also prints each error on stderr.
    libvirt.registerErrorHandler(_silent, None)
    with libvirt_calls(f"connect to {uri}"):
        connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        connection.close()


def _silent(_context: None, _error: tuple[object, ...]) -> None:
    """libvirt's errors arrive as exceptions; the callback has nothing to add."""
