"""Replicas and their restore points, as ``replica.json`` tells them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from understudy.errors import NotFound
from understudy.model.guest import ApplicationResult


class Consistency(enum.StrEnum):
    """How consistent a restore point is: applications quiesced, file systems frozen, or as after a power cut."""

    APPLICATION = "application"
    FILESYSTEM = "filesystem"
    CRASH = "crash"


class ReplicaState(enum.StrEnum):
    """States of a replica that an operator can tell apart."""

    READY = "ready"
    FAILOVER = "failover"


class Conversion(enum.StrEnum):
    """What was done to the head so that its guest finds other devices: nothing, something of it, or all."""

    NONE = "none"
    UNFINISHED = "unfinished"
    VIRTIO = "virtio"


class ConversionWish(enum.StrEnum):
    """Whether a guest from another platform is converted at failover: where that is possible, never, or in any case."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


@dataclass(frozen=True)
class Baseline:
    """Where the next incremental starts on the source.

    :ivar checkpoint: name of the platform's marker (libvirt: checkpoint).
    :ivar disks: the disks that the marker tracks.
    :ivar point: the restore point at whose instant the marker was made; empty in records of older versions.
    :ivar made_at: when the marker was made, in the platform's own words; empty if that is not known.
    :ivar change_ids: per disk, in the order of ``disks``, what the platform calls its state then (vSphere: changeId);
        empty where the marker's name is enough.
    """

    checkpoint: str
    disks: tuple[str, ...]
    point: str = ""
    made_at: str = ""
    change_ids: tuple[str, ...] = ()

    def change_id(self, disk: str) -> str:
        """What the platform called the state of ``disk``; empty if that is not known."""
        return dict(zip(self.disks, self.change_ids, strict=False)).get(disk, "")


@dataclass(frozen=True)
class FileMark:
    """What tells a file from another one, or from itself at another time.

    The device is not among it: its number is another one after a restart of the host, or on another host.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class ImageGeneration:
    """What an image on the source was just before the snapshot.

    :ivar bitmaps: the consistent dirty bitmaps in it if the VM was off; those of a running VM are in its memory: None.
    """

    disk: str
    file: FileMark
    bitmaps: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SourceGeneration:
    """What the images of a point were, as far as a proxy on their host could see; block devices are not among them."""

    images: tuple[ImageGeneration, ...]

    def image(self, disk: str) -> ImageGeneration | None:
        """The image of ``disk``, or None if nothing is known of it."""
        return next((image for image in self.images if image.disk == disk), None)


@dataclass(frozen=True)
class PointDisk:
    """One disk in a restore point.

    :ivar size: virtual size in bytes at that instant.
    :ivar layer: file name below ``layers/``; it and all layers below it are the content.
    :ivar backing: file name of the layer below, or empty.
    :ivar digest: file name below ``digests/``.
    :ivar file_bytes: length of the layer file when it was published: a cheap sign of damage.
    :ivar source_path: image on the source that it was read from.
    """

    name: str
    size: int
    layer: str
    backing: str
    digest: str
    file_bytes: int
    source_path: str = ""


@dataclass(frozen=True)
class RestorePoint:
    """A consistent state of the replica to fail over to.

    :ivar id: sortable by creation, unique in the replica.
    :ivar created_at: the instant of the source snapshot, ISO 8601 in UTC.
    :ivar block_size: bytes per digest.
    :ivar nvram: file name below ``points/`` of the UEFI variables at that instant, or empty.
    :ivar generation: what the images on the source were; None in records of older versions, and over the network.
    :ivar excluded: file name below ``points/`` of what its disks leave out, or empty if they leave out nothing.
    :ivar applications: what guest processing achieved with the applications in the guest.
    """

    id: str
    created_at: str
    consistency: Consistency
    session: int
    block_size: int
    disks: tuple[PointDisk, ...]
    baseline: Baseline | None = None
    versions: dict[str, str] = field(default_factory=dict)
    nvram: str = ""
    generation: SourceGeneration | None = None
    excluded: str = ""
    applications: tuple[ApplicationResult, ...] = ()

    def disk(self, name: str) -> PointDisk | None:
        """The disk called ``name``, or None if the VM had none at that instant."""
        return next((disk for disk in self.disks if disk.name == name), None)


@dataclass(frozen=True)
class ReplicaIdentity:
    """Whose replica it is.

    :ivar id: UUID of the replica.
    :ivar domain_uuid: UUID of the replica VM on the target host.
    """

    id: str
    name: str
    job_id: str
    job_name: str
    source_vm: str
    source_uuid: str
    domain_uuid: str


@dataclass(frozen=True)
class Replica:
    """The content of ``replica.json``.

    :ivar points: oldest first.
    :ivar head_point: the point on which ``head/`` lies, or empty before the first bind.
    :ivar conversion: what was done to that head; a new head is not converted.
    """

    identity: ReplicaIdentity
    state: ReplicaState
    points: tuple[RestorePoint, ...]
    head_point: str = ""
    conversion: Conversion = Conversion.NONE

    @property
    def newest(self) -> RestorePoint | None:
        """The newest restore point, or None."""
        return self.points[-1] if self.points else None

    def point(self, point_id: str) -> RestorePoint:
        """The point called ``point_id``.

        :raises NotFound: if there is none.
        """
        for point in self.points:
            if point.id == point_id:
                return point
        raise NotFound(f"restore point {point_id!r} of replica {self.identity.name!r}", "no such restore point",
                       "see 'understudy replica points'")
