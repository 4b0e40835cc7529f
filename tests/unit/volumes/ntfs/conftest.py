"""One volume for all tests of NTFS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.volumes.ntfs.volumes import can_mount, make_volume


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody changes it."""
    if not can_mount():
        pytest.skip("a volume is filled through FUSE, which needs root")
    return make_volume(tmp_path_factory.mktemp("ntfs"))


@pytest.fixture(scope="session")
def data(volume: Path) -> bytes:
    return volume.read_bytes()
