"""Certificates: the files that give a process its identity, and the TLS contexts made of them.

A directory of credentials holds ``identity.pem`` (private key and certificate in one file of mode 0600, so that both
change by one rename), ``proxies-ca.pem`` (who signs proxies) and ``controllers-ca.pem`` (who signs controllers). Two
authorities, so that TLS itself tells a proxy from a controller: a proxy can never give another proxy orders. While a
renewal is under way ``next-key.pem`` lies beside them. Private keys never leave the directory where they were made.
"""

from __future__ import annotations

import os
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from understudy.errors import MoverError, UsageError

if TYPE_CHECKING:
    from understudy.signing import Validity

# Making and reading certificates needs ``signing``, which is imported where it is used: loading it costs a proxy, which
# only renews once in a while, 0.1 s of its start.

IDENTITY, NEXT_KEY = "identity.pem", "next-key.pem"
PROXIES_CA, CONTROLLERS_CA = "proxies-ca.pem", "controllers-ca.pem"

# Installing and loading exclude each other, so that no context gets the key of one file and the certificate of another.
_LOCK = threading.Lock()
_LOAD_TRIES = 5


@dataclass(frozen=True)
class Credentials:
    """A directory of credentials. A certificate that :meth:`install` puts there is used for every new handshake, also
    by contexts that were made before."""

    directory: Path
    _contexts: WeakSet[ssl.SSLContext] = field(default_factory=WeakSet, repr=False, compare=False)

    def server_context(self, clients: str) -> ssl.SSLContext:
        """For accepting connections of those whom the authority in file ``clients`` signed; TLS 1.3 only.

        :raises OSError: if a file is missing; :class:`ssl.SSLError` is one.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without session tickets there is nothing to read on a connection where only the client speaks, and no session
        # outlives its certificate.
        context.num_tickets = 0
        return self._finished(context, clients)

    def client_context(self, servers: str) -> ssl.SSLContext:
        """For connecting to those whom the authority in file ``servers`` signed, by the identity given as host name.

        :raises OSError: if a file is missing; :class:`ssl.SSLError` is one.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.hostname_checks_common_name = False
        return self._finished(context, servers)

    def identity(self) -> str:
        """The name in the certificate.

        :raises MoverError: if there is no certificate.
        """
        from understudy.signing import identity_of

        return identity_of(self._read(IDENTITY))

    def validity(self) -> Validity:
        """When the certificate is valid.

        :raises MoverError: if there is no certificate.
        """
        from understudy.signing import validity_of

        return validity_of(self._read(IDENTITY))

    def request(self) -> bytes:
        """A signing request for a new key, which is kept beside the one in use; PEM.

        :raises OSError: if the key cannot be written.
        """
        from understudy.signing import new_key, signing_request

        key = new_key()
        write_private(self.directory / NEXT_KEY, key)
        return signing_request(key)

    def install(self, certificate: bytes) -> None:
        """Use ``certificate``, which answers the last :meth:`request`, from now on.

        :raises UsageError: if it is not for the requested key and our identity, or not from the proxies' authority.
        :raises OSError: if it cannot be written.
        """
        from understudy.signing import certificate_of, check_issued, identity_of

        what = "install a certificate"
        if not (self.directory / NEXT_KEY).exists():
            raise UsageError(what, "no signing request is open", "ask for one first")
        key, now = self._read(NEXT_KEY), self._read(IDENTITY)
        check_issued(what, certificate, key, identity_of(now), self._read(PROXIES_CA))
        with _LOCK:
            write_private(self.directory / IDENTITY, key + certificate_of(certificate))
            (self.directory / NEXT_KEY).unlink()
            for context in self._contexts:
                self._load(context)

    def remove(self) -> None:
        """Destroy the key and what belongs to it; connections that are open stay."""
        for name in (IDENTITY, NEXT_KEY, PROXIES_CA, CONTROLLERS_CA):
            (self.directory / name).unlink(missing_ok=True)

    def _read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as exc:
            raise MoverError(f"read {self.directory / name}", str(exc.strerror), "enrol this proxy again") from exc

    def _finished(self, context: ssl.SSLContext, peers: str) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(self.directory / peers)
        with _LOCK:
            self._load(context)
            self._contexts.add(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        """Key and certificate are read by opening the file twice: another process may replace it in between."""
        for tries_left in reversed(range(_LOAD_TRIES)):
            try:
                context.load_cert_chain(self.directory / IDENTITY)
            except ssl.SSLError as exc:
                if exc.reason != "KEY_VALUES_MISMATCH" or not tries_left:
                    raise
            else:
                return


def make_directory(path: Path) -> None:
    """Make ``path``, if missing, and let nobody else enter it.

    :raises OSError: if that is not possible.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file by one that only its owner can read; at once, and durably.

    :raises OSError: if that is not possible.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def peer_identity(sock: ssl.SSLSocket | ssl.SSLObject) -> str:
    """The identity in the verified certificate of who is at the other end; empty if it has none."""
    names: Any = (sock.getpeercert() or {}).get("subjectAltName", ())
    return next((str(value) for kind, value in names if kind == "DNS"), "")
