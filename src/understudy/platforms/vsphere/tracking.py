"""Are the changes of a disk since a baseline known? Change ids are compared; pure.

A change id is ``UUID/number``. Another UUID is another tracking file, which knows nothing of what was before it; the
number grows with every snapshot, so one that is not greater than the baseline's is of a state from before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.model.inventory import Vm
from understudy.model.replica import Baseline
from understudy.model.transfer import Reason

_ON, _OFF = "true", "false"


@dataclass(frozen=True)
class TrackingState:
    """What a VM's configuration says of changed block tracking.

    :ivar on: it is on for the VM.
    :ivar off_disks: settings that switch it off for one disk each, by the disk's name.
    :ivar change_ids: of the disks that are tracked, by name.
    """

    on: bool
    off_disks: Mapping[str, str]
    change_ids: Mapping[str, str]


def tracking_state(flag: bool | None, options: Sequence[Any], change_ids: Mapping[str, str]) -> TrackingState:
    """The state by a VM's ``changeTrackingEnabled``, its ``extraConfig``, and its disks' change ids.

    Either the flag or the option may say it (P46); for each disk there is an option of its own.

    :param options: have ``key`` and ``value``.
    """
    settings = {str(option.key): str(option.value).lower() for option in options if "ctk" in str(option.key).lower()}
    lower = {key.lower(): value for key, value in settings.items()}
    off = {key[: -len(".ctkEnabled")].lower(): key for key, value in settings.items()
           if key.lower().endswith(".ctkenabled") and value == _OFF}  # fmt: skip
    known = {disk: change_id for disk, change_id in change_ids.items() if change_id}
    return TrackingState(bool(flag) or lower.get("ctkenabled") == _ON, off, known)


def tracking(vm: Vm, state: TrackingState, baseline: Baseline) -> dict[str, Reason]:
    """Per disk of ``vm``: whether the changes since ``baseline`` are known, or the reason why they are not."""
    return {disk.name: _disk_tracking(disk.name, disk.tracked, state, baseline) for disk in vm.disks}


def _disk_tracking(disk: str, can_track: bool, state: TrackingState, baseline: Baseline) -> Reason:
    since = baseline.change_id(disk)
    if not can_track:
        return Reason.TRACKING_UNSUPPORTED
    if not since:
        return Reason.NO_BASELINE
    if not state.on:
        return Reason.CBT_DISABLED
    return change(since, state.change_ids.get(disk, ""), taken=False)


def change(since: str, now: str, *, taken: bool) -> Reason:
    """Whether what changed from one change id of a disk to a later one can be known, or why not.

    :param taken: ``now`` is of a snapshot. Each snapshot has a number of its own; the live disk may not have got one
        since the last.
    """
    if not since:
        return Reason.NO_BASELINE
    if not now:
        return Reason.CBT_DISABLED
    before, after = _parsed(since), _parsed(now)
    if before is None or after is None or before[0] != after[0]:
        return Reason.CBT_RESET
    known = after[1] > before[1] if taken else after[1] >= before[1]
    return Reason.NONE if known else Reason.SOURCE_ROLLED_BACK


def _parsed(change_id: str) -> tuple[str, int] | None:
    """The UUID and the number of a change id; None if it is none. ``*``, which is no state of a disk, is none."""
    identity, _, number = change_id.rpartition("/")
    return (identity, int(number)) if identity and number.isascii() and number.isdecimal() else None
