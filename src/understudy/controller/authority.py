"""The certificate authorities of a controller: who signs its proxies, and who signs the controller itself.

They lie in ``<home>/pki/``, made when first needed. Whoever can read this directory can be the controller, so nobody
else can enter it. If it is lost, every proxy must be enrolled again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from understudy import signing
from understudy.certificates import (
    CONTROLLERS_CA,
    IDENTITY,
    PROXIES_CA,
    Credentials,
    make_directory,
    write_private,
)
from understudy.errors import DatabaseError
from understudy.signing import Usage, Validity

DIRECTORY = "pki"
#: The names that QEMU wants.
HOST_FILES = ("ca-cert.pem", "server-cert.pem", "server-key.pem")
_PROXIES, _CONTROLLERS = "proxies-authority.pem", "controllers-authority.pem"
_NAMES = {_PROXIES: "Understudy proxies", _CONTROLLERS: "Understudy controllers"}
_BOTH: tuple[Usage, ...] = ("client", "server")
_CLIENT: tuple[Usage, ...] = ("client",)


class Authorities:
    """The two authorities of one home; usable by several threads and processes."""

    def __init__(self, home: Path) -> None:
        """Make them, unless they are there.

        :raises DatabaseError: if the directory cannot be made or read.
        """
        self._directory = home / DIRECTORY
        with self._translated():
            make_directory(self._directory)
            with self._locked():
                self._keys = {name: self._made(name) for name in _NAMES}

    def sign_proxy(self, request: bytes, identity: str, validity: Validity | None = None) -> bytes:
        """A proxy's certificate for the key in the signing ``request``; PEM.

        :raises UsageError: if the request cannot be signed.
        """
        return signing.sign(self._keys[_PROXIES], request, identity, _BOTH, validity or Validity.from_now())

    def certificates(self) -> dict[str, bytes]:
        """What everybody trusts: the authorities' certificates by the name of their file among credentials."""
        return {
            PROXIES_CA: signing.certificate_of(self._keys[_PROXIES]),
            CONTROLLERS_CA: signing.certificate_of(self._keys[_CONTROLLERS]),
        }

    def issue_proxy(self, directory: Path, identity: str, validity: Validity | None = None) -> Credentials:
        """Credentials of a proxy of this machine, in ``directory``: with a new key, whatever was there before.

        :raises DatabaseError: if they cannot be written.
        """
        return self._issue(directory, _PROXIES, identity, _BOTH, validity)

    def issue_host(self, directory: Path, address: str, validity: Validity | None = None) -> None:
        """What the emulators of a host need to serve disks to proxies elsewhere, in ``directory``, with a new key.

        :param address: name or address by which proxies reach the host.
        :raises DatabaseError: if it cannot be written.
        """
        key = signing.new_key()
        certificate = signing.sign(self._keys[_PROXIES], signing.signing_request(key), address, ("server",),
                                   validity or Validity.from_now(), enciphers=True)
        with self._translated():
            directory.mkdir(parents=True, exist_ok=True)
            for name, content in zip(HOST_FILES, (self.certificates()[PROXIES_CA], certificate, key), strict=True):
                write_private(directory / name, content)

    def issue_controller(self, directory: Path, validity: Validity | None = None) -> Credentials:
        """Credentials of a controller, in ``directory``: with a new key, whatever was there before.

        :raises DatabaseError: if they cannot be written.
        """
        return self._issue(directory, _CONTROLLERS, signing.CONTROLLER_IDENTITY, _CLIENT, validity)

    def controller(self) -> Credentials:
        """The controller's own credentials, made or renewed if need be.

        :raises DatabaseError: if they cannot be written.
        """
        directory = self._directory / "controller"
        with self._translated(), self._locked():
            if is_due(directory):
                self.issue_controller(directory)
        return Credentials(directory)

    def proxy(self, directory: Path, identity: str) -> Credentials:
        """Credentials of the proxy of this machine that is called ``identity``, made or renewed if need be.

        :raises DatabaseError: if they cannot be written.
        """
        with self._translated(), self._locked():
            if is_due(directory) or Credentials(directory).identity() != identity:
                self.issue_proxy(directory, identity)
        return Credentials(directory)

    def enrolment(self) -> Path:
        """The key and certificate of the enrolment server, made if missing; tokens carry its fingerprint.

        :raises DatabaseError: if they cannot be written.
        """
        path = self._directory / "enrolment.pem"
        with self._translated(), self._locked():
            if not path.exists():
                write_private(path, signing.make_pinned("Understudy enrolment"))
        return path

    def _issue(
        self, directory: Path, signer: str, identity: str, usages: tuple[Usage, ...], validity: Validity | None
    ) -> Credentials:
        key = signing.new_key()
        request = signing.signing_request(key)
        certificate = signing.sign(self._keys[signer], request, identity, usages, validity or Validity.from_now())
        with self._translated():
            make_directory(directory)
            for name, content in self.certificates().items():
                write_private(directory / name, content)
            write_private(directory / IDENTITY, key + certificate)
        return Credentials(directory)

    def _made(self, name: str) -> bytes:
        path = self._directory / name
        if not path.exists():
            write_private(path, signing.make_authority(_NAMES[name]))
        return path.read_bytes()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Making and renewing, one process at a time."""
        handle = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise DatabaseError(f"certificates in {self._directory}", f"{exc.filename}: {exc.strerror}",
                                "check --home and its permissions") from exc
        except ValueError as exc:
            raise DatabaseError(f"certificates in {self._directory}", f"a file is damaged ({exc})",
                                "restore the directory from a copy") from exc


def is_due(directory: Path) -> bool:
    """Whether credentials are missing, or old enough to be renewed."""
    path = directory / IDENTITY
    return not path.exists() or signing.validity_of(path.read_bytes()).is_due(datetime.now(UTC))
