"""Copies: the digest files that the source side keeps, ``<state>/digests/<replica id>/<disk>-<point>.digest``.

A transfer writes ``....digest.partial``; :meth:`DigestCopies.keep` renames it when the point was published, and only
then removes the copies of older points: until publish the next run may still have to start from the older one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

from understudy.errors import DatastoreError, NotFound, ReplicaError, UsageError
from understudy.mover import api
from understudy.mover.digest import DigestReader, sync_directory

PARTIAL = ".partial"
_COPY = re.compile(rf"[^-]+-(.+)\.digest({re.escape(PARTIAL)})?")


class DigestCopies:
    """The digest copies below ``directory``, which is made when needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, ref: api.DigestRef) -> Path:
        """Where the copy of a published point is."""
        return self._replica(ref.replica_id) / f"{_prefix(ref.disk)}{_name(ref.point)}.digest"

    def partial_path(self, ref: api.DigestRef) -> Path:
        """Where a transfer writes the copy of a point in the making; the directory exists at return."""
        path = self.path(ref)
        with _errors(path.parent):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.with_name(path.name + PARTIAL)

    def open(self, ref: api.DigestRef) -> DigestReader:
        """The verified copy.

        :raises ReplicaError: if there is none, it is damaged, or it is of another point.
        """
        reader = DigestReader(self.path(ref))
        if reader.header.point != ref.point:
            reader.close()
            raise ReplicaError(f"digest file {reader.path}", f"it is of point {reader.header.point!r}")
        return reader

    def usable(self, ref: api.DigestRef) -> bool:
        """Whether :meth:`open` would succeed."""
        try:
            self.open(ref).close()
        except ReplicaError:
            return False
        return True

    def keep(self, ref: api.DigestRef, also: Sequence[str] = ()) -> None:
        """Make the copy of a published point the only one of its disk; again is no error.

        :param also: points whose copies stay too, if there are any.
        :raises NotFound: if no transfer made one.
        """
        path, partial = self.path(ref), self.partial_path(ref)
        with _errors(path):
            if partial.exists():
                DigestReader(partial).close()
                partial.replace(path)
                sync_directory(path.parent)
            if not path.exists():
                raise NotFound(f"digests of disk {ref.disk!r}, point {ref.point!r}", "this proxy has no copy")
            kept = {path, *(self.path(replace(ref, point=point)) for point in also)}
            for other in path.parent.glob("*.digest*"):
                if other.name.startswith(_prefix(ref.disk)) and other not in kept:
                    other.unlink(missing_ok=True)

    def drop(self, replica_id: str, point: str) -> list[str]:
        """Remove the copies of a point, or of all points if ``point`` is empty; returns the paths removed."""
        directory = self._replica(replica_id)
        removed: list[str] = []
        endings = (f"-{_name(point)}.digest", f"-{_name(point)}.digest{PARTIAL}") if point else (".digest", PARTIAL)
        with _errors(directory):
            for path in sorted(directory.glob("*.digest*")):
                if path.name.endswith(endings):
                    path.unlink(missing_ok=True)
                    removed.append(str(path))
            if not point and directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
        return removed

    def list_all(self) -> list[api.DigestCopy]:
        """Every copy, finished or not, sorted by path; files that are not named like one are left out."""
        with _errors(self._directory):
            paths = sorted(self._directory.glob("*/*.digest*"))
        found = []
        for path in paths:
            match = _COPY.fullmatch(path.name)
            if match:
                found.append(api.DigestCopy(unquote(path.parent.name), unquote(match[1]), str(path)))
        return found

    def store(self, ref: api.DigestRef, received: Path) -> None:
        """Take the file ``received``, brought from the target, as the copy of a published point.

        :raises ReplicaError: if it is damaged or of another point.
        """
        with DigestReader(received) as reader:
            if reader.header.point != ref.point:
                raise ReplicaError(f"digest file for point {ref.point!r}", f"it is of point {reader.header.point!r}")
        path = self.path(ref)
        with _errors(path):
            fd = os.open(received, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            received.replace(path)
            sync_directory(path.parent)

    def _replica(self, replica_id: str) -> Path:
        return self._directory / _name(replica_id)


def _prefix(disk: str) -> str:
    # Without a dash in the disk's part, one disk's prefix is never the start of another's name.
    return _name(disk).replace("-", "%2D") + "-"


def _name(text: str) -> str:
    """``text`` as a file name.

    :raises UsageError: if it is empty or only dots.
    """
    if not text.strip("."):
        raise UsageError(f"name {text!r}", "it cannot name a file")
    return quote(text, safe="")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DatastoreError(f"digest copies at {path}", exc.strerror or str(exc)) from exc
