"""Which name does a thing have on the datastore?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from understudy.errors import ReplicaError, UsageError

PARTIAL = ".partial"

_POINT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_DISK = r"[A-Za-z0-9_%][A-Za-z0-9_.%]{0,119}"
_POINT_ID = re.compile(_POINT)
_DISK_TOKEN = re.compile(_DISK)
_LAYER = re.compile(rf"({_DISK})-({_POINT})\.qcow2")
_LAYER_OR_JOURNAL = re.compile(rf"{_DISK}-{_POINT}\.(qcow2|journal)")
_PARTIAL_LAYER = re.compile(rf"({_DISK})-({_POINT})\.qcow2{re.escape(PARTIAL)}")
_DIGEST = re.compile(rf"({_DISK})-({_POINT})\.digest")
_DIGEST_OR_CLAIMS = re.compile(rf"{_DISK}-{_POINT}\.digest(\.claims)?")
_NVRAM = re.compile(rf"{_POINT}\.nvram")
_OF_POINT = re.compile(rf"({_POINT})\.(xml|nvram|json|excluded)")
_HEAD = re.compile(rf"{_DISK}\.qcow2|nvram\.fd")
_UNSAFE_IN_DIRECTORY = re.compile(r"[/%\x00-\x1f\x7f]|^\.")
_UNSAFE_IN_DISK = re.compile(r"[^A-Za-z0-9_.]|^\.")
_NAME_MAX = 255


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def directory_name(replica: str) -> str:
    """The directory of ``replica``: the name itself where a file may be called so, else with ``%XX`` for what may not.

    Two names never share a directory, because ``%`` itself is escaped.

    :raises UsageError: if the name is empty, too long, or no Unicode text.
    """
    try:
        encoded = _UNSAFE_IN_DIRECTORY.sub(_escape, replica)
        length = len(encoded.encode())
    except UnicodeEncodeError as exc:
        raise UsageError(f"replica {replica!r}", "the name is not valid Unicode") from exc
    if not replica:
        raise UsageError("replica", "the name is empty")
    if length > _NAME_MAX:
        raise UsageError(f"replica {replica!r}", f"the name needs {length} bytes, a file name may have {_NAME_MAX}",
                         "choose a shorter name or suffix")
    return encoded


def replica_name(directory: str) -> str | None:
    """The replica whose directory is called so; None if no replica's directory is."""
    try:
        name = unquote(directory, errors="strict")
        return name if directory_name(name) == directory else None
    except (UnicodeDecodeError, UsageError):
        return None


def disk_token(disk: str) -> str:
    """``disk`` as a part of file names: without ``-`` and ``:``, which would make them ambiguous to us or to QEMU.

    :raises ReplicaError: if the name is empty, too long, or no Unicode text.
    """
    try:
        token = _UNSAFE_IN_DISK.sub(_escape, disk)
    except UnicodeEncodeError as exc:
        raise ReplicaError(f"disk {disk!r}", "the name is not valid Unicode") from exc
    if not _DISK_TOKEN.fullmatch(token):
        raise ReplicaError(f"disk {disk!r}", "the name is empty or too long for a file name")
    return token


def check_point_id(point: str) -> None:
    """:raises ReplicaError: if ``point`` cannot be part of a file name."""
    if not _POINT_ID.fullmatch(point):
        raise ReplicaError(f"restore point {point!r}", "the id must have 1 to 64 letters, digits, '.', '_' or '-'")


def layer_name(disk: str, point: str) -> str:
    """File name of a new layer."""
    check_point_id(point)
    return f"{disk_token(disk)}-{point}.qcow2"


def digest_name(disk: str, point: str) -> str:
    """File name of a new digest file."""
    check_point_id(point)
    return f"{disk_token(disk)}-{point}.digest"


def is_layer_name(name: str) -> bool:
    """Whether a layer may be called ``name``; then it is a plain name, without any directory part."""
    return _LAYER.fullmatch(name) is not None


def is_digest_name(name: str) -> bool:
    """Whether a digest file may be called ``name``; then it is a plain name, without any directory part."""
    return _DIGEST.fullmatch(name) is not None


def layer_parts(name: str) -> tuple[str, str] | None:
    """Disk and point for which the layer called ``name`` was made; None if no layer is called so."""
    return _parts(_LAYER.fullmatch(name))


def digest_parts(name: str) -> tuple[str, str] | None:
    """Disk and point of the digest file called ``name``; None if no digest file is called so."""
    return _parts(_DIGEST.fullmatch(name))


def _parts(match: re.Match[str] | None) -> tuple[str, str] | None:
    if match is None:
        return None
    disk = unquote(match[1], errors="replace")
    return (disk, match[2]) if disk_token(disk) == match[1] else None


def nvram_name(point: str) -> str:
    """File name of the UEFI variables stored with ``point``."""
    check_point_id(point)
    return f"{point}.nvram"


def is_nvram_name(name: str) -> bool:
    """Whether stored UEFI variables may be called ``name``; then it is a plain name, without any directory part."""
    return _NVRAM.fullmatch(name) is not None


def excluded_name(point: str) -> str:
    """File name of what the disks of ``point`` leave out."""
    check_point_id(point)
    return f"{point}.excluded"


@dataclass(frozen=True)
class DraftFiles:
    """The files of one disk of a restore point in the making, under their partial names.

    :ivar token: the disk, as a part of file names.
    :ivar claims: digests of an earlier attempt, whose layer this draft took over.
    """

    token: str
    point: str
    layer: Path
    journal: Path
    digest: Path
    claims: Path

    def all(self) -> list[Path]:
        """All of them."""
        return [self.layer, self.journal, self.digest, self.claims]


@dataclass(frozen=True)
class Place:
    """The directory of one replica and the paths in it."""

    root: Path
    replica: str

    @property
    def what(self) -> str:
        """The replica in error messages."""
        return f"replica {self.replica!r} in {self.root.parent}"

    @property
    def record(self) -> Path:
        """``replica.json``."""
        return self.root / "replica.json"

    @property
    def previous(self) -> Path:
        """The record before the present one, kept for the case that ``replica.json`` is lost."""
        return self.root / "replica.json.previous"

    @property
    def health(self) -> Path:
        """``health.json``."""
        return self.root / "health.json"

    @property
    def health_lock(self) -> Path:
        """Lock of ``health.json``."""
        return self.root / ".health"

    @property
    def verify_lock(self) -> Path:
        """Held while layers are verified or merged."""
        return self.root / ".verify"

    def health_files(self) -> list[Path]:
        """What is remembered of the health, and its locks."""
        return [self.health, partial(self.health), self.health_lock, self.verify_lock]

    @property
    def layers(self) -> Path:
        """Directory of the layers."""
        return self.root / "layers"

    @property
    def digests(self) -> Path:
        """Directory of the digest files."""
        return self.root / "digests"

    @property
    def points(self) -> Path:
        """Directory of the VM definitions, UEFI variables, sidecars, and of what disks leave out."""
        return self.root / "points"

    @property
    def head(self) -> Path:
        """Directory of the head."""
        return self.root / "head"

    def definition(self, point: str) -> Path:
        """File of the VM definition stored with ``point``."""
        check_point_id(point)
        return self.points / f"{point}.xml"

    def nvram(self, point: str) -> Path:
        """File of the UEFI variables stored with ``point``."""
        return self.points / nvram_name(point)

    def excluded(self, point: str) -> Path:
        """File of what the disks of ``point`` leave out."""
        return self.points / excluded_name(point)

    def sidecar(self, point: str) -> Path:
        """File that tells ``point`` as it was recorded at publish."""
        check_point_id(point)
        return self.points / f"{point}.json"

    @property
    def head_nvram(self) -> Path:
        """The head's own copy of the UEFI variables."""
        return self.head / "nvram.fd"

    def head_file(self, disk: str) -> Path:
        """The head's file for ``disk``."""
        return self.head / f"{disk_token(disk)}.qcow2"

    def own_files(self) -> list[Path]:
        """Every file present that is named as ours are, finished or partial, without record, health and locks.

        :raises OSError: if a directory cannot be read.
        """
        found = []
        for directory, pattern in ((self.layers, _LAYER_OR_JOURNAL), (self.digests, _DIGEST_OR_CLAIMS),
                                   (self.points, _OF_POINT), (self.head, _HEAD)):
            if directory.is_dir():
                found += [path for path in directory.iterdir() if pattern.fullmatch(path.name.removesuffix(PARTIAL))]
        return sorted(found)

    def finished_files(self) -> list[Path]:
        """The files of :meth:`own_files` that are not in the making.

        :raises OSError: if a directory cannot be read.
        """
        return [path for path in self.own_files() if not path.name.endswith(PARTIAL)]

    def point_ids(self) -> list[str]:
        """Ids of all points that have a file below ``points/``, sorted.

        :raises OSError: if the directory cannot be read.
        """
        names = [path.name for path in self.points.iterdir()] if self.points.is_dir() else []
        return sorted({match[1] for match in map(_OF_POINT.fullmatch, names) if match})

    def draft_files(self, disk: str, point: str) -> DraftFiles:
        """The files of ``disk`` of ``point`` while that is in the making."""
        return self._draft_files(disk_token(disk), point)

    def partial_layers(self) -> list[DraftFiles]:
        """The layers in the making that are present, each with the files that belong to it, present or not.

        :raises OSError: if the directory cannot be read.
        """
        names = sorted(path.name for path in self.layers.iterdir()) if self.layers.is_dir() else []
        matches = [match for match in map(_PARTIAL_LAYER.fullmatch, names) if match]
        return [self._draft_files(match[1], match[2]) for match in matches]

    def _draft_files(self, token: str, point: str) -> DraftFiles:
        check_point_id(point)
        layer, digest = self.layers / f"{token}-{point}.qcow2", self.digests / f"{token}-{point}.digest"
        return DraftFiles(token, point, partial(layer), partial(layer.with_suffix(".journal")), partial(digest),
                          partial(digest.with_name(f"{digest.name}.claims")))


def partial(path: Path) -> Path:
    """The name of ``path`` while it is in the making."""
    return path.with_name(path.name + PARTIAL)
