"""The border to libfsntfs: its directories and files, and none of its errors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pyfsntfs

from understudy.volumes import Image, Unfit

_ERRORS = (OSError, RuntimeError, ValueError, TypeError, MemoryError, SystemError, OverflowError)


class Library:
    """A volume as libfsntfs reads it.

    :raises Unfit: if it cannot.
    """

    def __init__(self, image: Image) -> None:
        self._stream = _Stream(image)
        self._volume = pyfsntfs.volume()
        with translated():
            self._volume.open_file_object(self._stream)

    @property
    def label(self) -> str:
        """Empty if there is none.

        :raises Unfit: if it cannot be read.
        """
        with translated():
            return str(self._volume.name or "")

    @property
    def root(self) -> Entry:
        """The root directory.

        :raises Unfit: if it cannot be read.
        """
        with translated():
            return Entry(self._volume.get_root_directory())

    def find(self, path: str) -> Entry | None:
        """What is at a path from the root, whatever its case; None if nothing is.

        :raises Unfit: if it cannot be read.
        """
        with translated():
            found = self._volume.get_file_entry_by_path(path.replace("/", "\\"))
        return Entry(found) if found is not None else None


class Entry:
    """A file or directory."""

    def __init__(self, entry: Any) -> None:
        self._entry = entry
        with translated():
            self.name: str = entry.name or ""
            self.is_directory: bool = entry.has_directory_entries_index()
            self.reference: int = entry.get_i30_file_reference() if entry.has_i30_entry() else entry.file_reference

    def children(self) -> Iterator[Entry]:
        """Of a directory.

        :raises Unfit: if they cannot be read.
        """
        with translated():
            count = self._entry.number_of_sub_file_entries
        for index in range(count):
            with translated():
                child = self._entry.get_sub_file_entry(index)
            yield Entry(child)

    def extents(self) -> list[tuple[int, int]]:
        """Start and length of what is not a hole of a file's data, in bytes.

        :raises Unfit: if they cannot be read.
        """
        with translated():
            found = [self._entry.get_extent(index) for index in range(self._entry.number_of_extents)]
        return [(start, length) for start, length, flags in found if not flags & 1]

    def start(self, length: int) -> bytes:
        """Up to ``length`` bytes from the begin of a file.

        :raises Unfit: if they cannot be read.
        """
        with translated():
            size = min(length, self._entry.size) if self._entry.has_default_data_stream() else 0
            found: bytes = self._entry.read_buffer_at_offset(size, 0) if size else b""
        return found

    def content(self, most: int) -> bytes | None:
        """All of a file; None if it is a directory or has more than ``most`` bytes.

        :raises Unfit: if it cannot be read.
        """
        with translated():
            size: int = self._entry.size
            if self.is_directory or not self._entry.has_default_data_stream() or size > most:
                return None
            found: bytes = self._entry.read_buffer_at_offset(size, 0) if size else b""
        if len(found) != size:
            raise Unfit("a file of the NTFS ends too early")
        return found


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Whatever the library says, nothing of the volume may be left out then."""
    try:
        yield
    except _ERRORS as exc:
        raise Unfit(f"the NTFS cannot be read: {str(exc).splitlines()[0] if str(exc) else type(exc).__name__}") from exc


class _Stream(io.RawIOBase):
    """An image as a file for the library."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self._image = image
        self._size = image.size
        self._at = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence == io.SEEK_END:
            offset += self._size
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, length: int = -1, /) -> bytes:
        there = max(0, self._size - self._at)
        data = self._image.read(self._at, there if length < 0 else min(length, there))
        self._at += len(data)
        return data

    def get_size(self) -> int:
        return self._size
