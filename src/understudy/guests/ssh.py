"""The way into a guest by SSH: host keys are checked, every wait has an end."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from understudy.errors import GuestError
from understudy.guests.transport import OUTPUT_LIMIT, Completed, go_on
from understudy.model.address import parse_address
from understudy.model.guest import GuestSystem, GuestTransport

if TYPE_CHECKING:  # it is slow to import, and most commands never reach a guest
    import paramiko

CONNECT_S = 15.0
SSH_PORT = 22
#: The command that stores a guest's host key.
ACCEPT_COMMAND = "understudy job check-guest JOB --vm VM --accept-host-key"
_KEEPALIVE_S = 15
_POLL_S = 0.01
# A server tells the end of a program before it has sent the last of its output.
_LINGER_S = 0.5
# sudo tries to make ~/.sudo_as_admin_successful each time, and waits for the thaw, so it is passed once for both.
# Two commands, and a word that nobody else says; what is read ends when we say so, or with the connection.
_PAIR = 'eval "$1"; printf "\\n%s %s\\n" "$3" "$?"; while read -r _; do :; done; eval "$2"'
# In the name by which the SSH server of Windows presents itself.
_WINDOWS = "OpenSSH_for_Windows"


class Secret:
    """A password or private key; prints as ``***``."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True)
class SshAccess:
    """How one guest is reached by SSH.

    :ivar address: ``HOST[:PORT]``, an IPv6 address with a port in brackets.
    :ivar key: a private key in OpenSSH or PEM format, without a passphrase.
    :ivar host_key: the type and base64 of the key that the guest must show, as in ``known_hosts``; empty: none is
        known, so that there is no connection.
    """

    address: str
    user: str
    password: Secret | None
    key: Secret | None
    host_key: str


def fingerprint(host_key: str) -> str:
    """The fingerprint of a host key as ``ssh-keygen -l`` shows it."""
    digest = hashlib.sha256(base64.b64decode(host_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def presented_host_key(address: str, timeout_s: float = CONNECT_S) -> str:
    """The type and base64 of the host key that a guest shows, for a person to compare and accept.

    :raises GuestError: if there is no SSH server.
    """
    import paramiko

    what = f"host key of guest {address}"
    with _ssh_errors(what):
        place = parse_address(what, address, SSH_PORT)
        link = paramiko.Transport(socket.create_connection((place.host, place.port), timeout_s))
        try:
            link.start_client(timeout=timeout_s)
            return _as_text(link.get_remote_server_key())
        finally:
            link.close()


class SshTransport:
    """Implements :class:`understudy.guests.transport.Transport`; another user than root works through ``sudo -n``."""

    kind = GuestTransport.SSH
    system = GuestSystem.POSIX

    def __init__(self, access: SshAccess, timeout_s: float = CONNECT_S) -> None:
        """Connect.

        :raises GuestError: if the guest does not answer, shows another host key than it must, refuses the user, or runs
            Windows: there is no freeze without its agent, so that nothing would be gained.
        """
        self._what = f"SSH to guest {access.address}"
        self._sudo = () if access.user == "root" else ("sudo", "-n", "--")
        with _ssh_errors(self._what):
            self._client = _connect(access, timeout_s)
            if _WINDOWS in self._link().remote_version:
                self._client.close()
                raise GuestError(self._what, "it is a Windows guest, and these are reached by their guest agent only",
                                 "install the QEMU guest agent there, and use --transport qga")

    def run(
        self, argv: Sequence[str], timeout_s: float, stdin: bytes = b"", check: Callable[[], object] = go_on
    ) -> Completed:
        """Run it in a channel of its own, which is closed at the time limit."""
        deadline = time.monotonic() + timeout_s
        with _ssh_errors(f"run {argv[0]} over {self._what}"):
            channel = self._link().open_session(timeout=timeout_s)
            try:
                with _limited(channel, deadline):
                    channel.exec_command(shlex.join([*self._sudo, *argv]))
                    channel.sendall(stdin)
                    channel.shutdown_write()
                    return self._collect(channel, argv, timeout_s, deadline, check)
            finally:
                channel.close()

    def run_pair(
        self, first: Sequence[str], second: Sequence[str], timeout_s: float
    ) -> tuple[Completed, Callable[[float], Completed]]:
        """In one shell, which runs ``second`` also if the connection is lost: sudo waits where / is frozen."""
        deadline, mark = time.monotonic() + timeout_s, uuid.uuid4().hex
        what = f"run {first[0]} over {self._what}"
        with _ssh_errors(what):
            channel = self._link().open_session(timeout=timeout_s)
            try:
                with _limited(channel, deadline):
                    words = ["/bin/sh", "-c", _PAIR, "sh", shlex.join(first), shlex.join(second), mark]
                    channel.exec_command(shlex.join([*self._sudo, *words]))
                    done = _until(channel, f"\n{mark} ".encode(), what, deadline)
            except BaseException:
                channel.close()
                raise

        def finish(limit_s: float) -> Completed:
            until = time.monotonic() + limit_s
            with _ssh_errors(f"run {second[0]} over {self._what}"):
                try:
                    with _limited(channel, until):
                        channel.shutdown_write()
                        return self._collect(channel, second, limit_s, until, go_on)
                finally:
                    channel.close()

        return done, finish

    def _collect(
        self, channel: paramiko.Channel, argv: Sequence[str], timeout_s: float, deadline: float,
        check: Callable[[], object],
    ) -> Completed:
        stdout, stderr = bytearray(), bytearray()
        patience = float("inf")
        while True:
            complete, now = channel.eof_received, time.monotonic()
            took = _drain(channel, stdout, stderr)
            if channel.exit_status_ready():
                # What background processes keep open is not waited for long.
                patience = now + _LINGER_S if took else min(patience, now + _LINGER_S)
                if not took and (complete or now >= patience):
                    break
            check()
            if now >= deadline:
                raise GuestError(f"run {argv[0]} over {self._what}", f"it did not end within {timeout_s:g} s")
            time.sleep(_POLL_S)
        if channel.exit_status == -1:  # ended by a signal, unless our own limit closed the channel, or the network did
            if time.monotonic() >= deadline:
                raise GuestError(f"run {argv[0]} over {self._what}", f"it did not end within {timeout_s:g} s")
            self._link()
        return Completed(channel.exit_status, bytes(stdout), bytes(stderr))

    def put(self, path: str, content: bytes, mode: int, timeout_s: float) -> None:
        """Write a file; nobody else can open it meanwhile."""
        script = 'umask 077 && rm -f -- "$1" && cat >"$1" && chmod "$2" "$1"'
        self._must(["/bin/sh", "-c", script, "sh", path, f"{mode:o}"], content, timeout_s)

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def _link(self) -> paramiko.Transport:
        link = self._client.get_transport()
        if link is None or not link.is_active():
            raise GuestError(self._what, "the connection was lost")
        return link

    def _must(self, argv: Sequence[str], stdin: bytes, timeout_s: float) -> None:
        done = self.run(argv, timeout_s, stdin)
        if done.status != 0:
            raise GuestError(f"{argv[0]} over {self._what}", done.stderr.decode(errors="replace").strip())


@contextmanager
def _limited(channel: paramiko.Channel, deadline: float) -> Iterator[None]:
    """Close the channel at the deadline; the request to run something is waited for without any limit otherwise."""
    limit = threading.Timer(max(0.0, deadline - time.monotonic()), channel.close)
    limit.daemon = True
    limit.start()
    try:
        channel.settimeout(max(0.001, deadline - time.monotonic()))
        yield
    finally:
        limit.cancel()


def _until(channel: paramiko.Channel, mark: bytes, what: str, deadline: float) -> Completed:
    """What was written before ``mark``, behind which the status and a line end come."""
    stdout, stderr = bytearray(), bytearray()
    while True:
        ended = channel.exit_status_ready()
        took = _drain(channel, stdout, stderr)
        before, found, behind = bytes(stdout).partition(mark)
        if found and behind.endswith(b"\n"):
            return Completed(int(behind), before, bytes(stderr))
        if (ended and not took) or time.monotonic() >= deadline:
            said = " ".join(stderr.decode(errors="replace").split())
            raise GuestError(what, said or ("it has ended" if ended else "it did not end in time"))
        time.sleep(_POLL_S)


def _drain(channel: paramiko.Channel, stdout: bytearray, stderr: bytearray) -> bool:
    """Take what arrived; whether anything did."""
    took = False
    while channel.recv_ready():
        part = channel.recv(65536)
        stdout += part[: max(0, OUTPUT_LIMIT - len(stdout))]
        took = True
    while channel.recv_stderr_ready():
        part = channel.recv_stderr(65536)
        stderr += part[: max(0, OUTPUT_LIMIT - len(stderr))]
        took = True
    return took


def _connect(access: SshAccess, timeout_s: float) -> paramiko.SSHClient:
    import paramiko

    class Strict(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> NoReturn:
            del client, hostname
            _refuse(access, "is not known" if not access.host_key else "is not the one that was accepted", key)

    place = parse_address("SSH address of a guest", access.address, SSH_PORT)
    host, port = place.host, place.port
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(Strict())
    if access.host_key:
        kind, _, encoded = access.host_key.partition(" ")
        known = paramiko.PKey.from_type_string(kind, base64.b64decode(encoded))
        client.get_host_keys().add(host if port == SSH_PORT else f"[{host}]:{port}", kind, known)
    try:
        client.connect(
            host, port, access.user,
            password=access.password.reveal() if access.password else None,
            pkey=_private_key(access) if access.key else None,
            timeout=timeout_s, banner_timeout=timeout_s, auth_timeout=timeout_s, channel_timeout=timeout_s,
            allow_agent=False, look_for_keys=False,
        )  # fmt: skip
        link = client.get_transport()
        assert link is not None
        link.set_keepalive(_KEEPALIVE_S)
    except paramiko.BadHostKeyException as exc:
        client.close()
        _refuse(access, "is not the one that was accepted", exc.key)
    except BaseException:
        client.close()
        raise
    return client


def _private_key(access: SshAccess) -> paramiko.PKey:
    import paramiko

    assert access.key is not None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(access.key.reveal()))
        except (paramiko.SSHException, ValueError):
            continue
    raise GuestError(f"SSH to guest {access.address}", "the private key is not an Ed25519, ECDSA or RSA key "
                     "without passphrase", "store another key")


def _refuse(access: SshAccess, why: str, key: paramiko.PKey) -> NoReturn:
    shown = fingerprint(_as_text(key))
    raise GuestError(
        f"SSH to guest {access.address}", f"its host key {shown} ({key.get_name()}) {why}",
        f"compare it in the guest with 'ssh-keygen -lf', then accept it with '{ACCEPT_COMMAND}'",
    )


def _as_text(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


@contextmanager
def _ssh_errors(what: str) -> Iterator[None]:
    """The border: what paramiko and the network raise becomes :class:`GuestError`."""
    import paramiko

    try:
        yield
    except paramiko.AuthenticationException as exc:
        todo = "check the stored credential of the guest"
        raise GuestError(what, f"the guest refused the user: {exc}", todo) from exc
    except (paramiko.SSHException, OSError, EOFError, ValueError) as exc:
        raise GuestError(what, str(exc) or type(exc).__name__, "check the address and the SSH server") from exc
