"""The target proxy dies at every place of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.matrix import PLACES_OF_OTHERS, Actor, Matrix, matrix
from understudy.lab.lab import Lab


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Matrix]:
    with matrix(lab, "unwritten") as made:
        yield made


@pytest.mark.parametrize("place", PLACES_OF_OTHERS)
def test_the_target_proxy_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.TARGET_PROXY)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
