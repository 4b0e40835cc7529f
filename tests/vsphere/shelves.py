"""Where the restore points of a replica are, what each of them holds, and what is there that no point needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.system.aftermath import unreferenced_files
from tests.vsphere.front import Front
from tests.vsphere.installing import raw
from tests.vsphere.machines import OFF, Disk
from understudy.platforms.vsphere.replica_mark import OWNER
from understudy.platforms.vsphere.replica_points import POINT


class Shelf(Protocol):
    """The points of the replicas of VMs with one disk."""

    def record(self, replica: str) -> Any:
        """What is recorded of the replica."""

    def content(self, replica: str, point: Any) -> bytes:
        """What the disk is at a point, by the point's record."""

    def left(self, replica: str) -> list[str]:
        """What no point on record needs."""


@dataclass(frozen=True)
class Layers:
    """Points are qcow2 files."""

    store: Path

    def record(self, replica: str) -> Any:
        return _record(self.store, replica)

    def content(self, replica: str, point: Any) -> bytes:
        (disk,) = point["disks"]
        return raw(self.store / replica / "layers" / disk["layer"])

    def left(self, replica: str) -> list[str]:
        return [str(path) for path in unreferenced_files(self.store / replica, self.record(replica), excluded=False)]


@dataclass(frozen=True)
class Snapshots:
    """Points are snapshots of the replica VM; beside their record are only its digests and definitions."""

    store: Path
    vcenter: Front

    def record(self, replica: str) -> Any:
        return _record(self.store, replica)

    def content(self, replica: str, point: Any) -> bytes:
        (moref,) = [moref for moref, name in self.vcenter.snapshots(replica).items() if name == POINT + point["id"]]
        chain = self._disk(replica).chain
        return chain.file(chain.frozen[moref]).read_bytes()

    def left(self, replica: str) -> list[str]:
        return [*self._files(replica), *self._vm(replica)]

    def _files(self, replica: str) -> Iterator[str]:
        place, points = self.store / replica, self.record(replica)["points"]
        needed = {disk["digest"] for point in points for disk in point["disks"]}
        needed |= {f"{point['id']}.{kind}" for point in points for kind in ("xml", "json")}
        present = {path.name for part in ("digests", "points") for path in (place / part).iterdir()}
        yield from (f"file {name} is there, or not" for name in present ^ needed)

    def _vm(self, replica: str) -> Iterator[str]:
        """What is not as it must be between two runs."""
        record, disk, vcenter = self.record(replica), self._disk(replica), self.vcenter
        names = ["runtime.powerState", "runtime.consolidationNeeded", "config.extraConfig"]
        found = vcenter.properties(replica, *names)
        if (found["runtime.powerState"], found["runtime.consolidationNeeded"]) != (OFF, False):
            yield f"the replica VM: {found}"
        settings = {option.key: option.value for option in found["config.extraConfig"]}
        if settings.get(OWNER) != record["identity"]["id"]:
            yield f"the replica VM is marked as of {settings.get(OWNER)}"
        taken, wanted = list(vcenter.snapshots(replica).values()), [POINT + point["id"] for point in record["points"]]
        if taken != wanted:
            yield f"snapshots {taken}, not {wanted}"
        files = {disk.chain.file(node) for node in disk.chain.nodes}
        yield from (f"{path}" for path in set(disk.file.parent.glob("*-flat.vmdk")) ^ files)
        if disk.file.read_bytes() != self.content(replica, record["points"][-1]):
            yield "the leaf is not what the newest point is"

    def _disk(self, replica: str) -> Disk:
        (disk,) = self.vcenter.disks(replica)
        return disk


def _record(store: Path, replica: str) -> Any:
    return json.loads((store / replica / "replica.json").read_text())["replica"]
