"""The libvirt daemon of either host dies at every border of two steps of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.matrix import Actor, Matrix, matrix
from tests.system.places import borders
from understudy.lab.lab import Lab


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Matrix]:
    with matrix(lab, "shaken") as made:
        yield made


@pytest.mark.parametrize("place", borders())
@pytest.mark.parametrize("actor", [Actor.SOURCE_LIBVIRT, Actor.TARGET_LIBVIRT])
def test_a_libvirt_daemon_dies(scene: Matrix, actor: Actor, place: str) -> None:
    scene.strike(place, actor)


def test_no_change_was_lost_and_every_point_verifies(scene: Matrix) -> None:
    scene.assert_nothing_lost()
