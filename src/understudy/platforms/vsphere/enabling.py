"""How is changed block tracking switched on? A snapshot that follows makes it take effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyVmomi import vim

from understudy.context import Context
from understudy.errors import HostUnreachable, UnderstudyError
from understudy.platforms.vsphere import tasks
from understudy.platforms.vsphere.machine import Machine, TreeSnapshot, snapshots_of, tracking_of
from understudy.platforms.vsphere.tracking import TrackingState

_NEXT = "this run compares or copies the whole disks"


@dataclass(frozen=True)
class Switching:
    """What is to be switched on, and what the operator is told; nothing, if both are empty.

    :ivar options: keys of the settings that switch single disks off.
    """

    on: bool = False
    options: tuple[str, ...] = ()
    note: str = ""


def to_switch(state: TrackingState, tracked: Sequence[str], snapshots: Sequence[TreeSnapshot]) -> Switching:
    """Decide; pure.

    :param tracked: the disks that are to be tracked.
    :param snapshots: that the VM has already: with one, tracking begins without a whole picture of the disks.
    """
    untracked = [disk for disk in tracked if disk not in state.change_ids or disk in state.off_disks]
    if state.on and not untracked:
        return Switching()
    of = f"of disk {', '.join(untracked)} " if state.on else ""
    off = f"changed block tracking {of}is off"
    if snapshots:
        names = ", ".join(repr(snapshot.name) for snapshot in snapshots)
        why = f"the VM has snapshots ({names}): remove them; until then every run compares the whole disks"
        return Switching(note=f"{off}, and is not switched on while {why}")
    options = tuple(state.off_disks[disk] for disk in untracked if disk in state.off_disks)
    return Switching(True, options, f"{off.replace('is off', 'was off')}, and is switched on; {_NEXT}")


def switch_on(ctx: Context, machine: Machine, tracked: Sequence[str]) -> tuple[str, ...]:
    """Switch tracking on where it is off; what the operator should know.

    :raises HostUnreachable: if the server does not answer.
    """
    if not tracked:
        return ()
    switching = to_switch(tracking_of(machine), tracked, snapshots_of(machine))
    if switching.on:
        spec = vim.vm.ConfigSpec(
            changeTrackingEnabled=True,
            extraConfig=[vim.option.OptionValue(key=key, value="TRUE") for key in switching.options],
        )
        what = f"switch on changed block tracking of VM {machine.name!r}"
        try:
            tasks.run(ctx, machine.connection, what, lambda: machine.ref.ReconfigVM_Task(spec))
        except HostUnreachable:
            raise
        except UnderstudyError as exc:
            ctx.check()
            return (f"{exc}; without it every run compares the whole disks",)
    return (switching.note,) if switching.note else ()
