"""A power cut for files: what was synced survives, and of the rest any 4 KiB pages."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_PAGE = 4096


class PowerCut(BaseException):
    """The machine is off; no code of the program runs any more."""


@dataclass
class _File:
    durable: bytes = b""
    pending: list[Callable[[bytearray], None]] = field(default_factory=list)


class Power:
    """Notes what is written and synced, until the power is cut.

    :ivar left: system calls on files until the cut, or -1 for none.
    :ivar before_sync: called before each sync takes effect.
    :ivar before_data: called before the caller's data is written, which alone comes as a memoryview.
    """

    def __init__(self, patch: pytest.MonkeyPatch, rng: random.Random) -> None:
        self.left = -1
        self.before_sync: Callable[[], None] = _nothing
        self.before_data: Callable[[], None] = _nothing
        self._rng = rng
        self._files: dict[int, _File] = {}
        self._real = os.pwrite, os.ftruncate, os.fsync
        patch.setattr(os, "pwrite", self._pwrite)
        patch.setattr(os, "ftruncate", self._ftruncate)
        patch.setattr(os, "fsync", self._sync)
        patch.setattr(os, "fdatasync", self._sync)

    def after_cut(self, path: Path) -> None:
        """Give the file the content that it has when the power is back."""
        file = self._files.pop(path.stat().st_ino, _File())
        content = bytearray(file.durable)
        for apply in file.pending:
            apply(content)
        path.write_bytes(content)

    def note(self, path: Path) -> None:
        """The file is durable as it is now."""
        self._files[path.stat().st_ino] = _File(path.read_bytes())

    def _count(self) -> None:
        if self.left == 0:
            raise PowerCut
        self.left -= 1

    def _file(self, fd: int) -> _File:
        return self._files.setdefault(os.fstat(fd).st_ino, _File())

    def _pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if isinstance(data, memoryview):
            self.before_data()
        self._file(fd).pending += self._pages(bytes(data), offset)
        self._count()
        return self._real[0](fd, data, offset)

    def _pages(self, data: bytes, offset: int) -> list[Callable[[bytearray], None]]:
        pages: list[Callable[[bytearray], None]] = []
        done = 0
        while done < len(data):
            length = min(len(data) - done, _PAGE - (offset + done) % _PAGE)
            if self._rng.random() < 0.6:
                pages.append(_write(data[done:done + length], offset + done))
            done += length
        return pages

    def _ftruncate(self, fd: int, length: int) -> None:
        self._count()
        if self._rng.random() < 0.5:
            self._file(fd).pending.append(_truncate(length))
        self._real[1](fd, length)

    def _sync(self, fd: int) -> None:
        self.before_sync()
        self._count()
        file = self._file(fd)
        file.durable, file.pending = os.pread(fd, os.fstat(fd).st_size, 0), []


def _nothing() -> None:
    pass


def _write(data: bytes, offset: int) -> Callable[[bytearray], None]:
    def apply(content: bytearray) -> None:
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset:offset + len(data)] = data

    return apply


def _truncate(length: int) -> Callable[[bytearray], None]:
    def apply(content: bytearray) -> None:
        content.extend(bytes(max(0, length - len(content))))
        del content[length:]

    return apply
