"""Which layers did dead or failed sessions leave that a later one can continue?"""

from __future__ import annotations

from pathlib import Path

from understudy.storage.qcow2.format import first_clusters
from understudy.storage.qcow2.journal import Recorded, read_journal
from understudy.storage.qcow2.manifest import Record
from understudy.storage.qcow2.names import DraftFiles, Place


def continuable_files(place: Place, record: Record) -> set[Path]:
    """Every partial layer that a later session can continue, and what belongs to it.

    :raises OSError: if one cannot be read.
    """
    return {path for files in place.partial_layers() if continuable(files, record) for path in files.all()}


def continuable(files: DraftFiles, record: Record) -> bool:
    """Whether a later session can continue this layer, by what its journal says.

    :raises OSError: if the journal cannot be read.
    """
    recorded = begun_with(files)
    if recorded is None or not recorded.header.mark or recorded.clusters <= first_clusters(recorded.header.size):
        return False
    newest = record.replica.newest
    layers = {disk.layer for disk in newest.disks} if newest else set()
    return not recorded.header.backing or recorded.header.backing in layers


def begun_with(files: DraftFiles) -> Recorded | None:
    """What the journal of a partial layer says; None if there is no layer, or no journal that is its own.

    :raises OSError: if the journal cannot be read.
    """
    recorded = read_journal(files.journal)
    if recorded is None or recorded.header.point != files.point or not files.layer.is_file():
        return None
    return recorded
