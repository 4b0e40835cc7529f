"""Operations that move disk data."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.model.extent import Extent
from understudy.model.job import Compression
from understudy.model.transfer import TransferMode
from understudy.mover.api.export import NbdSource


@dataclass(frozen=True)
class ReadSpec:
    """How the source side processes one disk.

    :ivar base_point: the point whose digests tell what the replica has, or empty.
    :ivar chained: zeros must be written, because a layer below may have data there (S6).
    :ivar replica_id, point, disk: name the digest copy that the source side keeps.
    :ivar since_point, suspect: as in :class:`understudy.model.transfer.DiskPlan`.
    :ivar excluded: what reads as zeros (S10), packed as :func:`understudy.model.exclusion.pack` does.
    :ivar formerly_excluded, once_excluded: what the base point left out, and what the one in ``since_point`` did if
        that is older. They count only where the dirty map does.
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
    since_point: str = ""
    suspect: tuple[Extent, ...] = ()
    excluded: str = ""
    formerly_excluded: str = ""
    once_excluded: str = ""


@dataclass(frozen=True)
class CopyDisk:
    """Read and write in this one mover, no wire (long)."""

    read: ReadSpec
    draft: str


@dataclass(frozen=True)
class EstimateTransfer:
    """Say what a transfer would read and send (long), and do neither; :attr:`ReadSpec.point` does not count.

    The result is :attr:`WorkStatus.sums`. :class:`~understudy.errors.TrackingLost` if the dirty map cannot be used,
    as of a transfer; but no sample of the disk is compared.
    """

    read: ReadSpec


@dataclass(frozen=True)
class ReceiveDisk:
    """Start the target side of a transfer (long): wait for the source side and write what it sends.

    :ivar source_identity: name in the certificate of the proxy that may come; empty: one on this host, by Unix socket.
    :ivar patience_s: how long nobody may be connected before the transfer fails, in seconds.
    """

    draft: str
    disk: str
    size: int
    block_size: int
    source_identity: str
    patience_s: float


@dataclass(frozen=True)
class ReceiveStarted:
    """The target side expects ``ticket`` first; ``socket`` is where proxies on its own host reach it."""

    work: str
    ticket: str
    socket: str


@dataclass(frozen=True)
class TargetAddress:
    """Where the source side finds the target side of one transfer.

    :ivar address: path of a Unix socket, or ``HOST:PORT`` for TLS.
    :ivar identity: name that the target proxy's certificate must have; empty for a Unix socket.
    """

    address: str
    identity: str
    ticket: str


@dataclass(frozen=True)
class SendDisk:
    """Start the source side of a transfer (long).

    :ivar patience_s: how long to try to get a lost connection back, in seconds.
    :ivar limits: keys of the rate limits that hold for it, see :class:`SetRates`; unknown ones do not limit.
    """

    read: ReadSpec
    target: TargetAddress
    compression: Compression
    connections: int
    patience_s: float
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class RedirectSend:
    """The target side was started again: the source side of ``work`` goes on there."""

    work: str
    target: TargetAddress


@dataclass(frozen=True)
class RateLimit:
    """All transfers that name ``key`` send no more than ``bytes_per_s`` together."""

    key: str
    bytes_per_s: float


@dataclass(frozen=True)
class SetRates:
    """Replace all rate limits of this source proxy; running transfers heed them at once."""

    limits: tuple[RateLimit, ...]
