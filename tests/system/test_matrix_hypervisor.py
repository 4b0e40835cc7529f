"""The VM's QEMU dies at the borders of two steps of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.matrix import Actor, Matrix, matrix
from tests.system.places import rows_of_borders
from understudy.lab.lab import Lab


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Matrix]:
    with matrix(lab, "struck") as made:
        yield made


@pytest.mark.parametrize("place", rows_of_borders())
def test_the_hypervisor_dies(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.HYPERVISOR)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.renew_baselines()
    scene.assert_nothing_lost()
