"""Values of replica stores: disks and layers of a point, what is recorded with it, heads, leftovers, space, digests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from understudy.model.exclusion import Exclusion
from understudy.model.extent import Extent
from understudy.model.guest import ApplicationResult
from understudy.model.replica import Baseline, Consistency, Conversion, Replica, SourceGeneration


@dataclass(frozen=True)
class NewDisk:
    """A disk of a new restore point.

    :ivar chained: the layer lies on the newest point's layer of this disk; else it stands alone.
    :ivar mark: what else must be equal for a partial layer of an earlier session to be continued; if empty, none is,
        and no later session continues this one.
    """

    name: str
    size: int
    chained: bool
    source_path: str = ""
    mark: str = ""


@dataclass(frozen=True)
class KeptLayer:
    """What a disk's layer held when its draft began or was resumed; nothing if the layer is new.

    :ivar touched: where the layer has something, so that it may read otherwise than the layer below, or than zeros:
        sorted and merged, in whole clusters. What of it is not complete has any content, also a mixture.
    :ivar complete: what the earlier attempt called complete at its checkpoints, sorted and merged. It has the content
        of the earlier attempt's snapshot.
    :ivar digests: file with the digests that the earlier attempt made, or None. It is the caller's own format, in the
        state in which the caller last made it durable.
    """

    touched: tuple[Extent, ...] = ()
    complete: tuple[Extent, ...] = ()
    digests: Path | None = None


@dataclass(frozen=True)
class PointMeta:
    """What is recorded with a restore point at publish.

    :ivar definition: the source VM's definition at that instant (libvirt XML), stored beside the layers, mode 0600.
    :ivar nvram: the UEFI variables at that instant in base64, or empty if the VM has none.
    :ivar exclusions: what its disks leave out (S10), stored beside the definition.
    :ivar applications: what guest processing achieved with the applications in the guest.
    """

    id: str
    created_at: str
    consistency: Consistency
    session: int
    block_size: int
    baseline: Baseline | None
    versions: dict[str, str]
    definition: str
    nvram: str = ""
    generation: SourceGeneration | None = None
    exclusions: tuple[Exclusion, ...] = ()
    applications: tuple[ApplicationResult, ...] = ()


@dataclass(frozen=True)
class HeadFacts:
    """State of the throw-away layer that the replica VM uses.

    :ivar point: the point it lies on, or empty if there is no head.
    :ivar empty: nothing was written to it since it was made.
    :ivar files: absolute path per disk name.
    :ivar nvram: absolute path of its copy of the UEFI variables, or empty if the point has none.
    :ivar conversion: what was done to it so that the guest finds other devices.
    """

    point: str
    empty: bool
    files: dict[str, str]
    nvram: str = ""
    conversion: Conversion = Conversion.NONE


@dataclass(frozen=True)
class StoreLeftovers:
    """What dead sessions left in a replica; files are absolute paths.

    :ivar continued: files of partial layers that a later session can continue.
    :ivar unneeded: files that nothing needs.
    :ivar merging: disks of which a merge was not finished.
    """

    continued: tuple[str, ...] = ()
    unneeded: tuple[str, ...] = ()
    merging: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatastoreFacts:
    """Space and state of a datastore directory.

    :ivar marker: what its marker file says: another directory, or none that is mounted, says something else or nothing.
    """

    path: str
    exists: bool
    writable: bool
    total_bytes: int
    free_bytes: int
    marker: str = ""


@dataclass(frozen=True)
class DigestFacts:
    """What a whole digest file says of itself."""

    point: str
    size: int
    block_size: int


@dataclass(frozen=True)
class RebuiltReplica:
    """A replica whose record was made again from its files.

    :ivar left_out: points that could not be proved, and why.
    :ivar files: what is there of such points, relative to the replica's directory; it stays there.
    :ivar notes: what else the operator should know.
    """

    replica: Replica
    left_out: dict[str, str]
    files: tuple[str, ...]
    notes: tuple[str, ...]
