"""Changed block tracking on vSphere: what change ids prove, and what is switched on; pure decisions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.replica import Baseline
from understudy.model.transfer import Reason
from understudy.platforms.vsphere.enabling import to_switch
from understudy.platforms.vsphere.machine import TreeSnapshot
from understudy.platforms.vsphere.tracking import TrackingState, change, tracking, tracking_state

UUID, OTHER = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63", "52 00 c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63"
DISKS = ("scsi0:0", "scsi0:1")


def vm(tracked: bool = True) -> Vm:
    disks = tuple(Disk(name, f"[ds] web/{name}.vmdk", "vmdk", 1 << 30, tracked=tracked) for name in DISKS)
    return Vm("web", "u", VmState.RUNNING, "x86_64", "", "bios", 1, 1, disks, (), False, False, "")


def option(key: str, value: str) -> Any:
    return SimpleNamespace(key=key, value=value)


@pytest.mark.parametrize(("since", "now", "before_the_snapshot", "at_the_snapshot"), [
    (f"{UUID}/81", f"{UUID}/82", Reason.NONE, Reason.NONE),
    (f"{UUID}/9", f"{UUID}/10", Reason.NONE, Reason.NONE),
    (f"{UUID}/81", f"{UUID}/81", Reason.NONE, Reason.SOURCE_ROLLED_BACK),
    (f"{UUID}/81", f"{UUID}/80", Reason.SOURCE_ROLLED_BACK, Reason.SOURCE_ROLLED_BACK),
    (f"{UUID}/81", f"{OTHER}/82", Reason.CBT_RESET, Reason.CBT_RESET),
    (f"{UUID}/81", "", Reason.CBT_DISABLED, Reason.CBT_DISABLED),
    ("", f"{UUID}/81", Reason.NO_BASELINE, Reason.NO_BASELINE),
    ("*", "*", Reason.CBT_RESET, Reason.CBT_RESET),
    ("*", f"{UUID}/1", Reason.CBT_RESET, Reason.CBT_RESET),
    ("/1", "/2", Reason.CBT_RESET, Reason.CBT_RESET),
    (f"{UUID}/-1", f"{UUID}/2", Reason.CBT_RESET, Reason.CBT_RESET),
    (f"{UUID}/1", f"{UUID}/²", Reason.CBT_RESET, Reason.CBT_RESET),
    (f"{UUID}/x", f"{UUID}/x", Reason.CBT_RESET, Reason.CBT_RESET),
])  # fmt: skip
def test_a_change_id_proves_something_only_for_a_later_one_of_its_tracking_file(
    since: str, now: str, before_the_snapshot: Reason, at_the_snapshot: Reason
) -> None:
    assert change(since, now, taken=False) is before_the_snapshot
    assert change(since, now, taken=True) is at_the_snapshot


@given(st.text(max_size=12), st.text(max_size=12))
def test_no_other_text_is_ever_believed(since: str, now: str) -> None:
    if not change(since, now, taken=True):
        (same, first), (also, second) = since.rsplit("/", 1), now.rsplit("/", 1)
        assert same == also
        assert int(first) < int(second)


BASELINE = Baseline("cp", ("scsi0:0",), change_ids=(f"{UUID}/5",))


@pytest.mark.parametrize(("state", "tracked", "reasons"), [
    (TrackingState(True, {}, {DISKS[0]: f"{UUID}/6", DISKS[1]: f"{OTHER}/1"}), True, (Reason.NONE, Reason.NO_BASELINE)),
    (TrackingState(True, {}, {DISKS[0]: f"{OTHER}/6"}), True, (Reason.CBT_RESET, Reason.NO_BASELINE)),
    (TrackingState(False, {}, {DISKS[0]: f"{UUID}/6"}), True, (Reason.CBT_DISABLED, Reason.NO_BASELINE)),
    (TrackingState(True, {}, {}), True, (Reason.CBT_DISABLED, Reason.NO_BASELINE)),
    (TrackingState(True, {}, {DISKS[0]: f"{UUID}/6"}), False, (Reason.TRACKING_UNSUPPORTED,) * 2),
])  # fmt: skip
def test_each_disk_has_its_reason(state: TrackingState, tracked: bool, reasons: tuple[Reason, ...]) -> None:
    assert tracking(vm(tracked), state, BASELINE) == dict(zip(DISKS, reasons, strict=True))


def test_a_baseline_of_another_platform_has_no_change_ids() -> None:
    state = TrackingState(True, {}, {DISKS[0]: f"{UUID}/6"})
    assert tracking(vm(), state, Baseline("checkpoint", DISKS)) == dict.fromkeys(DISKS, Reason.NO_BASELINE)


@pytest.mark.parametrize(("flag", "options", "on"), [
    (True, [], True),
    (False, [], False),
    (None, [], False),
    (False, [option("ctkEnabled", "TRUE")], True),
    (None, [option("CTKENABLED", "true")], True),
    (False, [option("ctkEnabled", "FALSE"), option("guestinfo.ctkEnabled.note", "TRUE")], False),
])  # fmt: skip
def test_tracking_is_on_if_the_flag_or_the_option_says_so(flag: bool | None, options: list[Any], on: bool) -> None:
    assert tracking_state(flag, options, {}).on is on


def test_an_option_may_switch_off_a_single_disk() -> None:
    state = tracking_state(True, [option("scsi0:0.ctkEnabled", "TRUE"), option("scsi0:1.ctkEnabled", "False")],
                           {DISKS[0]: f"{UUID}/1", DISKS[1]: ""})  # fmt: skip
    assert state == TrackingState(True, {DISKS[1]: "scsi0:1.ctkEnabled"}, {DISKS[0]: f"{UUID}/1"})
    switching = to_switch(state, DISKS, ())
    assert (switching.on, switching.options) == (True, ("scsi0:1.ctkEnabled",))
    assert switching.note.startswith("changed block tracking of disk scsi0:1 was off, and is switched on; ")
    assert to_switch(state, DISKS[:1], ()) == to_switch(TrackingState(True, {}, {DISKS[0]: "x"}), DISKS[:1], ())


def test_what_is_on_is_left_alone() -> None:
    switching = to_switch(TrackingState(True, {}, {DISKS[0]: f"{UUID}/1"}), DISKS[:1], [TreeSnapshot("s", "m", False)])
    assert (switching.on, switching.options, switching.note) == (False, (), "")


def test_over_snapshots_nothing_is_switched_on_and_that_is_told_with_their_names() -> None:
    switching = to_switch(TrackingState(False, {}, {}), DISKS, [TreeSnapshot("before update", "m", False)])
    assert not switching.on
    assert switching.note == (
        "changed block tracking is off, and is not switched on while the VM has snapshots ('before update'): remove "
        "them; until then every run compares the whole disks"
    )
