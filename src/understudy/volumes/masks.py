"""Masks: which files does an administrator's pattern name?

``*`` and ``?`` stand for characters of one name, ``**`` for names of any depth: ``/var/cache/**`` is everything below
``/var/cache``, ``/**/*.iso`` every file whose name ends so. A pattern that ends with ``/`` means all below. ``\\`` of a
Windows path is taken as ``/``. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ANY_DEPTH = "**"


_DRIVE = re.compile(r"[A-Za-z]:(?=[\\\\/])")


def drive_of(mask: str) -> tuple[str, str]:
    """The drive letter of a Windows mask in upper case, else empty; and the mask from the volume's root."""
    found = _DRIVE.match(mask)
    return (found.group()[0].upper(), mask[found.end() :]) if found else ("", mask)


def check_mask(mask: str) -> None:
    """Accept what an administrator gives as a mask, with or without a drive letter.

    :raises ValueError: if it does not begin at a root, or names every file.
    """
    Masks([drive_of(mask)[1]])


class Masks:
    """Patterns of paths as the guest sees them, asked for files by their paths from a volume's root.

    A file that the guest sees at several paths is named if all of them are; one that it does not see, because
    something is mounted above it, is not.

    :param ignore_case: as Windows does, but of ASCII letters alone: what else is one letter to Windows stands in a
        table of each volume, and Python takes more for the same (N9).
    :param mounts: where the guest mounts the volume.
    :param hidden: where it mounts others; what a volume has at or below such a place is not seen there.
    :raises ValueError: if a pattern does not begin with ``/``, or names nothing.
    """

    def __init__(
        self, patterns: Iterable[str], *, ignore_case: bool = False, mounts: Sequence[str] = ("/",),
        hidden: Sequence[str] = (),
    ) -> None:
        parts = [_names(pattern) for pattern in patterns]
        flags = re.DOTALL | (re.IGNORECASE | re.ASCII if ignore_case else 0)
        self._files = re.compile("|".join(_file_regex(names) for names in parts) or r"(?!)", flags)
        self._directories = re.compile("|".join(_directory_regex(names) for names in parts) or r"(?!)", flags)
        self._views = [(mount.rstrip("/"), below(mount, hidden)) for mount in mounts]

    def match(self, path: str) -> bool:
        """Whether patterns name the file at ``path``."""
        seen = self._seen(path)
        return bool(seen) and all(self._files.fullmatch(name) for name in seen)

    def may_match_below(self, directory: str) -> bool:
        """Whether patterns may name files below ``directory``; the root is ``/``."""
        return any(self._directories.fullmatch(name) for name in self._seen(directory))

    def _seen(self, path: str) -> list[str]:
        """Where the guest sees what is at a path from the volume's root."""
        own = "" if path == "/" else path
        names = [(prefix + own or "/", hidden) for prefix, hidden in self._views]
        return [name for name, hidden in names if not hidden or not any(holds(place, name) for place in hidden)]


def holds(place: str, path: str) -> bool:
    """Whether ``path`` is ``place`` or lies below it."""
    return path == place or path.startswith(place.rstrip("/") + "/")


def below(place: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Those of ``paths`` that lie below ``place``."""
    return tuple(path for path in paths if path != place and holds(place, path))


def _names(pattern: str) -> list[str]:
    path = pattern.replace("\\", "/")
    if not path.startswith("/"):
        raise ValueError(f"the mask {pattern!r} does not begin at a root")
    if path.endswith("/"):
        path += _ANY_DEPTH
    names = path[1:].split("/")
    if "" in names or "." in names or ".." in names or set(names) == {_ANY_DEPTH}:
        raise ValueError(f"the mask {pattern!r} has an empty name, '.' or '..', or names every file")
    return names


def _file_regex(names: list[str]) -> str:
    """Each ``**`` stands for any number of whole names, at the end for at least one."""
    regex = ""
    for position, name in enumerate(names):
        if name == _ANY_DEPTH:
            regex += "/.+" if position == len(names) - 1 else "(?:/[^/]+)*"
        else:
            regex += "/" + _name_regex(name)
    return f"(?:{regex})"


def _directory_regex(names: list[str]) -> str:
    """Directories on the way to a file that is named: each prefix of the names, and everything from a ``**`` on."""
    regex, ends = "", ""
    for name in names[:-1] if _ANY_DEPTH not in names else names:
        if name == _ANY_DEPTH:
            return f"(?:/|{regex}(?:/.*)?{ends})"
        regex += "(?:/" + _name_regex(name)
        ends += ")?"
    return f"(?:/|{regex}{ends})"


def _name_regex(name: str) -> str:
    return "".join({"*": "[^/]*", "?": "[^/]"}.get(character, re.escape(character)) for character in name)
