"""How does a replica's directory go, so that an interrupted removal can be repeated?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from understudy.errors import ReplicaError
from understudy.storage.files import remove_files
from understudy.storage.records.lock import remove_lock
from understudy.storage.records.place import ReplicaPlace, partial


def remove_everything(place: ReplicaPlace, what: str, files: list[Path], directories: Sequence[Path]) -> None:
    """Remove ``files``, then the record, then the directories; the replica must be owned.

    :param what: the act and its object, for errors.
    :param directories: those below the replica's that a store of its kind makes.
    :raises ReplicaError: if there are files that are not ours; these stay.
    :raises OSError: if something cannot be removed.
    """
    remove_files(files)
    records = (place.previous, place.record)
    remove_files([path for record in records for path in (partial(record), record)])
    remove_files(place.health_files())
    present = [path for path in directories if path.is_dir()]
    foreign = [path for directory in present for path in directory.iterdir()]
    known = {place.root / ".lock", *present}
    foreign += [path for path in place.root.iterdir() if path not in known]
    if foreign:
        raise ReplicaError(what, f"its files are deleted, but {foreign[0]} is not one of them and stays",
                           f"delete {place.root} when you do not need it")
    for directory in present:
        directory.rmdir()
    remove_lock(place)
