"""The state directory of a proxy service: ``proxy.json`` (settings), ``credentials/``, ``digests/``, ``lock``."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from understudy.certificates import Credentials, make_directory, write_private
from understudy.errors import MoverError, NotFound, Refused, UsageError
from understudy.mover.protocol import decode, encode

DEFAULT_STATE_DIR = Path("/var/lib/understudy-proxy")
CONTROL_PORT, DATA_PORT = 7342, 7343


@dataclass(frozen=True)
class ServiceSettings:
    """What a proxy service knows of itself.

    :ivar control_listen: where it waits for the controller: ``HOST:PORT``, or ``:PORT`` for every address.
    :ivar data_listen: the same for other proxies.
    """

    name: str
    identity: str
    control_listen: str
    data_listen: str


class StateDir:
    """The state directory of one proxy service."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.credentials = Credentials(path / "credentials")
        self._settings = path / "proxy.json"

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Make the directory if missing, and keep every other process off it inside the block.

        :raises Refused: if another process uses it.
        :raises MoverError: if it cannot be made.
        """
        try:
            make_directory(self.path)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise MoverError(what, f"{self.path}: {exc.strerror}", "use another directory, or be root") from exc
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(handle)
            raise Refused(what, f"a proxy runs with {self.path}", "end it first, or use another directory") from exc
        try:
            yield
        finally:
            os.close(handle)

    def settings(self, what: str) -> ServiceSettings:
        """The settings.

        :raises NotFound: if this host is not enrolled.
        :raises UsageError: if the file is damaged.
        """
        try:
            content = self._settings.read_bytes()
        except FileNotFoundError as exc:
            raise NotFound(what, f"this host is not enrolled: there is no {self._settings}",
                           "run 'understudy proxy invite NAME' on the controller, and here the command that it"
                           " shows") from exc
        except OSError as exc:
            raise MoverError(what, f"{self._settings}: {exc.strerror}") from exc
        try:
            return decode(ServiceSettings, content)
        except UsageError as exc:
            raise UsageError(what, f"{self._settings} is damaged", "delete it and enrol this host again") from exc

    def enrolled_as(self) -> str | None:
        """The name of the proxy that this host is, or None."""
        return self.settings("enrol this host").name if self._settings.exists() else None

    def save(self, settings: ServiceSettings) -> None:
        """:raises OSError: if the settings cannot be written."""
        write_private(self._settings, encode(settings))

    def forget(self) -> None:
        """Be enrolled no more: without settings there is no service, without a key no identity."""
        self._settings.unlink(missing_ok=True)
        self.credentials.remove()
