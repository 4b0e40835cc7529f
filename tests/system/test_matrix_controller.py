"""The controller dies at every place of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.system.matrix import PLACES, Actor, Matrix, matrix
from tests.system.places import SOURCES
from understudy.lab.lab import Lab


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Matrix]:
    with matrix(lab, "headless") as made:
        yield made


def test_every_fault_point_but_those_of_the_steps_has_a_name_that_can_be_found() -> None:
    texts = [path.read_text() for path in SOURCES.rglob("*.py")]
    calls = [call for text in texts for call in re.findall(r"(?<!def )fault_point\((.*)\)", text)]
    assert [call for call in calls if not call.startswith('"')] == ['f"{step}.before"', 'f"{step}.after"']


def test_every_place_lies_on_the_way_of_a_run(scene: Matrix) -> None:
    """A new fault point that none of the ways reaches needs a way of its own, or is no part of a run."""
    assert [place for place in PLACES if scene.way_to(place) is None] == []


@pytest.mark.parametrize("place", PLACES)
def test_the_controller_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.CONTROLLER)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
