"""Sums of estimates."""

from __future__ import annotations

from understudy.model.estimate import DiskEstimate, Sums, Totals, totals_of
from understudy.model.transfer import Reason, TransferMode


def disk(name: str, changed: int | None, **excluded: int) -> DiskEstimate:
    return DiskEstimate(name, TransferMode.INCREMENTAL, Reason.NONE, 100, Sums(50, 20, changed, 30, 10), excluded)


def test_sums_are_of_all_disks_and_changes_are_unknown_if_those_of_one_are() -> None:
    first, second, third = disk("vda", 4, swap=30), disk("vdb", 6, swap=10, free=20), disk("vdc", None, mask=30)
    assert totals_of([first, second]) == Totals(200, 100, 40, 0, 20, 40, 10, 60, 20)
    assert totals_of([first, second, third]) == Totals(300, 150, 40, 30, 20, 60, None, 90, 30)
    assert totals_of([]) == Totals(0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_the_categories_of_a_sum_add_up_to_its_size() -> None:
    sums = totals_of([disk("vda", 4, swap=30), disk("vdb", None, swap=10, mask=1, free=19)])
    assert sums.used + sums.swap + sums.mask + sums.free + sums.zero == sums.size
