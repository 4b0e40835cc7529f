"""Network addresses: what an operator types is understood, and written so that it is understood again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.model.address import Address, parse_address

HOSTS = st.one_of(st.ip_addresses().map(str), st.sampled_from(["kvm1", "kvm-1.example.org", "a_b", "K"]))


@given(HOSTS, st.integers(1, 65535))
def test_an_address_is_understood_as_it_is_written(host: str, port: int) -> None:
    address = Address(host, port)
    assert parse_address("x", str(address)) == address
    assert parse_address("x", str(address), 1) == address


@pytest.mark.parametrize(
    ("text", "host"), [("kvm1", "kvm1"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("[fe80::1]", "fe80::1")]
)
def test_a_host_alone_gets_the_default_port(text: str, host: str) -> None:
    assert parse_address("x", text, 7342) == Address(host, 7342)
    with pytest.raises(UsageError, match="has no valid port"):
        parse_address("x", text)


@pytest.mark.parametrize(
    "text",
    ["", ":", ":1", "[]:1", "[::1", "[::1]1", "[::1]x:1", "[kvm1:2]:1", "a b:1", "a/b:1", "-a:1", "a:0", "a:65536",
     "a:-1", "a:1 ", "a:\u0661", "a:99999999999999999999", "fe80::1%eth0", "user@host:1", "a:b:c", "x" * 300 + ":1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address("x", text)


def test_loopback_is_known() -> None:
    assert all(Address(host, 1).is_loopback for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(Address(host, 1).is_loopback for host in ("10.0.0.1", "::", "kvm1", ""))
