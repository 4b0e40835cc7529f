"""Protocol: how the values of :mod:`understudy.mover.api` travel - paths and JSON, the same on both sides."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from understudy.errors import UsageError

Value = TypeVar("Value")

_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def path_of(request_type: str) -> str:
    """Path of a request type by its name: ``BeginPoint`` is ``/v1/begin_point``."""
    return "/v1/" + re.sub(r"(?<!^)(?=[A-Z])", "_", request_type).lower()


def encode(value: object) -> bytes:
    """``value``, an instance of a protocol type, as JSON."""
    return _adapter(type(value)).dump_json(value)


def decode(value_type: type[Value], content: bytes) -> Value:
    """The value that ``content`` is.

    :raises UsageError: if it is none of this type.
    """
    with _validation(value_type):
        value: Value = _adapter(value_type).validate_json(content)
    return value


def decode_plain(value_type: type[Value], plain: object) -> Value:
    """The value that ``plain`` is, which ``json.loads`` made of an :func:`encode` or of ``dataclasses.asdict``.

    :raises UsageError: if it is none of this type.
    """
    with _validation(value_type):
        value: Value = _adapter(value_type).validate_python(plain)
    return value


@contextmanager
def _validation(value_type: type) -> Iterator[None]:
    try:
        yield
    except ValidationError as exc:
        # Not the text of the exception: it repeats what was given, and that may hold a password.
        faults = exc.errors(include_url=False, include_context=False, include_input=False)
        why = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in faults)
        raise UsageError(f"value {value_type.__name__}", why, "use the same version everywhere") from None


def _adapter(value_type: Any) -> TypeAdapter[Any]:
    # Made when first needed: making all takes 0.1 s of the start. Making one twice, in two threads, does no harm.
    if value_type not in _ADAPTERS:
        _ADAPTERS[value_type] = TypeAdapter(value_type)
    return _ADAPTERS[value_type]
