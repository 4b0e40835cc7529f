"""Power: whether a VM went away, told from what the platform says of it a moment later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from understudy.context import CancelToken, Context
from understudy.errors import Cancelled, HostUnreachable, NotFound, UnderstudyError
from understudy.model.inventory import Vm, VmState
from understudy.platforms import SourcePlatform
from understudy.replication import power
from understudy.replication.power import power_change


def vm(run: str) -> Vm:
    state = VmState.RUNNING if run else VmState.SHUT_OFF
    return Vm("web", "uuid", state, "", "", "", 0, 1, (), (), False, False, "", run=run)


class Source:
    """Describes the VM by one run after the other; the last one stays."""

    def __init__(self, *runs: str | UnderstudyError) -> None:
        self._runs: Iterator[str | UnderstudyError] = iter(runs)
        self._last: str | UnderstudyError = ""

    def describe_vm(self, name: str) -> Vm:
        assert name == "web"
        self._last = next(self._runs, self._last)
        if isinstance(self._last, UnderstudyError):
            raise self._last
        return vm(self._last)


def change(before: str, *after: str | UnderstudyError) -> str:
    return power_change(Context(), cast("SourcePlatform", Source(*after)), vm(before))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "NOTICED_S", 0.1)
    monkeypatch.setattr(power, "RESTARTED_S", 0.1)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("1", ["1"], ""),
        ("1", [""], "it was powered off"),
        ("1", ["2"], "it was restarted"),
        ("1", ["1", ""], "it was powered off"),
        ("1", ["", "2"], "it was restarted"),
        ("", ["1"], ""),
        ("1", [HostUnreachable("host", "no answer")], ""),
        ("1", [NotFound("VM", "gone")], ""),
    ],
    ids=["runs on", "off", "restarted", "off, but libvirt notices late", "being restarted", "was off", "host gone",
         "undefined"],
)  # fmt: skip
def test_what_happened_to_the_power_of_a_vm(before: str, after: list[str | UnderstudyError], told: str) -> None:
    assert change(before, *after) == told


def test_a_cancel_ends_the_wait() -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        power_change(Context(token), cast("SourcePlatform", Source("1")), vm("1"))
