"""What the configuration database keeps of a proxy beyond its name: identity, certificate, settings that change."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.controller.catalog import check_slots, host_row, proxy_row, proxy_value
from understudy.controller.database import Database
from understudy.errors import Refused
from understudy.model.address import parse_address
from understudy.model.job import Proxy, ProxyKind
from understudy.mover.api import MoverInfo

LARGEST_SKEW_S = 60.0


@dataclass(frozen=True)
class ProxyChange:
    """New settings of a proxy; None leaves one as it is, an empty text takes it away.

    :ivar control_address: of a service only.
    """

    slots: int | None = None
    host: str | None = None
    control_address: str | None = None
    data_address: str | None = None


def change_proxy(database: Database, name: str, change: ProxyChange) -> Proxy:
    """Change settings of a proxy; the proxy as it then is. Sessions that run go on with the old ones.

    :raises NotFound: if there is no such proxy or host.
    :raises UsageError: if a value is not acceptable.
    :raises Refused: if a service would lose an address, or a child get a control address.
    """
    what = f"change proxy {name!r}"
    with database.transaction() as session:
        row = proxy_row(session, name)
        service = ProxyKind(row.kind) is ProxyKind.SERVICE
        if change.slots is not None:
            check_slots(what, change.slots)
            row.slots = change.slots
        if change.host is not None:
            row.host = host_row(session, change.host).name if change.host else None
        if change.control_address is not None:
            if not service:
                raise Refused(what, "it is a child process of the controller", "leave --control-address out")
            row.control_address = str(parse_address(what, change.control_address))
        if change.data_address is not None:
            if service and not change.data_address:
                raise Refused(what, "a service needs a data address", "give HOST:PORT")
            row.data_address = str(parse_address(what, change.data_address)) if change.data_address else ""
        return proxy_value(row)


def child_identity(database: Database, name: str) -> str:
    """The identity of a proxy that is a child process, given to it when first asked for.

    :raises NotFound: if there is no such proxy.
    """
    from understudy.signing import new_proxy_identity

    with database.transaction() as session:
        row = proxy_row(session, name)
        row.identity = row.identity or new_proxy_identity()
        return row.identity


def record_certificate(database: Database, name: str, identity: str, expires: str) -> None:
    """Note until when the certificate of a proxy is valid; one that was removed or enrolled anew stays as it is."""
    with database.transaction() as session:
        row = proxy_row(session, name)
        if row.identity == identity:
            row.certificate_expires = expires


def proxy_warnings(info: MoverInfo, clock_skew_s: float, version: str) -> tuple[str, ...]:
    """What an operator should look at, in a proxy that answered a controller of this ``version``. Pure."""
    found = []
    if abs(clock_skew_s) > LARGEST_SKEW_S:
        way = "ahead of" if clock_skew_s > 0 else "behind"
        found.append(f"its clock is {abs(clock_skew_s):.0f} s {way} the controller's: certificates may be refused")
    theirs = info.versions.get("understudy", "unknown")
    if theirs != version:
        found.append(f"it is version {theirs}, the controller {version}: use the same version everywhere")
    return tuple(found)
