"""Names on the datastore."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import ReplicaError, UsageError
from understudy.storage.qcow2.names import Place, layer_name
from understudy.storage.records.place import digest_name, directory_name, is_digest_name, replica_name


@given(st.text(min_size=1, max_size=60))
def test_a_directory_name_is_plain_and_tells_the_replica(name: str) -> None:
    directory = directory_name(name)
    assert "/" not in directory
    assert "\0" not in directory
    assert not directory.startswith(".")
    assert replica_name(directory) == name


@pytest.mark.parametrize("name", ["web1", "web 1_replica", "Zürich-Büro", "日本語", "a.b"])
def test_ordinary_names_are_kept(name: str) -> None:
    assert directory_name(name) == name


@pytest.mark.parametrize(("name", "directory"), [
    (".", "%2E"), ("..", "%2E."), (".lock", "%2Elock"), ("a/b", "a%2Fb"), ("a%2Fb", "a%252Fb"), ("a\nb", "a%0Ab")])
def test_other_names_are_escaped(name: str, directory: str) -> None:
    assert directory_name(name) == directory


@pytest.mark.parametrize("name", ["", "x" * 256, "ü" * 128, "/" * 86, "\ud800"])
def test_names_without_a_directory_name_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        directory_name(name)


@pytest.mark.parametrize("directory", ["a%2fb", "a%zz", "%41", ".hidden", "%FF"])
def test_directories_that_are_no_replicas_have_no_name(directory: str) -> None:
    assert replica_name(directory) is None


@given(st.text(min_size=1, max_size=9), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_disk_names_make_file_names_of_ours(disk: str, point: str) -> None:
    assert Place.is_layer(layer_name(disk, point))
    assert is_digest_name(digest_name(disk, point))
    assert ":" not in layer_name(disk, point)


def test_no_two_disks_and_points_share_a_file() -> None:
    names = {layer_name(disk, point) for disk, point in
             [("a", "b-c"), ("a-b", "c"), ("a%2Db", "c"), ("a:b", "c"), ("a", "b.c"), ("a.b", "c")]}
    assert len(names) == 6


@pytest.mark.parametrize(("disk", "point"), [("", "1"), ("a" * 121, "1"), ("\ud800", "1"), ("a", ""), ("a", "../x"),
                                             ("a", ".x"), ("a", "x/y"), ("a", "x\n"), ("a", "x" * 65)])
def test_names_that_make_no_file_name_are_refused(disk: str, point: str) -> None:
    with pytest.raises(ReplicaError):
        layer_name(disk, point)
