"""What became of a run in which somebody died: what it says of itself, against what is there."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tests.system.commands import Answer


@dataclass(frozen=True)
class Outcome:
    """What became of a run in which somebody died.

    :ivar recorded: whether its restore point is on record.
    :ivar heard: whether its controller lived on and knows of that point.
    """

    recorded: bool
    heard: bool


def outcome_of(answer: Answer, before: Sequence[str], after: Sequence[str], kept: int, *, killed: bool) -> Outcome:
    """Check what a run says of itself against the points on record, and what it did to older ones.

    :param before, after: the points on record, oldest first.
    :param kept: how many the job keeps.
    :param killed: it was the controller that died.
    """
    new = [point for point in after if point not in before]
    old = [point for point in after if point in before]
    assert len(new) <= 1, (before, after)
    assert list(after) == [*before[len(before) - len(old):], *new], (before, after)
    assert len(after) >= min(len(before), kept), (before, after)
    if killed:
        assert answer.status == -signal.SIGKILL, answer
        return Outcome(bool(new), heard=False)
    assert answer.status in (0, 1), answer
    assert "Traceback" not in answer.err, answer
    (task,) = answer.json["tasks"]
    assert (task["restore_point"] is not None) == (answer.status == 0), answer
    assert task["restore_point"] in (None, *new), "a point that was reported is gone"
    assert task["error"] or answer.status == 0, answer
    return Outcome(bool(new), heard=task["restore_point"] is not None)
