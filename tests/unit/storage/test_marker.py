"""The marker file of a datastore: made once, kept, and not believed when damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from understudy.errors import DatastoreError
from understudy.storage.marker import NAME, make_marker, read_marker


def test_a_marker_is_made_once_and_kept(tmp_path: Path) -> None:
    assert read_marker(tmp_path) == ""
    marker = make_marker(tmp_path)
    assert marker
    assert read_marker(tmp_path) == make_marker(tmp_path) == marker
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_two_datastores_have_different_markers(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert make_marker(tmp_path / "a") != make_marker(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"id": 5}', b'{"id": "x"}', b"\xff", b"[" * 100_000])
def test_a_damaged_marker_is_said_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    for act in (read_marker, make_marker):
        with pytest.raises(DatastoreError, match="marker file"):
            act(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


def test_a_marker_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatastoreError, match="No space left"):
        make_marker(tmp_path)
    assert list(tmp_path.iterdir()) == []
