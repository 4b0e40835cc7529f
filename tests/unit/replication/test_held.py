"""What a task holds survives its way through the database, whatever it is."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.replication.ends import HELD
from understudy.errors import UsageError
from understudy.model.snapshot import ImageDisk, ServedDisk
from understudy.mover.protocol import decode, encode
from understudy.replication.held import HeldTask

ODD = st.text(max_size=8) | st.sampled_from(["a'b\"c", "\\", "Büro 1 ☃", "\x00", "\u2028", "</held>", "%s {x}", ""])
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: ODD, int: st.integers(0, 2**63), bool: st.booleans(), NoneType: st.none(),
    float: st.floats(0, 1e9, allow_nan=False),
}  # fmt: skip


def any_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type; of a dataclass all fields are drawn, those with a default too."""
    arguments = get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{field.name: any_of(hints[field.name]) for field in dataclasses.fields(hint)})
    if get_origin(hint) in (Union, UnionType):
        return st.one_of(*map(any_of, arguments))
    if get_origin(hint) is tuple:
        if arguments[-1] is not Ellipsis:
            return st.tuples(*map(any_of, arguments))
        return st.lists(any_of(arguments[0]), max_size=2).map(tuple)
    if get_origin(hint) in (dict, Mapping):
        return st.dictionaries(any_of(arguments[0]), any_of(arguments[1]), max_size=2)
    assert issubclass(hint, enum.Enum), hint
    return st.sampled_from(list(hint))


@given(any_of(HeldTask))
def test_what_a_task_holds_survives_as_text(held: HeldTask) -> None:
    assert decode(HeldTask, encode(held).decode().encode()) == held


@pytest.mark.parametrize(
    "disk",
    [
        ServedDisk("vda", "/run/b.sock", "vda", "dirty"), ServedDisk("vda", "", "vda", "", "a.lan:10809"),
        ImageDisk("vda", "/images/a b", "qcow2", "cp"), ImageDisk("vda", "/dev/vg0/'web\"", "raw", ""),
    ],
)  # fmt: skip
def test_each_kind_of_snapshot_disk_comes_back_as_itself(disk: ServedDisk | ImageDisk) -> None:
    held = dataclasses.replace(HELD, snapshot=dataclasses.replace(HELD.snapshot, disks=(disk,)))
    (back,) = decode(HeldTask, encode(held)).snapshot.disks
    assert type(back) is type(disk)
    assert back == disk


def test_a_record_of_an_older_version_is_no_held_task() -> None:
    text = encode(HELD).decode().replace('"request":', '"demand":')
    for content in (text, "", "{}", "null", "nonsense", "\x00"):
        with pytest.raises(UsageError):
            decode(HeldTask, content.encode())
