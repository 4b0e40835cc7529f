"""Which restore points may the files of a replica show whose record is lost? A pure decision: facts in, points out.

A file's name says for which disk and point it was made. A digest file always belongs to that point. A layer does not:
retention merges the oldest point's layer into one that is older still, so that the oldest point may be shown by a layer
with another point's name. And a merge that was stopped leaves layers of both kinds. So what is found here is a claim;
a point may be listed only if what its layers show has the digests of all its disks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from understudy.model.replica import Consistency, PointDisk, RestorePoint
from understudy.storage.qcow2.chains import UnlistedLayer
from understudy.storage.records.place import digest_name


@dataclass(frozen=True)
class FoundLayer:
    """A finished layer whose header can be read.

    :ivar point: the point for which it was made.
    :ivar backing: file of the layer below, as its header says, or empty.
    """

    disk: str
    point: str
    file: str
    size: int
    backing: str
    file_bytes: int


@dataclass(frozen=True)
class FoundDigest:
    """A digest file that is whole and says that it is of this point."""

    disk: str
    point: str
    size: int
    block_size: int


@dataclass(frozen=True)
class FoundPoint:
    """What is found of a point beside its layers and digests.

    :ivar told: the point as it was recorded once, or None. Its disks, sizes and block size are believed, the names of
        its layers are not.
    :ivar created_at: its instant as far as the files tell it; counts if nothing is told, as do the other two.
    :ivar defined: the disks that its definition names.
    :ivar nvram: the file of its UEFI variables, or empty.
    :ivar excluded: the file of what its disks leave out, or empty.
    :ivar problem: why it can be no restore point, whatever its layers show; else empty.
    """

    id: str
    told: RestorePoint | None = None
    created_at: str = ""
    defined: frozenset[str] = frozenset()
    nvram: str = ""
    problem: str = ""
    excluded: str = ""


@dataclass(frozen=True)
class Findings:
    """All that is found; points may be named by files of one kind alone."""

    layers: tuple[FoundLayer, ...]
    digests: tuple[FoundDigest, ...]
    points: tuple[FoundPoint, ...]


@dataclass(frozen=True)
class Candidates:
    """What the files may show.

    :ivar points: oldest first.
    :ivar unlisted: layers that the points lie on, of points that are left out.
    :ivar left_out: why a point is left out, by its id.
    """

    points: tuple[RestorePoint, ...]
    unlisted: tuple[UnlistedLayer, ...]
    left_out: dict[str, str]


class _Impossible(Exception):
    """The point cannot be shown; its text says why."""


def candidates(findings: Findings, refuted: Mapping[str, str]) -> Candidates:
    """The points that the files may show, without those that were refuted.

    :param refuted: points whose digests are not those of what a candidate for them showed, and why. What shows a point
        can be chosen only when it is known which newer ones there are: ask again after each refutation.
    """
    chain = _Chains(findings.layers)
    points: list[RestorePoint] = []
    left_out: dict[str, str] = {}
    for found in sorted(findings.points, key=lambda item: item.id, reverse=True):
        try:
            if found.problem or found.id in refuted:
                raise _Impossible(found.problem or refuted[found.id])
            points.insert(0, _candidate(findings, found, chain))
        except _Impossible as exc:
            left_out[found.id] = str(exc)
    return Candidates(tuple(points), tuple(chain.unlisted(points)), left_out)


def _candidate(findings: Findings, found: FoundPoint, chains: _Chains) -> RestorePoint:
    digests = {item.disk: item for item in findings.digests if item.point == found.id}
    names = _disks_of(findings, found, digests, chains)
    block_sizes = {digests[name].block_size for name in names}
    if len(block_sizes) != 1 or (found.told and found.told.block_size not in block_sizes):
        raise _Impossible("its digest files are of different block sizes")
    layers = {name: chains.layer_of(name, found.id, digests[name].size) for name in names}
    chains.choose(layers)
    disks = tuple(_disk(found, layers[name]) for name in names)
    told = found.told
    return RestorePoint(
        found.id, told.created_at if told else found.created_at, told.consistency if told else Consistency.CRASH,
        told.session if told else 0, block_sizes.pop(), disks, told.baseline if told else None,
        dict(told.versions) if told else {}, told.nvram if told else found.nvram, told.generation if told else None,
        told.excluded if told else found.excluded, told.applications if told else ())


def _disks_of(findings: Findings, found: FoundPoint, digests: Mapping[str, FoundDigest], chains: _Chains) -> list[str]:
    """The names of the point's disks; there is a digest file for each."""
    told = found.told
    if told is not None:
        names = [disk.name for disk in told.disks]
        sizes = {disk.name: disk.size for disk in told.disks}
    else:
        known = {item.disk for item in findings.layers} | {item.disk for item in findings.digests}
        names = sorted(set(digests) | (found.defined & known))
        sizes = {name: digest.size for name, digest in digests.items()}
    for name in names:
        if name not in digests:
            raise _Impossible(f"the digest file of disk {name} is missing or damaged")
        if digests[name].size != sizes[name]:
            raise _Impossible(f"the digest file of disk {name} is of another size")
    if not names:
        raise _Impossible("it has no disk")
    for name in chains.awaited(found.id) - set(names):
        raise _Impossible(f"a newer point lies on its disk {name}, of which nothing else is found")
    return names


def _disk(found: FoundPoint, layer: FoundLayer) -> PointDisk:
    told = found.told.disk(layer.disk) if found.told else None
    return PointDisk(layer.disk, layer.size, layer.file, layer.backing, digest_name(layer.disk, found.id),
                     layer.file_bytes, told.source_path if told else "")


class _Chains:
    """The layers, and which of them newer points have taken; points come newest first."""

    def __init__(self, layers: tuple[FoundLayer, ...]) -> None:
        self._by_file = {layer.file: layer for layer in layers}
        self._taken: set[str] = set()
        self._below: dict[str, tuple[FoundLayer, ...]] = {}

    def awaited(self, point: str) -> set[str]:
        """Disks that ``point`` must have, because a newer point lies on a layer that is no younger than it."""
        return {disk for disk in self._below if self._under(disk, point)}

    def _under(self, disk: str, point: str) -> tuple[FoundLayer, ...]:
        """The layers below the last chosen point's that are no younger than ``point``."""
        return tuple(layer for layer in self._below.get(disk, ()) if layer.point <= point)

    def layer_of(self, disk: str, point: str, size: int) -> FoundLayer:
        """The layer that may show ``disk`` at ``point``; it must show a disk of ``size``.

        If a newer point lies on a chain, this one is in it: by its own layer, or by the lowest, into which that one
        was merged.
        """
        own = next((item for item in self._by_file.values() if (item.disk, item.point) == (disk, point)), None)
        under = self._under(disk, point)
        found = (own if own in under else under[-1]) if under else own or self._base(disk, point)
        if found is None:
            raise _Impossible(f"the layer of disk {disk} is missing or damaged")
        self._check(found, size)
        return found

    def _base(self, disk: str, point: str) -> FoundLayer | None:
        """The layer that a merge may have given to ``point``: the youngest of the older ones, if it lies on none."""
        older = [item for item in self._by_file.values() if item.disk == disk and item.point < point]
        base = max(older, key=lambda item: item.point, default=None)
        return base if base is not None and not base.backing else None

    def _check(self, layer: FoundLayer, size: int) -> None:
        if layer.size != size:
            raise _Impossible(f"layer {layer.file} shows a disk of {layer.size} bytes instead of {size}")
        for part in (layer, *self.down(layer)):
            if part.file in self._taken:
                raise _Impossible(f"layer {part.file} shows a newer point")

    def down(self, layer: FoundLayer) -> tuple[FoundLayer, ...]:
        """The layers below ``layer``, the next one first; all are there."""
        found: list[FoundLayer] = []
        upper = layer
        while upper.backing:
            lower = self._by_file.get(upper.backing)
            if lower is None or lower.disk != layer.disk:
                raise _Impossible(f"layer {upper.file} lies on {upper.backing}, which is missing or damaged")
            if lower in found or lower == layer or lower.size > upper.size:
                raise _Impossible(f"layer {upper.file} cannot lie on {upper.backing}")
            found.append(lower)
            upper = lower
        return tuple(found)

    def choose(self, layers: Mapping[str, FoundLayer]) -> None:
        """These layers show the disks of a point."""
        self._taken |= {layer.file for layer in layers.values()}
        self._below = {disk: self.down(layer) for disk, layer in layers.items()}

    def unlisted(self, points: list[RestorePoint]) -> list[UnlistedLayer]:
        """The layers on which points lie and that show none."""
        shown = {disk.layer for point in points for disk in point.disks}
        found = {below.file: below for point in points for disk in point.disks
                 for below in self.down(self._by_file[disk.layer]) if below.file not in shown}
        return [UnlistedLayer(item.disk, item.file, item.size, item.backing, item.file_bytes)
                for item in found.values()]
