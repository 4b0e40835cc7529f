"""Saved settings: hosts, datastores, proxies, jobs."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from urllib.parse import urlsplit

from understudy.model.access import NO_LIBRARY, DiskLibrary
from understudy.model.guest import (
    DEFAULT_APPLICATIONS_PERCENT,
    DEFAULT_FREEZE_DEADLINE_S,
    DEFAULT_SCRIPT_TIMEOUT_S,
    DEFAULT_TRANSPORTS,
    GuestPolicy,
    GuestSettings,
)
from understudy.units import KIB, MIB

BLOCK_SIZES = {"256K": 256 * KIB, "512K": 512 * KIB, "1M": MIB, "4M": 4 * MIB}
DEFAULT_POINTS = 7
DEFAULT_SUFFIX = "_replica"
DEFAULT_BLOCK_SIZE = MIB
DEFAULT_CONNECTIONS = 4
DEFAULT_PATIENCE_S = 1800
DEFAULT_SNAPSHOTS = 4
#: Addresses of VMware vSphere: a vCenter, or a single ESXi host.
LIBRARY_SCHEMES = ("vpx", "esx")
#: Kinds of datastores: layers in files; or snapshots of the replica VM, which its platform makes.
LAYERS, SNAPSHOTS = "qcow2", "vsphere"
#: Longest chain of restore points that are snapshots: the platform's limit is 32, and others need some, too.
MOST_SNAPSHOT_POINTS = 28


class SnapshotMode(enum.StrEnum):
    """How the source is held still while it is read."""

    AUTO = "auto"
    BACKUP = "backup"
    EXTERNAL = "external"


class Compression(enum.StrEnum):
    """Codec on the wire between two proxies."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    ZSTD_HIGH = "zstd-high"


@dataclass(frozen=True)
class Host:
    """A hypervisor host.

    :ivar scratch_dir: directory on the host for copy-before-write files; the emulator must be able to write there.
    :ivar max_snapshots: source snapshots that may be open at the same time on each of the host's datastores.
    :ivar nbd_address: name or address at which its emulators serve disks to proxies elsewhere; empty: as in the URI.
    :ivar credential: name of the stored credential with which we log in; empty where the URI alone is enough.
    :ivar thumbprint: see :class:`understudy.model.access.HostAccess`.
    :ivar library: the vendor's disk library, by which proxies reach its disks if :attr:`by_library`.
    """

    name: str
    uri: str
    scratch_dir: str
    max_snapshots: int = DEFAULT_SNAPSHOTS
    nbd_address: str = ""
    credential: str = ""
    thumbprint: str = ""
    library: DiskLibrary = NO_LIBRARY

    @property
    def by_library(self) -> bool:
        """Whether its disks are reached by the vendor's disk library from anywhere, never as files or by NBD."""
        return urlsplit(self.uri).scheme in LIBRARY_SCHEMES

    @property
    def serve_address(self) -> str:
        """Where its emulators serve disks to proxies elsewhere: as set, else as in the URI; may be empty."""
        return self.nbd_address or urlsplit(self.uri).hostname or ""


@dataclass(frozen=True)
class Datastore:
    """A place for replicas: a directory ``path`` on ``host``, or beside its proxies if it is of kind ``SNAPSHOTS``.

    :ivar max_transfers: disks that may be written at the same time; 0 for no limit but the task slots.
    :ivar marker: what its marker file says, which is how an unmounted datastore is noticed; empty until it is known.
    :ivar place: of kind ``SNAPSHOTS``: the platform's own name of the datastore that holds the disks.
    """

    name: str
    host: str
    kind: str
    path: str
    max_transfers: int = 0
    marker: str = ""
    place: str = ""


class ProxyKind(enum.StrEnum):
    """How a proxy runs: as a child process of the controller, or as a service on another host."""

    CHILD = "child"
    SERVICE = "service"


@dataclass(frozen=True)
class Proxy:
    """A data mover with ``slots`` task slots; a proxy without ``host`` serves every host of its machine.

    :ivar identity: the name in its certificate, unique among all proxies that ever were; empty until a child has one.
    :ivar control_address: ``HOST:PORT`` of a service's control address; empty for a child.
    :ivar data_address: ``HOST:PORT`` where other proxies reach it; empty for a child that takes no data from others.
    :ivar certificate_expires: when its certificate ends, ISO 8601 in UTC; empty if it has none.
    """

    name: str
    host: str
    slots: int
    kind: ProxyKind = ProxyKind.CHILD
    identity: str = ""
    control_address: str = ""
    data_address: str = ""
    certificate_expires: str = ""


@dataclass(frozen=True)
class Job:
    """Saved settings of a job.

    :ivar id: stable, unique among controllers; part of every tag that the job leaves on a platform.
    :ivar excluded_disks: ``(vm, disk)`` pairs that are not replicated.
    :ivar connections: transfer connections for each disk between two proxies.
    :ivar patience_s: how long a transfer waits for a lost connection to come back, in seconds.
    :ivar other_sources: hosts where its VMs may be as well, for example after a migration.
    :ivar verify_every_s: seconds after which a restore point is to be verified again; 0: only when asked.
    :ivar verify_rate: bytes a second that verifying may read from the datastore; 0 for no limit.
    :ivar masks: ``(vm, mask)``: files that are left out, see :mod:`understudy.volumes.masks`; of every VM if ``vm`` is
        empty.
    :ivar exclude_swap: swap areas, swap files and page files are left out.
    :ivar exclude_free: blocks that hold no file are left out, where that is proved.
    :ivar guests: settings of guest processing, of the job and of single VMs; see :meth:`guest`.
    """

    id: str
    name: str
    source: str
    target: str
    datastore: str
    vms: tuple[str, ...]
    points: int = DEFAULT_POINTS
    suffix: str = DEFAULT_SUFFIX
    snapshot_mode: SnapshotMode = SnapshotMode.AUTO
    guest_policy: GuestPolicy = GuestPolicy.TRY
    block_size: int = DEFAULT_BLOCK_SIZE
    compression: Compression = Compression.ZSTD
    source_proxy: str = ""
    target_proxy: str = ""
    excluded_disks: tuple[tuple[str, str], ...] = ()
    enabled: bool = True
    connections: int = DEFAULT_CONNECTIONS
    patience_s: int = DEFAULT_PATIENCE_S
    other_sources: tuple[str, ...] = ()
    verify_every_s: int = 0
    verify_rate: int = 0
    masks: tuple[tuple[str, str], ...] = ()
    exclude_swap: bool = True
    exclude_free: bool = False
    guests: tuple[GuestSettings, ...] = ()

    def guest(self, vm: str) -> GuestSettings:
        """How the guest of ``vm`` is processed: its own settings, else those of the job, else the defaults."""
        own, common = self._guest(vm), self._guest("")
        applications = own.applications if own.applications is not None else common.applications
        return GuestSettings(
            vm=vm,
            policy=own.policy or common.policy or self.guest_policy,
            transports=own.transports or common.transports or DEFAULT_TRANSPORTS,
            address=own.address,
            credential=own.credential or common.credential,
            pre_freeze=own.pre_freeze or common.pre_freeze,
            post_thaw=own.post_thaw or common.post_thaw,
            script_timeout_s=own.script_timeout_s or common.script_timeout_s or DEFAULT_SCRIPT_TIMEOUT_S,
            applications=True if applications is None else applications,
            freeze_deadline_s=own.freeze_deadline_s or common.freeze_deadline_s or DEFAULT_FREEZE_DEADLINE_S,
            applications_percent=(
                own.applications_percent or common.applications_percent or DEFAULT_APPLICATIONS_PERCENT
            ),
        )

    def _guest(self, vm: str) -> GuestSettings:
        return next((item for item in self.guests if item.vm == vm), GuestSettings(vm))

    def replica_name(self, vm: str) -> str:
        """Name of the replica of ``vm``, and of its VM; platforms allow no slash in names of VMs."""
        return vm.replace("/", "_") + self.suffix

    def masks_of(self, vm: str) -> tuple[str, ...]:
        """The masks that hold for ``vm``."""
        return tuple(mask for name, mask in self.masks if name in ("", vm))

    @property
    def sources(self) -> tuple[str, ...]:
        """Every host where its VMs may be."""
        return (self.source, *self.other_sources)
