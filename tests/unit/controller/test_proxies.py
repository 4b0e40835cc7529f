"""What is kept of a proxy beyond its name: settings that change, an identity that does not, and what to warn of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.controller import catalog
from understudy.controller.database import Database
from understudy.controller.proxies import (
    ProxyChange,
    change_proxy,
    child_identity,
    proxy_warnings,
    record_certificate,
)
from understudy.controller.schema import ThrottleRow
from understudy.errors import NotFound, Refused, UsageError
from understudy.model.job import Proxy, ProxyKind
from understudy.mover.api import MoverInfo

FAR = Proxy("far", "", 2, ProxyKind.SERVICE, "proxy-1.x", "kvm2:7342", "kvm2:7343", "2027-01-01T00:00:00+00:00")


def test_settings_change_one_by_one(site: Database) -> None:
    catalog.add_proxy(site, FAR)
    assert change_proxy(site, "far", ProxyChange()) == FAR
    changed = change_proxy(site, "far", ProxyChange(5, "dr", "[::1]:1", "kvm3:2"))
    assert changed == replace(FAR, slots=5, host="dr", control_address="[::1]:1", data_address="kvm3:2")
    assert change_proxy(site, "far", ProxyChange(host="")).host == ""
    assert catalog.get_proxy(site, "far").slots == 5


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("far", ProxyChange(slots=1001), UsageError), ("far", ProxyChange(host="mars"), NotFound),
        ("far", ProxyChange(control_address="kvm2"), UsageError), ("far", ProxyChange(data_address=":1"), UsageError),
        ("far", ProxyChange(data_address=""), Refused), ("local", ProxyChange(control_address="h:1"), Refused),
        ("near", ProxyChange(slots=1), NotFound),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(
    site: Database, name: str, change: ProxyChange, error: type[Exception]
) -> None:
    catalog.add_proxy(site, FAR)
    with pytest.raises(error):
        change_proxy(site, name, change)
    assert catalog.get_proxy(site, "far") == FAR


def test_a_child_may_take_data_or_not(database: Database) -> None:
    assert change_proxy(database, "local", ProxyChange(data_address="h:7343")).data_address == "h:7343"
    assert change_proxy(database, "local", ProxyChange(data_address="")).data_address == ""


def test_a_child_gets_one_identity(database: Database) -> None:
    first = child_identity(database, "local")
    assert child_identity(database, "local") == first
    catalog.add_proxy(database, Proxy("other", "", 1))
    assert child_identity(database, "other") != first


def test_a_certificate_is_noted_for_its_own_identity_only(database: Database) -> None:
    catalog.add_proxy(database, FAR)
    record_certificate(database, "far", "proxy-0.x", "2020-01-01T00:00:00+00:00")
    assert catalog.get_proxy(database, "far") == FAR
    record_certificate(database, "far", FAR.identity, "2028-01-01T00:00:00+00:00")
    assert catalog.get_proxy(database, "far").certificate_expires == "2028-01-01T00:00:00+00:00"


def test_a_proxy_that_a_throttle_names_is_not_removed(database: Database) -> None:
    catalog.add_proxy(database, FAR)
    with database.transaction() as session:
        session.add(ThrottleRow(name="night", source_proxy="local", target_proxy="far", rate=1, windows=[]))
    with pytest.raises(Refused, match="it is used by throttle 'night'"):
        catalog.remove_proxy(database, "far")


@pytest.mark.parametrize(
    ("skew_s", "theirs", "warnings"),
    [
        (0.4, "1.0", ()), (-59.0, "1.0", ()),
        (95.2, "1.0", ("its clock is 95 s ahead of the controller's: certificates may be refused",)),
        (-3600.0, "1.0", ("its clock is 3600 s behind the controller's: certificates may be refused",)),
        (0.0, "0.9", ("it is version 0.9, the controller 1.0: use the same version everywhere",)),
    ],
)  # fmt: skip
def test_a_wrong_clock_and_another_version_are_warned_of(
    skew_s: float, theirs: str, warnings: tuple[str, ...]
) -> None:
    assert proxy_warnings(MoverInfo("far", 1, {"understudy": theirs}), skew_s, "1.0") == warnings
