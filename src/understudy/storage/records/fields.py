"""Is this piece of JSON an object with exactly these typed fields?"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

T = TypeVar("T")


class Malformed(Exception):
    """The document is not what was promised; its text says where and why."""


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``: UTF-8, no repeated keys, no NaN.

    :raises Malformed: if it is none.
    """
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise Malformed(f"no valid JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise Malformed("no JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a key occurs twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise Malformed(f"{text} is no number")


class Fields:
    """An object whose fields are taken one by one; :meth:`end` refuses what is left.

    :param where: the object's place in the document, for messages.
    """

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{where} is no object")
        self._where = where
        self._left: dict[str, Any] = dict(value)

    def _take(self, name: str) -> Any:
        if name not in self._left:
            raise Malformed(f"{self._where}.{name} is missing")
        return self._left.pop(name)

    def has(self, name: str) -> bool:
        """Whether the field is there: documents of older versions lack some."""
        return name in self._left

    def text(self, name: str, check: Callable[[str], bool] | None = None) -> str:
        """A string; ``check`` says whether it may be this one."""
        value = self._take(name)
        if not isinstance(value, str) or (check is not None and not check(value)) or not _is_unicode(value):
            raise Malformed(f"{self._where}.{name} cannot be {value!r}")
        return value

    def number(self, name: str, least: int, multiple: int = 1) -> int:
        """An integer from ``least`` to 2**63-1."""
        value = self._take(name)
        if type(value) is not int or not least <= value < 1 << 63 or value % multiple:
            raise Malformed(f"{self._where}.{name} cannot be {value!r}")
        return value

    def children(self, name: str, make: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of objects, each made by ``make``."""
        value = self._take(name)
        if not isinstance(value, list):
            raise Malformed(f"{self._where}.{name} is no list")
        return tuple(self.made(f"{self._where}.{name}[{index}]", item, make) for index, item in enumerate(value))

    def child(self, name: str, make: Callable[[Fields], T]) -> T:
        """One object, made by ``make``."""
        return self.made(f"{self._where}.{name}", self._take(name), make)

    def optional_child(self, name: str, make: Callable[[Fields], T]) -> T | None:
        """One object or null."""
        value = self._take(name)
        return None if value is None else self.made(f"{self._where}.{name}", value, make)

    def texts(self, name: str, check: Callable[[str], bool] | None = None) -> tuple[str, ...]:
        """A list of strings."""
        value = self._take(name)
        if not isinstance(value, list):
            raise Malformed(f"{self._where}.{name} is no list")
        items = Fields(f"{self._where}.{name}", {str(index): item for index, item in enumerate(value)})
        return tuple(items.text(str(index), check) for index in range(len(value)))

    def optional_texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings or null."""
        if self._left.get(name, ()) is not None:
            return self.texts(name)
        self._take(name)
        return None

    def pairs(self, name: str) -> tuple[tuple[int, int], ...]:
        """A list of pairs of integers."""
        value = self._take(name)
        if not isinstance(value, list):
            raise Malformed(f"{self._where}.{name} is no list")
        for item in value:
            if not isinstance(item, list) or len(item) != 2 or any(type(number) is not int for number in item):
                raise Malformed(f"{self._where}.{name} cannot have {item!r}")
        return tuple((first, second) for first, second in value)

    def text_map(self, name: str) -> dict[str, str]:
        """An object of strings with any keys."""
        value = self._take(name)
        items = Fields(f"{self._where}.{name}", value)
        return {key: items.text(key) for key in value if items.check_key(key)}

    def number_map(self, name: str) -> dict[str, int]:
        """An object of integers from 0 to 2**63-1, with any keys."""
        value = self._take(name)
        items = Fields(f"{self._where}.{name}", value)
        return {key: items.number(key, 0) for key in value if items.check_key(key)}

    def check_key(self, key: str) -> bool:
        """True; :raises Malformed: if ``key`` is no Unicode text."""
        if not _is_unicode(key):
            raise Malformed(f"{self._where} has the impossible key {key!r}")
        return True

    def end(self) -> None:
        """:raises Malformed: if a field is left that nobody took."""
        if self._left:
            raise Malformed(f"{self._where} has the unknown field {next(iter(self._left))!r}")

    @staticmethod
    def made(where: str, value: object, make: Callable[[Fields], T]) -> T:
        """``value``, at ``where``, as ``make`` makes it of its fields; none may be left."""
        fields = Fields(where, value)
        made = make(fields)
        fields.end()
        return made


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def is_utc_time(text: str) -> bool:
    """Whether ``text`` is an instant in ISO 8601 with a zone."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
