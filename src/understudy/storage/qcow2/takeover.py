"""How does a draft come to its layers: new ones, its own after a restart, or those that an earlier draft left?

A layer that is taken over gets a new journal, which calls nothing complete: the layer will show another snapshot. The
new journal is durable before the layer gets the new point's name, for without one the layer could not be continued.
Nothing is written to the layer before its old name and its old journal are durably gone, for with them it would be
continued as if it still had the earlier attempt's content. Killed in between, either name has a journal that is right
for it; files without their layer are swept.
"""

from __future__ import annotations

from contextlib import ExitStack

from understudy.faults import fault_point
from understudy.model.extent import total
from understudy.storage.files import fsync_path, remove_files
from understudy.storage.qcow2.journal import Journal, JournalHeader
from understudy.storage.qcow2.layer import Qcow2LayerWriter
from understudy.storage.qcow2.leftovers import begun_with
from understudy.storage.qcow2.names import DraftFiles, Place
from understudy.storage.qcow2.reopen import Reopened, reopen
from understudy.storage.values import KeptLayer, NewDisk

Opened = tuple[Qcow2LayerWriter, KeptLayer]


def new_layer(files: DraftFiles, disk: NewDisk, backing: str) -> Opened:
    """Begin an empty layer; its files must not exist. Their directory is not made durable.

    :raises OSError: if they cannot be made.
    """
    with ExitStack() as undo:
        journal = Journal.begin(files.journal, _header(files, disk, backing))
        undo.callback(journal.close)
        writer = Qcow2LayerWriter(files.layer, disk.size, backing, journal=journal)
        undo.pop_all()
    return writer, KeptLayer()


def own_layer(files: DraftFiles, disk: NewDisk, backing: str) -> Opened:
    """Go on with the layer of this same point, or begin it anew if it cannot be continued.

    :raises OSError: if its files cannot be read or written.
    """
    recorded = begun_with(files)
    if recorded is None or recorded.header != _header(files, disk, backing):
        reopened = None
    else:
        reopened = reopen(files.layer, recorded)
    if recorded is None or reopened is None:
        remove_files(files.all())
        return new_layer(files, disk, backing)
    with ExitStack() as undo:
        journal = Journal.resume(files.journal, recorded)
        undo.callback(journal.close)
        writer = Qcow2LayerWriter(files.layer, disk.size, backing, journal=journal, reopened=reopened)
        undo.pop_all()
    digests = files.digest if files.digest.is_file() else None
    return writer, KeptLayer(reopened.touched, recorded.complete, digests)


def inherited_layer(place: Place, files: DraftFiles, disk: NewDisk, backing: str) -> Opened | None:
    """Take over the layer that an earlier draft left of this disk, the one with the most in it; None if none fits.

    :raises OSError: if files cannot be read, written or renamed.
    """
    best = None
    most = 0
    for left in place.partial_layers() if disk.mark else ():
        recorded = begun_with(left) if left.token == files.token else None
        if recorded is None or recorded.header != _header(left, disk, backing):
            continue
        reopened = reopen(left.layer, recorded)
        if reopened is not None and total(reopened.touched) > most:
            most = total(reopened.touched)
            best = left, reopened, recorded.complete
    if best is None:
        return None
    left, reopened, complete = best
    with ExitStack() as undo:
        journal = Journal.begin(files.journal, _header(files, disk, backing))
        undo.callback(journal.close)
        _take_over(left, files, journal, reopened)
        writer = Qcow2LayerWriter(files.layer, disk.size, backing, journal=journal, reopened=reopened)
        undo.pop_all()
    claims = files.claims if files.claims.is_file() else None
    return writer, KeptLayer(reopened.touched, complete, claims)


def _take_over(left: DraftFiles, files: DraftFiles, journal: Journal, reopened: Reopened) -> None:
    journal.append(reopened.clusters, reopened.tables, ())
    fsync_path(files.journal.parent)
    fault_point("takeover.journal")
    left.layer.rename(files.layer)
    fault_point("takeover.layer")
    left.journal.unlink()
    fault_point("takeover.dropped")
    fsync_path(files.layer.parent)
    fault_point("takeover.durable")
    if left.digest.is_file():
        left.digest.rename(files.claims)
    fsync_path(files.claims.parent)
    fault_point("takeover.digests")


def _header(files: DraftFiles, disk: NewDisk, backing: str) -> JournalHeader:
    return JournalHeader(files.point, disk.size, backing, disk.mark)
