"""May a replica be made at a place? Not over another one, nor over files that may be all that is left of one."""

from __future__ import annotations

from understudy.errors import Refused
from understudy.model.replica import Replica, ReplicaIdentity
from understudy.storage.records.place import ReplicaPlace


def refuse_another(what: str, there: Replica, identity: ReplicaIdentity) -> None:
    """:raises Refused: if the replica that is there is another one."""
    if there.identity.id != identity.id:
        raise Refused(what, f"the place holds a replica of VM {there.identity.source_vm!r} of job "
                      f"{there.identity.job_name!r}", "adopt or remove that replica, or use another suffix")


def refuse_strays(what: str, place: ReplicaPlace, todo: str) -> None:
    """Files of restore points without a record must never be swept away.

    :raises Refused: if there are any.
    :raises OSError: if a directory cannot be read.
    """
    strays = place.finished_files()
    if strays:
        raise Refused(what, f"{place.root} holds files of a replica without a record ({strays[0].name})", todo)
