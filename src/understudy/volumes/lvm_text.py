"""LVM's text: what does the description of a volume group say? Sections in braces, values, lists, comments. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from understudy.volumes import Unfit

Value = int | float | str | Sequence["Value"] | Mapping[str, "Value"]
Section = Mapping[str, Value]

_DEEPEST = 16
_TOKEN = re.compile(
    r"""[ \t\r\n]+ | \#[^\n]* | (?P<string>"(?:[^"\\]|\\.)*") | (?P<number>[+-]?\d+(?:\.\d+)?(?![\w.+-]))
    | (?P<name>[\w.+/-]+) | (?P<mark>[=\[\]{},])""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)


def parse(text: str) -> Section:
    """The sections and values of a whole text.

    :raises Unfit: if it is not one, or says something twice.
    """
    reader = _Reader(_tokens(text))
    section = reader.section(0)
    if not reader.ended:
        raise Unfit("the LVM metadata makes no sense")
    return section


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Unfit("the LVM metadata makes no sense")
        if found.lastgroup is not None:
            tokens.append((found.lastgroup, found.group()))
        at = found.end()
    return tokens


class _Reader:
    """Goes over the tokens once."""

    def __init__(self, tokens: Sequence[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at == len(self._tokens)

    def section(self, depth: int) -> Section:
        """Up to its closing brace, which is not taken, or the end."""
        if depth > _DEEPEST:
            raise Unfit("the LVM metadata is nested too deeply")
        values: dict[str, Value] = {}
        while not self.ended and self._tokens[self._at] != ("mark", "}"):
            kind, name = self._next()
            if kind not in ("name", "number") or name in values:
                raise Unfit("the LVM metadata makes no sense")
            values[name] = self._value_of(depth)
        return values

    def _value_of(self, depth: int) -> Value:
        mark = self._next()
        if mark == ("mark", "="):
            return self._value()
        if mark != ("mark", "{"):
            raise Unfit("the LVM metadata makes no sense")
        inner = self.section(depth + 1)
        self._expect("}")
        return inner

    def _value(self) -> Value:
        kind, text = self._next()
        if kind == "string":
            return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
        if kind == "number":
            return float(text) if "." in text else int(text)
        if (kind, text) != ("mark", "["):
            raise Unfit("the LVM metadata makes no sense")
        items: list[Value] = []
        while self._tokens[self._at : self._at + 1] != [("mark", "]")]:
            if items:
                self._expect(",")
            items.append(self._scalar())
        self._expect("]")
        return items

    def _scalar(self) -> Value:
        if self._tokens[self._at : self._at + 1] == [("mark", "[")]:
            raise Unfit("the LVM metadata makes no sense")
        return self._value()

    def _next(self) -> tuple[str, str]:
        if self.ended:
            raise Unfit("the LVM metadata ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, mark: str) -> None:
        if self._next() != ("mark", mark):
            raise Unfit("the LVM metadata makes no sense")
