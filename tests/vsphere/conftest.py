"""Fixtures of the disk library's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vsphere.library.kit import StandIn, build, missing, stand_in
from tests.vsphere.library.lab import serve_vms, sparse


@pytest.fixture(scope="session")
def library_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit with the stand-in; without compiler, nbdkit or plugin the test is skipped."""
    if missing():
        pytest.skip(missing())
    return build(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def library(library_kit: Path, tmp_path: Path) -> Iterator[StandIn]:
    """The stand-in, with the VMs of :func:`serve_vms` in ``live.raw`` and ``frozen.raw``."""
    with stand_in(library_kit, tmp_path) as made:
        serve_vms(made, sparse(tmp_path / "live.raw", seed=1), sparse(tmp_path / "frozen.raw", seed=2))
        yield made
