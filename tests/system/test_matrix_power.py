"""The target loses its power at every place of a run, and with it everything that was not synced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.matrix import STORE_BYTES, Actor, Matrix, matrix, store_of
from tests.system.places import fault_points, rows_of_borders
from understudy.lab.lab import Lab
from understudy.lab.power_fs import PowerFs


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Matrix]:
    power = PowerFs.mount(lab.beta, store_of(lab, "dark"), STORE_BYTES)
    with matrix(lab, "dark", power=power) as made:
        yield made


@pytest.mark.parametrize("place", rows_of_borders(fault_points()))
def test_the_target_loses_its_power(scene: Matrix, place: str) -> None:
    scene.strike(place, Actor.TARGET_POWER)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
