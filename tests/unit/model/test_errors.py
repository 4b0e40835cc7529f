"""Errors: one line, stable codes, the same class on both sides of a process border."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy import errors
from understudy.errors import Cancelled, TrackingLost, UnderstudyError, error_classes, from_fields

CODES = {
    "error": 1, "usage": 2, "not_found": 2, "refused": 2, "database": 1, "host_unreachable": 1, "platform": 1,
    "tracking_lost": 1, "guest": 1, "datastore": 1, "replica": 1, "transfer": 1, "mover": 1, "fenced": 1,
    "task_unfinished": 1, "cancelled": 130, "link_lost": 1, "cbt_mismatch": 1,
}  # fmt: skip
RETRYABLE = {"host_unreachable", "transfer", "link_lost", "mover"}
CLASSES = [
    cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, UnderstudyError)
]


def test_codes_and_exit_statuses_are_those_that_scripts_know() -> None:
    assert {cls.code: cls.exit_status for cls in CLASSES} == CODES
    assert {cls.code for cls in CLASSES if cls.retryable} == RETRYABLE


def test_every_class_is_in_the_tree_of_the_docstring() -> None:
    for cls in CLASSES:
        assert re.search(rf"{cls.__name__} +code {cls.code}\b", errors.__doc__ or "")


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_back_from_its_fields_as_the_same_class(cls: type[UnderstudyError]) -> None:
    sent = cls("do a thing", "no luck", "try harder")
    got = from_fields(sent.code, sent.what, sent.why, sent.todo)
    assert type(got) is cls
    assert (got.what, got.why, got.todo, str(got)) == ("do a thing", "no luck", "try harder", str(sent))


def test_a_code_names_one_class_and_subclasses_do_not_take_their_parents_code() -> None:
    import understudy.lab.errors  # noqa: F401  (another branch of the tree)

    for code, cls in error_classes().items():
        assert cls.code == code
        assert cls is UnderstudyError or "code" in vars(cls), f"{cls.__name__} shares the code of its parent"
    assert set(CODES) <= set(error_classes())


def test_an_unknown_code_becomes_the_base_class_and_keeps_its_words() -> None:
    got = from_fields("of_the_future", "a", "b", "")
    assert type(got) is UnderstudyError
    assert str(got) == "a: b"


@given(st.text(), st.text(), st.text())
def test_a_message_is_one_printable_line_whatever_it_is_made_of(what: str, why: str, todo: str) -> None:
    line = str(UnderstudyError(what, why, todo))
    assert line.splitlines() in ([line], [])
    assert not set(line) & set("\n\r\t\v\f")


@given(st.text(string.ascii_letters, min_size=1), st.text(string.ascii_letters, min_size=1))
def test_a_message_has_its_advice_only_if_there_is_one(what: str, why: str) -> None:
    assert str(UnderstudyError(what, why)) == f"{what}: {why}"
    assert str(UnderstudyError(what, why, "wait")) == f"{what}: {why}; wait"


def test_lost_tracking_has_a_reason_and_a_cancellation_has_words() -> None:
    assert TrackingLost("a", "b").reason == "bitmap_inconsistent"
    assert TrackingLost("a", "b", reason="checkpoint_missing").reason == "checkpoint_missing"
    assert str(Cancelled()) == "session: cancelled by the operator"


def test_a_mismatch_that_another_process_found_keeps_its_reason() -> None:
    got = from_fields("cbt_mismatch", "read disk 'vda'", "3 of 16 blocks have changed", "")
    assert isinstance(got, TrackingLost)
    assert got.reason == "cbt_mismatch"
