"""Addresses of vCenters and ESXi hosts."""

from __future__ import annotations

import pytest

from understudy.controller.naming import check_uri
from understudy.errors import UsageError
from understudy.platforms.vsphere.address import ServerAddress, parse_address


@pytest.mark.parametrize(
    ("uri", "address", "name"),
    [
        ("vpx://vcenter.lan/", ServerAddress("vpx", "vcenter.lan"), "vcenter.lan"),
        ("vpx://vcenter.lan", ServerAddress("vpx", "vcenter.lan"), "vcenter.lan"),
        ("esx://root@esxi1:8443/", ServerAddress("esx", "esxi1", 8443, "root"), "esxi1:8443"),
        ("vpx://ad%40vsphere.local@vc/", ServerAddress("vpx", "vc", 443, "ad@vsphere.local"), "vc"),
        ("esx://root@[fd00::7]/", ServerAddress("esx", "fd00::7", 443, "root"), "[fd00::7]"),
    ],
)
def test_an_address_names_a_server(uri: str, address: ServerAddress, name: str) -> None:
    assert parse_address(uri) == address
    assert address.name == name
    check_uri("host", uri)


@pytest.mark.parametrize(
    "uri",
    ["vpx:///", "http://vcenter/", "vpx://vcenter/Datacenter", "vpx://vcenter/?no_verify=1", "vpx://vcenter:0/",
     "vpx://vcenter:https/", "vpx://vcenter/#x", "vpx:vcenter", "vpx://[fd00/"],
)  # fmt: skip
def test_what_names_no_server_is_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        parse_address(uri)


@pytest.mark.parametrize("uri", ["vpx://root:geheim@vcenter/", "esx://root:geheim@esxi1:443"])
def test_a_password_in_an_address_is_refused_and_not_repeated(uri: str) -> None:
    for check in (parse_address, lambda text: check_uri("host", text)):
        with pytest.raises(UsageError, match="contains a password") as caught:
            check(uri)
        assert "geheim" not in str(caught.value)
