"""Throttles in the configuration database: what may be stored, changed and removed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.controller.catalog import add_proxy
from understudy.controller.database import Database
from understudy.controller.throttles import (
    HIGHEST_RATE,
    LOWEST_RATE,
    add_throttle,
    get_throttle,
    list_throttles,
    remove_throttle,
    set_throttle,
)
from understudy.errors import NotFound, Refused, UsageError
from understudy.model.job import Proxy
from understudy.model.throttle import Throttle, parse_window
from understudy.units import MIB

WINDOWS = (parse_window("Mon-Fri 08:00-18:00 1M"), parse_window("Sat 22:00-06:00 unlimited"))


@pytest.fixture
def proxied(database: Database) -> Database:
    """A database with the proxies ``far`` and ``local``."""
    add_proxy(database, Proxy("far", "", 2))
    return database


def test_a_throttle_is_stored_listed_changed_and_removed(proxied: Database) -> None:
    pair = add_throttle(proxied, Throttle("b", "local", "far", 5 * MIB, WINDOWS))
    everything = add_throttle(proxied, Throttle("a", rate=HIGHEST_RATE))
    assert list_throttles(proxied) == (everything, pair)
    assert get_throttle(proxied, "b") == pair
    changed = set_throttle(proxied, replace(pair, rate=None, windows=WINDOWS[:1]))
    assert get_throttle(proxied, "b") == changed
    remove_throttle(proxied, "b")
    assert list_throttles(proxied) == (everything,)


def test_a_name_is_taken_once_and_must_be_usable(proxied: Database) -> None:
    add_throttle(proxied, Throttle("a", rate=MIB))
    with pytest.raises(Refused, match="add throttle 'a': the name is taken"):
        add_throttle(proxied, Throttle("a", rate=2 * MIB))
    with pytest.raises(UsageError):
        add_throttle(proxied, Throttle("a/b", rate=MIB))
    assert list_throttles(proxied) == (Throttle("a", rate=MIB),)


@pytest.mark.parametrize(
    ("throttle", "why"),
    [
        (Throttle("a"), "it would not limit anything"),
        (Throttle("a", windows=(parse_window("Sat 22:00-06:00 unlimited"),)), "it would not limit anything"),
        (Throttle("a", rate=LOWEST_RATE - 1), f"{LOWEST_RATE - 1} bytes/s is no usable rate"),
        (Throttle("a", rate=MIB, windows=(parse_window("Sat 22:00-06:00 1"),)), "1 bytes/s is no usable rate"),
        (Throttle("a", rate=HIGHEST_RATE + 1), "is no usable rate"),
        (Throttle("a", "far", "far", MIB), "never leaves its machine"),
    ],
)
def test_a_throttle_that_makes_no_sense_is_refused(proxied: Database, throttle: Throttle, why: str) -> None:
    add_throttle(proxied, Throttle("kept", rate=MIB))
    with pytest.raises(UsageError, match=why):
        add_throttle(proxied, throttle)
    with pytest.raises(UsageError, match=why):
        set_throttle(proxied, replace(throttle, name="kept"))
    assert list_throttles(proxied) == (Throttle("kept", rate=MIB),)


def test_what_is_unknown_is_not_found(proxied: Database) -> None:
    for throttle in (Throttle("a", "nobody", "", MIB), Throttle("a", "", "nobody", MIB)):
        with pytest.raises(NotFound, match="proxy 'nobody'"):
            add_throttle(proxied, throttle)
    with pytest.raises(NotFound, match="throttle 'a': no such throttle; see 'understudy throttle list'"):
        get_throttle(proxied, "a")
    with pytest.raises(NotFound, match="throttle 'a'"):
        set_throttle(proxied, Throttle("a", rate=MIB))
    with pytest.raises(NotFound, match="throttle 'a'"):
        remove_throttle(proxied, "a")
