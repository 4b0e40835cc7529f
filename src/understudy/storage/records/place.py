"""Which name does a thing have that every kind of store keeps of a replica?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from understudy.errors import ReplicaError, UsageError
from understudy.storage.files import datastore_errors

PARTIAL = ".partial"

#: Regular expressions of a point's id, and of a disk's name as part of file names.
POINT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
DISK = r"[A-Za-z0-9_%][A-Za-z0-9_.%]{0,119}"
_POINT_ID = re.compile(POINT)
_DISK_TOKEN = re.compile(DISK)
_DIGEST = re.compile(rf"({DISK})-({POINT})\.digest")
_NVRAM = re.compile(rf"{POINT}\.nvram")
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


def replica_names(datastore: Path) -> tuple[str, ...]:
    """Names of the replicas in a datastore, sorted.

    :raises DatastoreError: if the datastore cannot be listed.
    """
    with datastore_errors(f"list the replicas in {datastore}"):
        directories = [path for path in datastore.iterdir() if (path / "replica.json").is_file()]
    found = [replica_name(path.name) for path in directories]
    return tuple(sorted(name for name in found if name is not None))


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


def digest_name(disk: str, point: str) -> str:
    """File name of a new digest file."""
    check_point_id(point)
    return f"{disk_token(disk)}-{point}.digest"


def is_digest_name(name: str) -> bool:
    """Whether a digest file may be called ``name``; then it is a plain name, without any directory part."""
    return _DIGEST.fullmatch(name) is not None


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
class ReplicaPlace:
    """The directory of one replica and the paths in it that every kind of store has."""

    root: Path
    replica: str

    @property
    def what(self) -> str:
        """The replica in error messages."""
        return f"replica {self.replica!r} in {self.root.parent}"

    @staticmethod
    def is_layer(name: str) -> bool:
        """Whether a layer of this kind of store may be called ``name``; then it is a plain name, without directory."""
        raise NotImplementedError

    def finished_files(self) -> list[Path]:
        """The files of restore points that are there and not in the making.

        :raises OSError: if a directory cannot be read.
        """
        raise NotImplementedError

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
    def digests(self) -> Path:
        """Directory of the digest files."""
        return self.root / "digests"

    @property
    def points(self) -> Path:
        """Directory of the VM definitions, UEFI variables, sidecars, and of what disks leave out."""
        return self.root / "points"

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


def partial(path: Path) -> Path:
    """The name of ``path`` while it is in the making."""
    return path.with_name(path.name + PARTIAL)
