"""What dead sessions left, what is done with it, and what became of that: values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """What it is."""

    FROZEN_GUEST = "frozen_guest"
    BACKUP_JOB = "backup_job"
    DELTA = "snapshot_delta"
    SNAPSHOT = "snapshot"
    UNMERGED = "unmerged_delta"
    CHECKPOINT = "checkpoint"
    FILE = "file"
    EXPORT = "export"
    TRANSFER = "transfer"
    MERGE = "unfinished_merge"
    REPLICA_FILE = "replica_file"
    DIGESTS = "digest_copy"
    UNSEEN = "unseen"
    NO_PROXY = "no_proxy"


class Action(enum.StrEnum):
    """What is done with it; the last three leave it as it is."""

    THAW = "thaw"
    END = "end"
    COMMIT = "commit"
    FINISH = "finish"
    REMOVE = "remove"
    KEEP = "keep"
    SKIP = "skip"
    NOT_OURS = "not_ours"

    @property
    def acts(self) -> bool:
        """Whether something is done."""
        return self not in (Action.KEEP, Action.SKIP, Action.NOT_OURS)


@dataclass(frozen=True)
class Leftover:
    """One thing that was left.

    :ivar place: name of the host, datastore or proxy where it is.
    :ivar owner: the VM, the replica or the directory that has it.
    :ivar session: the session that made it, as far as its name tells.
    :ivar job: id of the job that made it, if this controller has that job; else empty.
    :ivar commands: what an administrator types to remove it, on the host where it is.
    """

    kind: Kind
    place: str
    owner: str
    name: str
    session: int | None
    action: Action
    why: str
    job: str = ""
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Swept:
    """A leftover, and what became of it: ``problem`` says why it could not be dealt with; empty if nothing failed."""

    leftover: Leftover
    problem: str = ""


@dataclass(frozen=True)
class Scope:
    """What of all is swept: host names, and ids of jobs; empty for all."""

    hosts: frozenset[str] = frozenset()
    jobs: frozenset[str] = frozenset()
