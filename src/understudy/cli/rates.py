"""What may be read in a second, as operators type it."""

from __future__ import annotations

from understudy.errors import UsageError
from understudy.model.throttle import parse_rate


def parsed_rate(what: str, text: str) -> int:
    """Bytes a second; 0 for ``off`` and ``unlimited``.

    :raises UsageError: if it is no rate.
    """
    if text.strip().lower() == "off":
        return 0
    try:
        return parse_rate(text) or 0
    except ValueError as exc:
        raise UsageError(what, str(exc), "use bytes a second, e.g. 50MiB, or bits, e.g. 400Mbit, or off") from exc
