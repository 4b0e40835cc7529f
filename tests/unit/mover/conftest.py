"""Fixtures of the mover's tests: a source image, and a target side that answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import make_image, served, write
from tests.unit.mover.wire_lab import SIZE, Relay, Target, relayed
from understudy.mover import link, receive
from understudy.mover.api import NbdSource
from understudy.units import KIB, MIB


@pytest.fixture
def disk_image(tmp_path: Path) -> Path:
    """An image with data in 12 of its 21 blocks of 256 KiB, the last among them."""
    path = make_image(tmp_path / "disk.qcow2", SIZE)
    write(path, 1, (0, 2 * MIB), (3 * MIB, 600 * KIB), (SIZE - 512, 512))
    return path


@pytest.fixture
def disk(tmp_path: Path, disk_image: Path) -> Iterator[NbdSource]:
    """That image, served."""
    with served(tmp_path, disk_image) as source:
        yield source


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A data port; what comes is made durable at short intervals, and lost connections are made again soon."""
    monkeypatch.setattr(receive, "CHECKPOINT_S", 0.03)
    monkeypatch.setattr(link, "RETRY_S", 0.05)
    made = Target(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def relay(tmp_path: Path, target: Target) -> Iterator[Relay]:
    """A relay before that data port."""
    with relayed(tmp_path / "relay", target) as made:
        yield made
