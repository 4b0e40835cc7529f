"""Listening: on one address or on all, also before the network is up."""

from __future__ import annotations

import socket

import pytest

from understudy.errors import MoverError, UsageError
from understudy.model.address import Address
from understudy.mover.listeners import listen, parse_listen, place_of


def test_without_a_host_both_kinds_of_address_are_served() -> None:
    with listen(Address("", 0)) as listener:
        port = listener.getsockname()[1]
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            if family == socket.AF_INET or socket.has_dualstack_ipv6():
                socket.create_connection((host, port), 10).close()


def test_an_address_that_this_machine_will_have_later_can_be_listened_on() -> None:
    with listen(Address("192.0.2.77", 0)) as listener:
        assert listener.getsockname()[0] == "192.0.2.77"


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MoverError, match=rf"listen on 127\.0\.0\.1:{port}: Address already in use; choose another"):
            listen(Address("127.0.0.1", port))


def test_a_foreign_address_is_waited_for_everywhere() -> None:
    assert place_of(Address("127.0.0.1", 1)) == Address("127.0.0.1", 1)
    assert place_of(Address("192.0.2.77", 1)) == Address("", 1)
    assert place_of(Address("nowhere.invalid", 1)) == Address("", 1)


def test_the_host_of_a_listening_address_may_be_left_out() -> None:
    assert parse_listen("x", ":7342") == Address("", 7342)
    assert parse_listen("x", "[::1]:7342") == Address("::1", 7342)
    for text in ("", ":", ":0", ":x", "h"):
        with pytest.raises(UsageError):
            parse_listen("x", text)
