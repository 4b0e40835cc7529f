"""The draft of a point: what is left of it when the task ends, and what is said if it cannot be left."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import cast

import pytest

from tests.unit.replication.ends import BEGIN, Ends, Mover, one_end
from understudy.context import Context
from understudy.errors import (
    Cancelled,
    DatastoreError,
    Fenced,
    MoverError,
    PlatformError,
    TransferError,
    UnderstudyError,
)
from understudy.mover import api
from understudy.replication import draft as draft_module
from understudy.replication.draft import HeldDraft, held_draft, open_draft
from understudy.replication.site import Site


def site(ends: Ends) -> Site:
    return cast("Site", ends)


def released(mover: Mover) -> list[tuple[str, bool]]:
    return [(item.draft, item.keep) for item in mover.of(api.ReleaseDraft)]


def test_a_task_that_succeeds_leaves_nothing_to_be_continued() -> None:
    ends = one_end()
    with open_draft(Context(), site(ends), BEGIN) as draft:
        assert ends.target_mover.requests == [BEGIN]
    assert released(ends.target_mover) == [(draft.id, False)]


@pytest.mark.parametrize(
    ("error", "keep"),
    [
        (TransferError("send", "line cut"), True), (MoverError("proxy", "gone"), True),
        (PlatformError("snapshot", "gone"), True), (KeyboardInterrupt(), True), (ZeroDivisionError(), True),
        (Cancelled(), False), (DatastoreError("write", "no space left"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)  # fmt: skip
def test_what_came_is_kept_unless_it_is_in_the_way(error: BaseException, keep: bool) -> None:
    ends = one_end()
    with pytest.raises(type(error)), held_draft(Context(), site(ends), BEGIN, "draft-1"):
        raise error
    assert released(ends.target_mover) == [("draft-1", keep)]


def test_a_draft_that_is_held_already_is_not_begun_again() -> None:
    ends = one_end()
    with held_draft(Context(), site(ends), BEGIN, "draft-1"):
        pass
    assert ends.target_mover.of(api.BeginPoint) == []


@pytest.mark.parametrize("error", [None, DatastoreError("write", "no space left")])
def test_a_draft_that_cannot_be_left_is_a_warning_and_hides_no_error(error: UnderstudyError | None) -> None:
    ends = one_end()
    ends.target_mover.problems[api.ReleaseDraft] = MoverError("proxy", "gone")
    expected = pytest.raises(DatastoreError, match="no space left") if error else contextlib.nullcontext()
    with expected, held_draft(Context(), site(ends), BEGIN, "draft-1"):
        if error is not None:
            raise error
    assert ends.journal.warnings == ["leave replica 'web_replica': proxy: gone"]


def test_what_the_sweep_did_is_told() -> None:
    ends = one_end()
    answer = ends.target_mover.call

    def sweeping(request: object, response_type: type) -> object:
        found = answer(request, response_type)
        return api.DraftOpened("draft-1", ("removed a.partial",)) if isinstance(request, api.BeginPoint) else found

    ends.target_mover.call = sweeping  # type: ignore[method-assign]
    with open_draft(Context(), site(ends), BEGIN):
        pass
    assert ends.journal.warnings == ["sweep of the replica: removed a.partial"]


def test_a_draft_is_opened_again_once_for_all_that_miss_it_and_released_by_its_new_id() -> None:
    ends = one_end()
    with held_draft(Context(), site(ends), BEGIN, "draft-1") as draft:
        draft.reopen(0)
        draft.reopen(0)
        assert (draft.id, draft.generation) == ("draft-2", 1)
        draft.reopen(1)
    assert ends.target_mover.of(api.BeginPoint) == [replace(BEGIN, resume=True)] * 2
    assert released(ends.target_mover) == [("draft-3", False)]


@pytest.mark.parametrize("problem", [MoverError("proxy", "gone"), Fenced("replica", "a newer attempt owns it")])
def test_a_draft_that_could_not_be_opened_again_is_still_the_old_one(problem: UnderstudyError) -> None:
    ends = one_end()
    ends.target_mover.problems[api.BeginPoint] = [problem]
    draft = HeldDraft(site(ends), BEGIN, "draft-1")
    with pytest.raises(type(problem)):
        draft.reopen(0)
    assert (draft.id, draft.generation) == ("draft-1", 0)
    draft.reopen(0)
    assert draft.generation == 1


def test_a_proxy_hears_of_a_draft_for_as_long_as_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_module, "HEARTBEAT_S", 0.01)
    ends = one_end()
    ends.target_mover.problems[api.DraftQuery] = [MoverError("proxy", "gone")]
    with held_draft(Context(), site(ends), BEGIN, "draft-1") as draft:
        assert Context().wait_until(lambda: len(ends.target_mover.of(api.DraftQuery)) > 2, timeout_s=20)
        draft.reopen(0)
        assert Context().wait_until(lambda: api.DraftQuery("draft-2") in ends.target_mover.requests, timeout_s=20)
    heard = len(ends.target_mover.of(api.DraftQuery))
    time.sleep(0.1)
    assert len(ends.target_mover.of(api.DraftQuery)) <= heard + 1
    assert ends.journal.warnings == []
