"""How is a record made again from the files of a replica? What is found, what was proved, what is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from understudy.errors import Refused, ReplicaError, UnderstudyError
from understudy.faults import fault_point
from understudy.model.replica import PointDisk, Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.storage.files import datastore_errors
from understudy.storage.qcow2.chains import contradictions
from understudy.storage.qcow2.format import layer_is_empty, read_header
from understudy.storage.qcow2.head import head_backing
from understudy.storage.qcow2.inuse import in_use
from understudy.storage.qcow2.manifest import Record, previous_record, record_problem, save_record
from understudy.storage.qcow2.names import Place, digest_parts, layer_parts
from understudy.storage.qcow2.rebuild import Candidates, Findings, FoundDigest, FoundLayer, FoundPoint, candidates
from understudy.storage.records.place import excluded_name, nvram_name
from understudy.storage.records.sidecar import Sidecar, altered, read_sidecar
from understudy.storage.values import DigestFacts, RebuiltReplica

ReadDigest = Callable[[Path], DigestFacts | None]


@dataclass(frozen=True)
class _Head:
    """The throw-away layer as it is found; ``used`` if it was written to, or is open."""

    point: str
    used: bool
    files: tuple[Path, ...]


class Qcow2Salvage:
    """A replica without a record; a :class:`understudy.storage.Salvage`.

    :param read_digest: what a digest file says, None if it is damaged.
    :param known: whose replica it is by what the caller knows, or None.
    """

    def __init__(self, place: Place, read_digest: ReadDigest, known: ReplicaIdentity | None,
                 require_lock: Callable[[], None]) -> None:
        self._place = place
        self._what = f"rebuild the record of {place.what}"
        self._require_lock = require_lock
        self._refuted: dict[str, str] = {}
        if not record_problem(place):
            raise Refused(self._what, "there is no lost or damaged record", "see 'understudy replica show'")
        with datastore_errors(self._what):
            sidecars = {point: read_sidecar(place, point) for point in place.point_ids()}
            before = previous_record(place)
            self._identity = _identity(self._what, sidecars, before, known)
            self._findings = _findings(place, sidecars, before, read_digest)

    def points(self) -> tuple[RestorePoint, ...]:
        """What the files may show, oldest first."""
        return self._candidates().points

    def image(self, disk: PointDisk) -> Path:
        """Absolute path of the layer that may show ``disk``."""
        return self._place.layers / disk.layer

    def digest_path(self, disk: PointDisk) -> Path:
        """Absolute path of its digest file."""
        return self._place.digests / disk.digest

    def refute(self, point_id: str, why: str) -> None:
        """The point is not shown by what was a candidate for it."""
        self._refuted[point_id] = why

    def rebuilt(self, *, write: bool) -> RebuiltReplica:
        """The replica with the present candidates, which the caller has proved; recorded if ``write``."""
        self._require_lock()
        found = self._candidates()
        if not found.points:
            why = "; ".join(f"{point}: {reason}" for point, reason in found.left_out.items())
            raise ReplicaError(self._what, f"no restore point can be proved ({why or 'none is found'})",
                               "remove the replica's files and replicate again")
        with datastore_errors(self._what):
            head = _head(self._place, found.points)
            kept = self._kept(found, head)
        state = ReplicaState.FAILOVER if head.used else ReplicaState.READY
        replica = Replica(self._identity, state, found.points, head.point)
        contradiction = contradictions(replica, (), found.unlisted)
        if contradiction:
            raise ReplicaError(self._what, f"the files contradict each other: {contradiction}")
        if write:
            save_record(self._place, Record(replica, (), found.unlisted, kept))
            fault_point("rebuild.recorded")
        return RebuiltReplica(replica, found.left_out, kept, _notes(head, found))

    def _candidates(self) -> Candidates:
        return candidates(self._findings, self._refuted)

    def _kept(self, found: Candidates, head: _Head) -> tuple[str, ...]:
        """Files of points that are left out, but for leftovers of retirement: oldest points without a layer."""
        shown = {disk.layer for point in found.points for disk in point.disks}
        needed = shown | {item.file for item in found.unlisted}
        listed = {point.id for point in found.points}
        files = [(path, _point_of(self._place, path)) for path in self._place.finished_files()]
        own = {point for path, point in files if path.parent == self._place.layers and path.name not in shown}
        own |= {point for _, point in files if point > found.points[0].id}
        kept = [path for path, point in files if point in own - listed and path.name not in needed]
        kept += head.files if head.used and not head.point else ()
        return tuple(str(path.relative_to(self._place.root)) for path in kept)


def _point_of(place: Place, path: Path) -> str:
    """The point for which a file was made; empty for files of the head."""
    if path.parent == place.points:
        return path.stem
    parts = {place.layers: layer_parts, place.digests: digest_parts}.get(path.parent, lambda _: None)(path.name)
    return parts[1] if parts else ""


def _identity(what: str, sidecars: dict[str, Sidecar | None], before: Record | None,
              known: ReplicaIdentity | None) -> ReplicaIdentity:
    """Whose replica it is: the caller may know of a later owner, but not of another replica."""
    told = [sidecar.identity for _, sidecar in sorted(sidecars.items()) if sidecar]
    told += [before.replica.identity] if before else []
    if known is not None and (not told or any(identity.id == known.id for identity in told)):
        return known
    if not told:
        raise Refused(what, "no file says whose replica it is",
                      "run this with the controller that knows the replica, see 'understudy replica list'")
    return before.replica.identity if before else told[-1]


def _findings(place: Place, sidecars: dict[str, Sidecar | None], before: Record | None,
              read_digest: ReadDigest) -> Findings:
    layers, digests = [], []
    for path in place.finished_files():
        parts = layer_parts(path.name) if path.parent == place.layers else None
        layer = _layer(path, *parts) if parts else None
        if layer is not None:
            layers.append(layer)
        parts = digest_parts(path.name) if path.parent == place.digests else None
        facts = read_digest(path) if parts else None
        if parts and facts is not None and facts.point == parts[1]:
            digests.append(FoundDigest(*parts, facts.size, facts.block_size))
    older = {point.id: replace(point, baseline=None) for point in before.replica.points} if before else {}
    ids = sorted({*sidecars, *(item.point for item in digests)})
    points = [_point(place, point, sidecars.get(point), older.get(point)) for point in ids]
    return Findings(tuple(layers), tuple(digests), tuple(points))


def _layer(path: Path, disk: str, point: str) -> FoundLayer | None:
    try:
        header = read_header(path)
    except UnderstudyError:
        return None  # no candidate then; the points that need it are left out, and say so
    if header.backing and layer_parts(header.backing) is None:
        return None
    return FoundLayer(disk, point, path.name, header.size, header.backing, path.stat().st_size)


def _point(place: Place, point: str, sidecar: Sidecar | None, older: RestorePoint | None) -> FoundPoint:
    if sidecar is not None:
        # Without what it leaves out a point can be started as well; the session that needs to know it scans.
        lost = altered(place, sidecar, without=sidecar.point.excluded)
        return FoundPoint(point, sidecar.point, problem="; ".join(lost))
    nvram = nvram_name(point) if place.nvram(point).is_file() else ""
    try:
        definition = place.definition(point).read_bytes()
        made = datetime.fromtimestamp(place.definition(point).stat().st_mtime, UTC)
        defined = _disks_in(definition)
    except (FileNotFoundError, ET.ParseError):
        return FoundPoint(point, problem="its definition is missing or damaged")
    problem = "its UEFI variables are missing" if older and older.nvram != nvram else ""
    excluded = excluded_name(point) if place.excluded(point).is_file() else ""
    return FoundPoint(point, older, _created_at(point, made), defined, nvram, problem, excluded)


def _disks_in(definition: bytes) -> frozenset[str]:
    return frozenset(target.get("dev", "") for target in ET.fromstring(definition).iterfind("devices/disk/target"))


def _created_at(point: str, otherwise: datetime) -> str:
    """The instant that a point's id names, see :func:`understudy.replication.run.new_point_id`."""
    try:
        return datetime.strptime(point[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).isoformat()
    except ValueError:
        return otherwise.isoformat(timespec="seconds")


def _head(place: Place, points: tuple[RestorePoint, ...]) -> _Head:
    files = tuple(path for path in place.finished_files() if path.parent == place.head)
    layers = {path for path in files if path != place.head_nvram}
    if not layers:
        return _Head("", False, files)
    used = any(in_use(path) or not _is_empty(path) for path in layers)
    below = {path: _backing(path) for path in layers}
    for point in points:
        wanted = {place.head_file(disk.name): (head_backing(disk.layer), disk.size) for disk in point.disks}
        if below == wanted and (place.head_nvram in files) == bool(point.nvram):
            return _Head(point.id, used, files)
    return _Head("", used, files)


def _is_empty(path: Path) -> bool:
    try:
        return layer_is_empty(path)
    except ReplicaError:
        return False


def _backing(path: Path) -> tuple[str, int]:
    try:
        header = read_header(path)
    except ReplicaError:
        return "", 0
    return header.backing, header.size


def _notes(head: _Head, found: Candidates) -> tuple[str, ...]:
    notes = []
    if head.used:
        notes.append("the replica VM runs or has changes of its own: the replica counts as in failover, "
                     "'understudy failover undo' drops them")
    newest = found.points[-1]
    if newest.baseline is None:
        notes.append(f"nothing tells the baseline of restore point {newest.id}: the next session compares every block")
    return tuple(notes)
