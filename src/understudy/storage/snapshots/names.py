"""Which name does a thing have that only replicas of snapshots have?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from understudy.storage.records.place import DISK, PARTIAL, POINT, ReplicaPlace, check_point_id, disk_token

_LAYER = re.compile(rf"{DISK}-{POINT}\.snapshot")
_DIGEST = re.compile(rf"{DISK}-{POINT}\.digest")
_OF_POINT = re.compile(rf"{POINT}\.(xml|json|excluded)")


def layer_name(disk: str, point: str) -> str:
    """What the record calls a disk as a snapshot holds it; there is no file of that name."""
    check_point_id(point)
    return f"{disk_token(disk)}-{point}.snapshot"


@dataclass(frozen=True)
class Place(ReplicaPlace):
    """The directory of one replica without its disks."""

    @staticmethod
    def is_layer(name: str) -> bool:
        """Whether a disk in a snapshot may be called ``name``."""
        return _LAYER.fullmatch(name) is not None

    @property
    def directories(self) -> tuple[Path, Path]:
        """Those below the replica's own."""
        return self.digests, self.points

    def own_files(self) -> list[Path]:
        """Every file present that is named as ours are, finished or partial, without record, health and locks.

        :raises OSError: if a directory cannot be read.
        """
        found = []
        for directory, pattern in ((self.digests, _DIGEST), (self.points, _OF_POINT)):
            if directory.is_dir():
                found += [path for path in directory.iterdir() if pattern.fullmatch(path.name.removesuffix(PARTIAL))]
        return sorted(found)

    def partial_files(self) -> list[Path]:
        """The files of :meth:`own_files` that are in the making.

        :raises OSError: if a directory cannot be read.
        """
        return [path for path in self.own_files() if path.name.endswith(PARTIAL)]

    def finished_files(self) -> list[Path]:
        """Those that are not.

        :raises OSError: if a directory cannot be read.
        """
        return [path for path in self.own_files() if not path.name.endswith(PARTIAL)]
