"""A vCenter of the front as a source: a session there, a VM of it, and what its guest writes."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.vsphere.front import Front
from understudy.model.access import DiskLibrary, HostAccess
from understudy.model.exclusion import unpack
from understudy.model.extent import Extent, merge, subtract
from understudy.model.inventory import Vm
from understudy.model.replica import Baseline
from understudy.model.snapshot import LibraryDisk, LibraryExport, SnapshotRequest, SourceSnapshot, Tag
from understudy.platforms import CommitPatience
from understudy.platforms.vsphere import properties, trees
from understudy.platforms.vsphere.address import VCENTER
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.inventory import LISTED, read_vm
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.machine import snapshots_in
from understudy.platforms.vsphere.source import VsphereSource
from understudy.platforms.vsphere.trust import fetch_certificate

AREA = 64 * 1024
#: No pauses: what fails is not tried again.
AT_ONCE = CommitPatience(())


@contextmanager
def session(vcenter: Front) -> Iterator[Connection]:
    """A session as our program has it."""
    shown = fetch_certificate("127.0.0.1", vcenter.port)
    connection = Connection(access(vcenter, shown.thumbprint))
    try:
        yield connection
    finally:
        connection.close()


def access(vcenter: Front, thumbprint: str, library: DiskLibrary = DiskLibrary()) -> HostAccess:  # noqa: B008 - frozen
    """How the front is reached."""
    return HostAccess(f"{VCENTER}://127.0.0.1:{vcenter.port}/", vcenter.user, vcenter.password, thumbprint, library)


def named(connection: Connection, name: str) -> Any:
    """pyVmomi's object of the VM of that name."""
    (found,) = [entry for entry in properties.collect(connection, "VirtualMachine", ["name"])
                if entry.get("name") == name]  # fmt: skip
    return connection.managed("VirtualMachine", found.moref)


@dataclass
class Scene:
    """One VM of the front, and the verbs of our platform."""

    vcenter: Front
    connection: Connection
    name: str
    job: str = "0123456789abcdef"

    def source(self, patience: CommitPatience = AT_ONCE) -> VsphereSource:
        return VsphereSource(self.connection, Lookup(self.connection), patience)

    @functools.cached_property
    def ref(self) -> Any:
        return named(self.connection, self.name)

    @property
    def vm(self) -> Vm:
        """The VM as it is now."""
        return read_vm(trees.of(self.connection, self.ref, LISTED), {})

    def tag(self, session: int) -> Tag:
        return Tag(self.job, self.vm.uuid, session)

    def request(
        self, session: int, since: Baseline | None = None, *, quiesce: bool = False, must_quiesce: bool = False
    ) -> SnapshotRequest:
        disks, tag = tuple(disk.name for disk in self.vm.disks), self.tag(session)
        incremental = tuple(name for name in disks if since is not None and name in since.disks)
        return SnapshotRequest(tag, disks, incremental, since, f"{tag}-beef", disks, "", "", quiesce, must_quiesce)

    def key(self, index: int = 0) -> int:
        return self.vcenter.disks(self.name)[index].key

    def write(self, rng: random.Random, times: int, index: int = 0) -> list[Extent]:
        """The guest writes at random places of a disk; what it wrote."""
        disk, written = self.vcenter.disks(self.name)[index], []
        for _ in range(times):
            length = rng.randint(1, 3 * AREA)
            start = rng.randint(0, disk.capacity - length)
            self.vcenter.write(self.name, disk.key, start, rng.randbytes(length))
            written.append(Extent(start, length))
        return merge(sorted(written, key=lambda item: item.start))

    def frozen(self, snapshot: SourceSnapshot, index: int = 0) -> bytes:
        """The bytes of a disk at a snapshot, as the front keeps them."""
        held, disk = snapshot.disks[index], self.vcenter.disks(self.name)[index]
        assert isinstance(held, LibraryDisk)
        return disk.chain.file(disk.chain.frozen[held.snapshot]).read_bytes()

    @property
    def snapshots(self) -> list[str]:
        """The names of the VM's snapshots."""
        info = properties.of(self.connection, self.ref, ["snapshot"]).get("snapshot")
        return [snapshot.name for snapshot in snapshots_in(info)]


def changed(export: LibraryExport) -> tuple[Extent, ...]:
    """The areas that an export tells."""
    assert export.changed is not None
    return unpack(export.changed)


def apply(base: bytes, now: bytes, areas: tuple[Extent, ...]) -> bytes:
    """What a replica has that took the changed areas alone."""
    result = bytearray(base)
    for area in areas:
        result[area.start : area.end] = now[area.start : area.end]
    return bytes(result)


def covered(written: list[Extent], areas: tuple[Extent, ...]) -> bool:
    """Whether all that was written is among the areas."""
    return not subtract(written, areas)


def library_disks(snapshot: SourceSnapshot) -> list[Any]:
    """The disks of a snapshot, each of which is read by the library."""
    assert all(isinstance(disk, LibraryDisk) for disk in snapshot.disks)
    return list(snapshot.disks)
