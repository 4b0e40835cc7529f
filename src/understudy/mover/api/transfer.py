"""Operations that move disk data."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.mover.api.source import NbdSource


@dataclass(frozen=True)
class ReadSpec:
    """How the source side processes one disk.

    :ivar base_point: the point whose digests tell what the replica has, or empty.
    :ivar chained: zeros must be written, because a layer below may have data there (S6).
    :ivar replica_id, point, disk: name the digest copy that the source side keeps.
    """

    source: NbdSource
    disk: str
    size: int
    mode: TransferMode
    block_size: int
    chained: bool
    replica_id: str
    base_point: str
    point: str


@dataclass(frozen=True)
class CopyDisk:
    """Read and write in this one mover, no wire (long)."""

    read: ReadSpec
    draft: str


@dataclass(frozen=True)
class ReceiveDisk:
    """Start the target side of a transfer (long); the answer tells where the source side must connect."""

    draft: str
    disk: str
    size: int
    block_size: int


@dataclass(frozen=True)
class ReceiveStarted:
    """The target side listens on a Unix ``socket`` and expects ``ticket`` first."""

    work: str
    socket: str
    ticket: str


@dataclass(frozen=True)
class SendDisk:
    """Start the source side of a transfer (long)."""

    read: ReadSpec
    socket: str
    ticket: str
    compression: Compression
