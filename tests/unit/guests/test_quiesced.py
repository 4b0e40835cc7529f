"""Quiescing: recorded before the freeze, thawed whatever happens, and honest about what was achieved."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

import pytest

from understudy.errors import GuestError, HostUnreachable, UnderstudyError
from understudy.guests.freezing import Quiesced, Watchdog
from understudy.model.guest import GuestPolicy


@dataclass
class Script:
    """What the guest and the watchdog are to answer, and everything that happened, in order."""

    freeze: int | UnderstudyError = 2
    thaw: int | UnderstudyError = 2
    arm: UnderstudyError | None = None
    freeze_s: float = 0.0
    in_time: bool = True
    events: list[str] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)

    def answer(self, value: int | UnderstudyError, event: str, timeout_s: float) -> int:
        self.events.append(event)
        self.timeouts.append(timeout_s)
        if isinstance(value, UnderstudyError):
            raise value
        return value


class Transport:
    def __init__(self, script: Script) -> None:
        self._script = script

    def freeze(self, timeout_s: float) -> int:
        time.sleep(self._script.freeze_s)
        return self._script.answer(self._script.freeze, "freeze", timeout_s)

    def thaw(self, timeout_s: float) -> int:
        return self._script.answer(self._script.thaw, "thaw", timeout_s)


class ScriptedWatchdog:
    def __init__(self, script: Script) -> None:
        self._script = script

    def ready(self) -> None:
        pass

    def arm(self, seconds: float) -> None:
        self._script.events.append(f"arm {seconds:g}")
        if self._script.arm is not None:
            raise self._script.arm

    def disarm(self) -> bool:
        self._script.events.append("disarm")
        return self._script.in_time


def quiesced(script: Script, policy: GuestPolicy = GuestPolicy.TRY, deadline_s: float = 10.0) -> Quiesced:
    watchdog = cast("Watchdog", ScriptedWatchdog(script))

    def record(frozen: bool) -> None:
        script.events.append(f"record {frozen}")

    return Quiesced(Transport(script), watchdog, policy, record, deadline_s)


REFUSED = GuestError("freeze VM 'web'", "the agent does not answer")
BOTH = pytest.mark.parametrize("policy", [GuestPolicy.TRY, GuestPolicy.REQUIRE])


@BOTH
def test_the_freeze_is_recorded_before_and_the_thaw_after(policy: GuestPolicy) -> None:
    script = Script()
    with quiesced(script, policy) as result:
        was_frozen = result.frozen
        script.events.append("snapshot")
    assert was_frozen
    assert script.events == [
        "record True", "arm 10", "freeze", "snapshot", "thaw", "disarm", "record False",
    ]  # fmt: skip
    assert (result.frozen, result.warnings) == (True, [])


def test_the_time_that_the_guest_stood_still_is_measured() -> None:
    with quiesced(Script()) as result:
        while_frozen = result.frozen_ms
        time.sleep(0.06)
    assert while_frozen is None
    assert result.frozen_ms is not None
    assert 55 <= result.frozen_ms <= 5000


def test_freeze_and_thaw_together_keep_the_deadline() -> None:
    script = Script()
    with quiesced(script, deadline_s=8.0):
        pass
    assert sum(script.timeouts) <= 8.0
    assert min(script.timeouts) >= 1.0


def test_the_deadline_counts_from_what_was_frozen_before() -> None:
    script = Script()
    with Quiesced(Transport(script), ScriptedWatchdog(script), GuestPolicy.TRY, lambda _: None, 10.0,
                  since=time.monotonic() - 4):  # fmt: skip
        pass
    armed = float(script.events[0].removeprefix("arm "))
    assert 5.5 < armed <= 6
    assert sum(script.timeouts) <= 6


def test_without_time_left_nothing_is_frozen() -> None:
    script = Script()
    with Quiesced(Transport(script), ScriptedWatchdog(script), GuestPolicy.TRY, lambda _: None, 10.0,
                  since=time.monotonic() - 9) as result:  # fmt: skip
        assert not result.frozen
    assert script.events == []
    assert "what came before it left no time" in result.warnings[0]


@BOTH
def test_a_freeze_that_is_done_after_the_deadline_is_thawed_at_once_and_does_not_count(policy: GuestPolicy) -> None:
    script = Script(freeze_s=2.1)
    quiescing = quiesced(script, policy, deadline_s=2.05)
    if policy is GuestPolicy.REQUIRE:
        with pytest.raises(GuestError, match="after the deadline"):
            quiescing.__enter__()
    else:
        with quiescing as result:
            assert not result.frozen
        assert "after the deadline" in result.warnings[0]
    assert script.events[2:5] == ["freeze", "thaw", "disarm"]


@pytest.mark.parametrize("freeze", [REFUSED, 0], ids=["refused", "nothing frozen"])
def test_a_failed_freeze_is_a_warning_with_try_and_the_guest_is_thawed_all_the_same(freeze: int | GuestError) -> None:
    script = Script(freeze=freeze)
    with quiesced(script) as result:
        assert not result.frozen
        script.events.append("snapshot")
    assert script.events == ["record True", "arm 10", "freeze", "thaw", "disarm", "record False", "snapshot"]
    assert result.frozen_ms is None
    assert len(result.warnings) == 1
    assert "the restore point is crash-consistent" in result.warnings[0]


@pytest.mark.parametrize("freeze", [REFUSED, 0], ids=["refused", "nothing frozen"])
def test_a_failed_freeze_is_an_error_with_require_and_the_guest_is_thawed_all_the_same(
    freeze: int | GuestError,
) -> None:
    script = Script(freeze=freeze)
    with pytest.raises(GuestError, match=r"guest processing: freeze.*use --guest-processing try"):
        quiesced(script, GuestPolicy.REQUIRE).__enter__()
    assert script.events == ["record True", "arm 10", "freeze", "thaw", "disarm", "record False"]


def test_without_a_watchdog_the_guest_is_never_frozen() -> None:
    script = Script(arm=GuestError("thaw watchdog", "it could not reach the VM"))
    with quiesced(script) as result:
        assert not result.frozen
    assert "freeze" not in script.events
    with pytest.raises(GuestError, match="it could not reach the VM"):
        quiesced(script, GuestPolicy.REQUIRE).__enter__()


@BOTH
def test_a_refused_thaw_stays_recorded_and_armed(policy: GuestPolicy) -> None:
    script = Script(thaw=GuestError("thaw VM 'web'", "busy"))
    quiescing = quiesced(script, policy)
    try:
        with quiescing:
            pass
    except GuestError:
        assert policy is GuestPolicy.REQUIRE
    assert "record False" not in script.events
    assert "disarm" not in script.events
    assert "thaw VM 'web': busy; the watchdog goes on trying to thaw the guest" in quiescing.result.warnings
    assert not quiescing.result.frozen


@pytest.mark.parametrize("script", [Script(thaw=0), Script(in_time=False)], ids=["already thawed", "watchdog fired"])
def test_a_guest_that_was_thawed_before_the_snapshot_was_complete_does_not_count(script: Script) -> None:
    script.events.clear()
    with quiesced(script) as result:
        was_frozen = result.frozen
    assert (was_frozen, result.frozen) == (True, False)
    assert len(result.warnings) == 1
    assert "it was thawed before the snapshot was complete" in result.warnings[0]
    assert script.events[-1] == "record False"


@pytest.mark.parametrize("script", [Script(thaw=0), Script(in_time=False)], ids=["already thawed", "watchdog fired"])
def test_with_require_such_a_snapshot_is_an_error(script: Script) -> None:
    with (
        pytest.raises(GuestError, match="it was thawed before the snapshot was complete"),
        quiesced(script, GuestPolicy.REQUIRE),
    ):
        pass


@BOTH
def test_a_failed_snapshot_thaws_and_its_own_error_is_told(policy: GuestPolicy) -> None:
    script = Script(thaw=0)
    with pytest.raises(ZeroDivisionError), quiesced(script, policy):
        raise ZeroDivisionError
    assert script.events[-3:] == ["thaw", "disarm", "record False"]


def test_a_lost_connection_while_freezing_leaves_the_record_and_the_armed_watchdog() -> None:
    script = Script(freeze=HostUnreachable("freeze", "connection reset"))
    with pytest.raises(HostUnreachable):
        quiesced(script).__enter__()
    assert script.events == ["record True", "arm 10", "freeze"]
