"""What an operator may call things, and what an address may contain."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, urlsplit

from understudy.controller.schema import NAME_LENGTH
from understudy.errors import UsageError

_SECRET_PARAMETER = re.compile(r"pass|pwd|secret|token", re.IGNORECASE)


def check_name(what: str, name: str) -> None:
    """Accept ``name`` for a host, datastore, proxy or job.

    :raises UsageError: if it is empty, too long, or has control characters or a slash.
    """
    if not name.strip():
        raise UsageError(what, "the name is empty", "choose a name")
    if len(name) > NAME_LENGTH:
        raise UsageError(what, f"the name is longer than {NAME_LENGTH} characters", "choose a shorter name")
    if "/" in name or has_control_characters(name):
        raise UsageError(what, f"the name {name!r} has a slash or a control character", "choose another name")


def has_control_characters(text: str) -> bool:
    """Whether ``text`` has characters that a terminal, a file name or a log line must not see."""
    return any(not char.isprintable() for char in text)


def check_path(what: str, path: str) -> None:
    """Accept ``path`` as a directory on a host.

    :raises UsageError: if it is not absolute, or has control characters.
    """
    if not path.startswith("/") or has_control_characters(path) or ".." in path.split("/"):
        raise UsageError(what, f"{path!r} is not an absolute path", "give the full path of a directory on the host")


def check_address(what: str, address: str) -> None:
    """Accept ``address`` as the network name or address of a host, without a port.

    :raises UsageError: if it is neither.
    """
    if not re.fullmatch(r"[0-9A-Za-z.:_-]{1,253}", address) or (":" in address and not _is_ipv6(address)):
        raise UsageError(what, f"{address!r} is no network name or address", "give one without a port, e.g. kvm2.lan")


def _is_ipv6(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 6
    except ValueError:
        return False


def check_uri(what: str, uri: str) -> None:
    """Accept ``uri`` as a platform address. Its text is never repeated: it may hold a password that must not be seen.

    :raises UsageError: if it is not an address, or contains a password.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) or has_control_characters(uri):
        raise UsageError(what, "this is not a host address", "give a libvirt URI, e.g. qemu+ssh://root@kvm2/system")
    user, at, _ = rest.split("/", 1)[0].rpartition("@")
    if (at and ":" in user) or _has_secret_parameter(what, uri):
        raise UsageError(what, "the address contains a password, and addresses are stored in clear text",
                         "use a key or a certificate instead, and leave the password out")  # fmt: skip


def _has_secret_parameter(what: str, uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        _ = parts.port  # parsed when asked for; "user:secret/..." without '@' shows here
    except ValueError as exc:
        raise UsageError(what, "the address cannot be understood", "check its host and port") from exc
    return any(_SECRET_PARAMETER.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True))
