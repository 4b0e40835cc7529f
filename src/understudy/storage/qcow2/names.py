"""Which name does a thing have that only replicas of qcow2 layers have?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from understudy.storage.records.place import DISK, PARTIAL, POINT, ReplicaPlace, check_point_id, disk_token, partial

_LAYER = re.compile(rf"({DISK})-({POINT})\.qcow2")
_LAYER_OR_JOURNAL = re.compile(rf"{DISK}-{POINT}\.(qcow2|journal)")
_PARTIAL_LAYER = re.compile(rf"({DISK})-({POINT})\.qcow2{re.escape(PARTIAL)}")
_DIGEST = re.compile(rf"({DISK})-({POINT})\.digest")
_DIGEST_OR_CLAIMS = re.compile(rf"{DISK}-{POINT}\.digest(\.claims)?")
_OF_POINT = re.compile(rf"({POINT})\.(xml|nvram|json|excluded)")
_HEAD = re.compile(rf"{DISK}\.qcow2|nvram\.fd")


def layer_name(disk: str, point: str) -> str:
    """File name of a new layer."""
    check_point_id(point)
    return f"{disk_token(disk)}-{point}.qcow2"


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
class Place(ReplicaPlace):
    """The directory of one replica with its layers."""

    @staticmethod
    def is_layer(name: str) -> bool:
        """Whether a layer may be called ``name``; then it is a plain name, without any directory part."""
        return _LAYER.fullmatch(name) is not None

    @property
    def layers(self) -> Path:
        """Directory of the layers."""
        return self.root / "layers"

    @property
    def head(self) -> Path:
        """Directory of the head."""
        return self.root / "head"

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
