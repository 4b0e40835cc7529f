"""An answer of the survey's process that breaks one rule is refused as a whole."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from understudy.errors import TransferError
from understudy.model.exclusion import MOST_RANGES, DiskSurvey, Exclusion, pack
from understudy.model.extent import PART, Extent
from understudy.mover.api import NbdSource, SurveyedDisk
from understudy.mover.survey_answer import checked
from understudy.units import MIB

SIZE = 16 * MIB
DISKS = tuple(SurveyedDisk(name, NbdSource("/s", name, ""), SIZE) for name in ("vda", "vdb"))
GOOD = DiskSurvey(Exclusion("vda", pack([Extent(0, 2 * PART)]), {"swap": PART, "mask": PART}, {"a:/x": "1"}), 5, ("n",))
OTHER = DiskSurvey(Exclusion("vdb"))


def raw(*numbers: int) -> str:
    """Packed as it is told, whether that is right or not."""
    data = bytearray()
    for number in numbers:
        while number >= 0x80:
            data.append(number & 0x7F | 0x80)
            number >>= 7
        data.append(number)
    return base64.b64encode(zlib.compress(bytes(data))).decode()


def with_exclusion(**changes: Any) -> DiskSurvey:
    return replace(GOOD, exclusion=replace(GOOD.exclusion, **changes))


def test_a_right_answer_is_passed_on() -> None:
    assert checked([GOOD, OTHER], DISKS) == (GOOD, OTHER)
    end = replace(GOOD, exclusion=Exclusion("vda", pack([Extent(SIZE, 512)]), {"free": 512}))
    odd = replace(DISKS[0], size=SIZE + 512)
    assert checked([end, OTHER], [odd, DISKS[1]]) == (end, OTHER)


@pytest.mark.parametrize("surveys", [(), (GOOD,), (OTHER, GOOD), (GOOD, GOOD), (GOOD, OTHER, OTHER)])
def test_disks_must_be_those_that_were_asked_for(surveys: tuple[DiskSurvey, ...]) -> None:
    with pytest.raises(TransferError, match="not those of the disks"):
        checked(surveys, DISKS)


@pytest.mark.parametrize("bad", [
    with_exclusion(packed=pack([Extent(SIZE - PART, 2 * PART)])),
    with_exclusion(packed=pack([Extent(1 << 60, 2 * PART)])),
    with_exclusion(packed=pack([Extent(512, 2 * PART)])),
    with_exclusion(packed=pack([Extent(0, 2 * PART - 512)])),
    with_exclusion(packed=raw(0, 0)),
    with_exclusion(packed=raw(0)),
    with_exclusion(packed=raw(0, 1 << 70)),
    with_exclusion(packed=raw(*[PART] * 2 * (MOST_RANGES + 1) * 20)),
    with_exclusion(packed="nonsense"),
    with_exclusion(packed=base64.b64encode(zlib.compress(bytes(1 << 28), 1)).decode()),
    with_exclusion(by_kind={"swap": 2 * PART, "mask": PART}),
    with_exclusion(by_kind={"swap": 3 * PART, "mask": -PART}),
    with_exclusion(by_kind={"other": 2 * PART}),
    with_exclusion(by_kind={}),
    with_exclusion(candidates=dict.fromkeys(map(str, range(10_001)), "")),
    with_exclusion(candidates={"x" * 1001: ""}),
    with_exclusion(candidates={"x": "x" * 101}),
    replace(GOOD, used=-1),
    replace(GOOD, used=2 * SIZE + 1),
    replace(GOOD, notes=("",) * 101),
    replace(GOOD, notes=("x" * 501,)),
], ids=range(21))  # fmt: skip
def test_one_lie_condemns_the_whole_answer(bad: DiskSurvey) -> None:
    with pytest.raises(TransferError, match="makes no sense: disk vda: "):
        checked([bad, OTHER], DISKS)


@pytest.mark.parametrize("change", [lambda text: text[:-8], lambda text: text + "AAAA", lambda text: "*" + text])
def test_ranges_that_were_cut_or_go_on_are_refused(change: Callable[[str], str]) -> None:
    with pytest.raises(TransferError):
        checked([with_exclusion(packed=change(GOOD.exclusion.packed)), OTHER], DISKS)
