"""Addresses on a network: ``HOST:PORT``, with brackets around an IPv6 address."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from understudy.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Address:
    """A host, by name or number, and a port; no host means every address of this machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(what: str, text: str, default_port: int | None = None) -> Address:
    """The address that ``text`` is: ``HOST:PORT``, or ``HOST`` alone if there is a default port.

    :raises UsageError: if it is none.
    """
    advice = "give HOST:PORT, and an IPv6 address in brackets"
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") else "" if closed and not port else "?"
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if not _is_host(host):
        raise UsageError(what, f"{text!r} is no network address", advice)
    if not port and default_port is not None:
        return Address(host, default_port)
    if not port.isascii() or not port.isdigit() or not 1 <= int(port[:6]) <= 65535:
        raise UsageError(what, f"{text!r} has no valid port", advice)
    return Address(host, int(port))


def _is_host(host: str) -> bool:
    if ":" not in host:
        return bool(_NAME.fullmatch(host))
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
