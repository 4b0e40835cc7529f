"""Context: what goes down every call of one task - the cancel token and the log fields."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.errors import Cancelled


class CancelToken:
    """Says once, to every waiter, that the operator wants an end."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask for the end; may be called again, and from a signal handler."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep up to ``timeout_s`` seconds; True at once when cancelled."""
        return self._event.wait(timeout_s)


class FieldLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that puts the context's fields before each event, one event a line."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Prefix ``msg`` with ``key=value`` pairs."""
        fields = " ".join(f"{key}={value}" for key, value in (self.extra or {}).items())
        return (f"{fields} {msg}" if fields else msg), kwargs


@dataclass(frozen=True)
class Context:
    """Cancel token and log fields of one task; passed to everything that may take long."""

    cancel: CancelToken = field(default_factory=CancelToken)
    fields: Mapping[str, object] = field(default_factory=dict)

    def check(self) -> None:
        """:raises Cancelled: if the operator asked for the end."""
        if self.cancel.cancelled:
            raise Cancelled()

    def log(self, name: str) -> FieldLogger:
        """The logger ``name`` with this context's fields."""
        return FieldLogger(logging.getLogger(name), dict(self.fields))

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> bool:
        """Poll ``condition`` until true; False when ``timeout_s`` seconds passed.

        :raises Cancelled: when the operator asked for the end meanwhile.
        """
        waited = 0.0
        while not condition():
            if waited >= timeout_s:
                return False
            self.check()
            self.cancel.wait(interval_s)
            waited += interval_s
        return True
