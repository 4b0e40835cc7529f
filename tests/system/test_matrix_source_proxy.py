"""The source proxy dies at every place of a run, but for those inside the store, which it is not in touch with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.matrix import PLACES_OF_OTHERS, Actor, Matrix, matrix
from tests.system.places import fault_points
from understudy.lab.lab import Lab

ELSEWHERE = fault_points("storage")


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Matrix]:
    with matrix(lab, "unread") as made:
        yield made


@pytest.mark.parametrize("place", [place for place in PLACES_OF_OTHERS if place not in ELSEWHERE])
def test_the_source_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.SOURCE_PROXY)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
