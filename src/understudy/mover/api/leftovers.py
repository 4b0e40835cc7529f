"""What dead sessions left: operations that list it, and those that remove it beyond what each run removes."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.model.replica import Replica
from understudy.mover.api.target import OwnedReplica
from understudy.storage.values import StoreLeftovers


@dataclass(frozen=True)
class ListTagged:
    """List plain files and sockets in ``directories`` whose names begin with ``tag``; a missing directory has none.

    :ivar images: ``(file, format)`` of images that VMs use; a snapshot delta below one of them is in use.
    """

    directories: tuple[str, ...]
    tag: str
    images: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TaggedFile:
    """A file of ours; ``in_use`` if a VM's disk needs it, or if that cannot be told."""

    directory: str
    name: str
    in_use: bool


@dataclass(frozen=True)
class TaggedFiles:
    """The files, sorted."""

    files: tuple[TaggedFile, ...]


@dataclass(frozen=True)
class HeldQuery:
    """Ask what a proxy that outlived its controller still runs."""


@dataclass(frozen=True)
class HeldFacts:
    """What still runs.

    :ivar exports: tags of images that are served.
    :ivar transfers: ids of the replicas for which disks are read.
    """

    exports: tuple[str, ...]
    transfers: tuple[str, ...]


@dataclass(frozen=True)
class ListCopies:
    """List the source side digest copies."""


@dataclass(frozen=True)
class DigestCopy:
    """A source side digest copy, finished or not."""

    replica_id: str
    point: str
    path: str


@dataclass(frozen=True)
class DigestCopyList:
    """The copies, sorted."""

    copies: tuple[DigestCopy, ...]


@dataclass(frozen=True)
class SurveyDatastore:
    """Look at every replica of a datastore, without its lock."""

    kind: str
    datastore: str


@dataclass(frozen=True)
class SurveyedReplica:
    """A replica in a datastore.

    :ivar replica: None if its record cannot be read; ``problem`` says why.
    """

    name: str
    replica: Replica | None
    leftovers: StoreLeftovers
    last_attempt: int = 0
    problem: str = ""


@dataclass(frozen=True)
class DatastoreSurvey:
    """The replicas by name; ``exists`` tells whether the directory does."""

    exists: bool
    replicas: tuple[SurveyedReplica, ...]


@dataclass(frozen=True)
class SweepReplica:
    """Remove a replica's leftovers and finish its merges (long); drafts of dead sessions on it end.

    :ivar keep_continuable: partial layers that a later session can continue stay.
    """

    owner: OwnedReplica
    keep_continuable: bool
