"""Source snapshots as a platform hands them out: one consistent instant, and where each disk can be read."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from understudy.model.access import LibraryLogin
from understudy.model.replica import Baseline
from understudy.model.transfer import Reason

#: How every name of ours on a platform begins.
TAGGED = "understudy-"
_JOB_CHARACTERS = 12
_NAME = re.compile(rf"{TAGGED}(.{{1,{_JOB_CHARACTERS}}}?)-([0-9a-f]{{8}})-(\d{{1,19}})(?=[.-]|$)")


def job_mark(job_id: str) -> str:
    """What of a job's id is in its tags."""
    return job_id[:_JOB_CHARACTERS]


def vm_mark(vm_uuid: str) -> str:
    """What of a VM is in the tags of what was made for it."""
    return hashlib.blake2s(vm_uuid.encode(), digest_size=4).hexdigest()


@dataclass(frozen=True)
class Mark:
    """What a name of ours tells: :func:`job_mark`, :func:`vm_mark`, and the session."""

    job: str
    vm: str
    session: int

    @classmethod
    def of(cls, name: str) -> Mark | None:
        """The mark in a name; None if it is not a name of ours."""
        match = _NAME.match(name)
        return cls(match[1], match[2], int(match[3])) if match else None


@dataclass(frozen=True)
class Tag:
    """The mark that everything of ours on a platform carries from birth: job, VM and session (S7).

    Sweeping looks for :attr:`prefix`; what belongs to another job or VM, or to another program, is never touched.
    """

    job_id: str
    vm_uuid: str
    session: int

    @property
    def prefix(self) -> str:
        """What all sessions of the job share for this VM."""
        return f"{TAGGED}{job_mark(self.job_id)}-{vm_mark(self.vm_uuid)}-"

    def __str__(self) -> str:
        return f"{self.prefix}{self.session}"


@dataclass(frozen=True)
class ServedDisk:
    """A disk that the platform serves by NBD; ``dirty_context`` is empty without tracking.

    :ivar socket: Unix socket on the disk's host; empty if ``address`` is given.
    :ivar address: ``HOST:PORT`` where it is served by TLS to other hosts.
    """

    name: str
    socket: str
    export: str
    dirty_context: str
    address: str = ""


@dataclass(frozen=True)
class ImageDisk:
    """A disk that lies still in an image file; ``bitmap`` names the dirty bitmap in it, or is empty."""

    name: str
    image: str
    image_format: str
    bitmap: str


@dataclass(frozen=True)
class LibraryDisk:
    """A disk that is read through the vendor's disk library, as it was at the snapshot.

    :ivar vm, snapshot: the platform's references of the VM and of the snapshot.
    :ivar file: the disk's file in the platform's own notation (vSphere: ``[datastore] folder/disk.vmdk``).
    :ivar key: the platform's number of the disk in the VM.
    :ivar since: the change id since which the changed areas are wanted; empty if they are not.
    """

    name: str
    vm: str
    snapshot: str
    file: str
    key: int
    since: str = ""


@dataclass(frozen=True)
class LibraryExport:
    """What a proxy needs to serve a :class:`LibraryDisk`.

    :ivar changed: the areas that changed, packed as :func:`understudy.model.exclusion.pack` does, or more than them;
        None if the disk is not to be read incrementally.
    """

    login: LibraryLogin
    disk: LibraryDisk
    changed: str | None = None


HeldDisk = ServedDisk | ImageDisk | LibraryDisk


@dataclass(frozen=True)
class SnapshotRequest:
    """What to hold still.

    :ivar incremental: the disks that are to be read incrementally, since ``since``, which is not None then.
    :ivar checkpoint: the new marker to make at the same instant, or empty.
    :ivar tracked: the disks that the new marker covers.
    :ivar scratch_dir: where copy-before-write files and sockets go.
    :ivar serve_at: name or address of the source host where the disks are to be served by TLS to other hosts; empty:
        they are read on that host.
    :ivar quiesce: the platform itself is to quiesce the guest for the snapshot, if it can; see
        :attr:`SourceSnapshot.quiesced`.
    :ivar must_quiesce: if it cannot, there is no snapshot.
    """

    tag: Tag
    disks: tuple[str, ...]
    incremental: tuple[str, ...]
    since: Baseline | None
    checkpoint: str
    tracked: tuple[str, ...]
    scratch_dir: str
    serve_at: str = ""
    quiesce: bool = False
    must_quiesce: bool = False

    @property
    def since_name(self) -> str:
        """The name of the marker since which changes are wanted; empty if there is none."""
        return self.since.checkpoint if self.since else ""


@dataclass(frozen=True)
class SourceSnapshot:
    """A source snapshot that is being held.

    :ivar taken_at: the instant, ISO 8601 in UTC.
    :ivar baseline: where the next incremental may start once this session has published.
    :ivar lost: ``(disk, reason)`` of disks that were to be incremental, and must be scanned.
    :ivar quiesced: the platform had quiesced the guest's file systems.
    :ivar notes: what the operator should know of it.
    """

    taken_at: str
    disks: tuple[HeldDisk, ...]
    baseline: Baseline | None
    lost: tuple[tuple[str, Reason], ...] = ()
    quiesced: bool = False
    notes: tuple[str, ...] = ()
