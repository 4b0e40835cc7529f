"""Changed areas that the mover keeps itself, against a model that is a set of sectors."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import TrackingLost, UsageError
from understudy.model.exclusion import pack
from understudy.model.extent import Extent, merge
from understudy.model.transfer import TransferMode
from understudy.mover.api import NbdSource
from understudy.mover.base import NothingKnown
from understudy.mover.changed import ChangedClient, areas_of, context_of, tiled, write_areas
from understudy.mover.plan import PlanSpec, ReadBlock, plan_disk
from understudy.nbd import ALLOCATION, DIRTY_FLAG, NbdClient
from understudy.units import KIB

SECTOR = 512
SECTORS = 4096
SIZE = SECTORS * SECTOR
BLOCK = 256 * KIB


@st.composite
def changed_sectors(draw: st.DrawFn) -> set[int]:
    runs = draw(st.lists(st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 700)), max_size=12))
    return {sector for start, count in runs for sector in range(start, min(start + count, SECTORS))}


def areas_with(sectors: set[int]) -> tuple[Extent, ...]:
    return tuple(merge(Extent(sector * SECTOR, SECTOR) for sector in sorted(sectors)))


class Server:
    """A server that answers for at most ``most`` bytes, as servers may."""

    name, size, multi_conn = "server", SIZE, False

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked = 0

    def has(self, context: str) -> bool:
        return context == ALLOCATION

    def statuses(self, start: int, length: int, at_least: int) -> tuple[int, dict[str, list[Extent]]]:
        self.asked += 1
        known = max(at_least, min(length, self.most))
        return known, {ALLOCATION: [Extent(start, known, 0)]}


def client(server: Server, areas: tuple[Extent, ...], *, alone: bool) -> ChangedClient:
    return ChangedClient(cast(NbdClient, server), "understudy:changed:x", areas, alone=alone)


@given(changed_sectors(), st.integers(0, SECTORS - 1), st.integers(1, SECTORS))
def test_the_status_list_tiles_the_area_and_each_sector_has_its_flag(
    sectors: set[int], first: int, count: int
) -> None:
    last = min(first + count, SECTORS)
    told = tiled(areas_with(sectors), first * SECTOR, last * SECTOR)
    assert [item.start for item in told] == [first * SECTOR, *(item.end for item in told[:-1])]
    assert told[-1].end == last * SECTOR
    dirty = {sector for item in told if item.flags == DIRTY_FLAG
             for sector in range(item.start // SECTOR, item.end // SECTOR)}  # fmt: skip
    assert dirty == {sector for sector in sectors if first <= sector < last}


@given(changed_sectors(), st.integers(0, SECTORS - 1), st.integers(1, SECTORS), st.integers(1, SIZE))
def test_the_answer_covers_exactly_what_the_server_knew(sectors: set[int], first: int, count: int, most: int) -> None:
    start, length = first * SECTOR, min(count, SECTORS - first) * SECTOR
    server = Server(most)
    for alone in (False, True):
        tracked = client(server, areas_with(sectors), alone=alone)
        known, statuses = tracked.statuses(start, length, min(length, 64 * KIB))
        assert min(length, 64 * KIB) <= known <= length
        for extents in statuses.values():
            assert (extents[0].start, extents[-1].end) == (start, start + known)
        assert set(statuses) == ({"understudy:changed:x"} if alone else {"understudy:changed:x", ALLOCATION})
    assert server.asked == 1


@given(changed_sectors())
def test_a_plan_reads_the_blocks_with_changes_and_no_others(sectors: set[int]) -> None:
    server = Server(SIZE)
    source = client(server, areas_with(sectors), alone=True)

    class Source:
        statuses = staticmethod(source.statuses)

        @staticmethod
        def allocation(run: Extent) -> list[Extent]:
            return [Extent(run.start, run.length, 0)]

    spec = PlanSpec(SIZE, BLOCK, TransferMode.INCREMENTAL, True, "understudy:changed:x")
    read = {item.index for item in plan_disk(spec, Source(), NothingKnown()) if isinstance(item, ReadBlock)}
    assert read == {sector * SECTOR // BLOCK for sector in sectors}


@given(changed_sectors())
def test_areas_are_found_by_the_socket_until_they_are_removed(
    tmp_path_factory: pytest.TempPathFactory, sectors: set[int]
) -> None:
    socket = tmp_path_factory.mktemp("run") / "0123.nbd"
    where = NbdSource(str(socket), "disk", context_of("0123"))
    write_areas(socket, pack(areas_with(sectors)))
    assert areas_of(where) == areas_with(sectors)
    write_areas(socket, None)
    with pytest.raises(TrackingLost):
        areas_of(where)


def test_a_servers_own_dirty_map_is_the_servers(tmp_path: Path) -> None:
    assert areas_of(NbdSource(str(tmp_path / "x.nbd"), "disk", "qemu:dirty-bitmap:b")) is None
    assert areas_of(NbdSource(str(tmp_path / "x.nbd"), "disk", "")) is None


@pytest.mark.parametrize("packed", ["?", "AAAA", pack((Extent(0, 1),))[:-2]])
def test_what_is_no_list_is_refused_and_not_kept(tmp_path: Path, packed: str) -> None:
    with pytest.raises(UsageError, match="changed areas"):
        write_areas(tmp_path / "x.nbd", packed)
    assert list(tmp_path.iterdir()) == []
