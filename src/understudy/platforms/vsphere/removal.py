"""How does a snapshot of ours go away again, and what is told when it does not?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyVmomi import vim, vmodl

from understudy.context import Context
from understudy.errors import NotFound, PlatformError, UnderstudyError
from understudy.model.snapshot import Tag
from understudy.platforms import CommitPatience
from understudy.platforms.vsphere import tasks
from understudy.platforms.vsphere.machine import Machine, TreeSnapshot, snapshots_of

#: The property of a VM that says that it has deltas that no snapshot needs.
NEEDED = "runtime.consolidationNeeded"
# Of a VM that writes much, the last merge may take hours, and the server tells no progress of it (P47). It is not
# given up: it would go on without us.
_MERGE = tasks.Patience(deadline_s=12 * 3600.0, busy_s=60.0)


@dataclass(frozen=True)
class Problem:
    """Why something stays; trying again is no use if it is hopeless."""

    why: str
    hopeless: bool = False


def by_hand(vm: str, snapshot: str) -> str:
    """What an administrator types in PowerCLI to remove a snapshot; its name tells of which of the VMs of that name."""
    return f"Get-VM {_quoted(vm.rpartition('/')[2])} | Get-Snapshot -Name {_quoted(snapshot)} | Remove-Snapshot"


def merge_by_hand(vm: str) -> str:
    """What an administrator types in PowerCLI to merge deltas that no snapshot needs."""
    return f"(Get-VM {_quoted(vm.rpartition('/')[2])}).ExtensionData.ConsolidateVMDisks()"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def end_snapshot(ctx: Context, machine: Machine, name: str, patience: CommitPatience) -> None:
    """Remove the snapshot of that name and merge its delta; no error if it, or the VM, is gone.

    What fails is tried again after each pause of ``patience``, until the operator ends the task.

    :raises PlatformError: if it stays, or its delta does.
    """
    problem = Problem("it was not tried")
    for pause in (*patience.pauses, None):
        problem_now = _try_to_end(ctx, machine, name)
        if problem_now is None:
            return
        problem = problem_now
        ctx.log(__name__).warning("snapshot %s of VM %r: %s", name, machine.name, problem.why)
        if problem.hopeless or pause is None or ctx.cancel.wait(pause):
            break
    raise PlatformError(
        f"remove snapshot {name!r} of VM {machine.name!r}", problem.why,
        f"while it stays the VM's disks grow; the next run or 'understudy sweep' tries again; by hand, in PowerCLI: "
        f"{by_hand(machine.name, name)}; or, if the snapshot is gone already: {merge_by_hand(machine.name)}",
    )  # fmt: skip


def _try_to_end(ctx: Context, machine: Machine, name: str) -> Problem | None:
    try:
        _, problem = remove_tagged(ctx, machine, name.__eq__)
        return problem or merge_left(ctx, machine)
    except NotFound:
        return None  # the VM is gone, and the snapshot with it
    except UnderstudyError as exc:
        return Problem(str(exc))


def sweep_snapshots(ctx: Context, machine: Machine, tag: Tag) -> list[str]:
    """Remove all snapshots of the job on the VM, each tried once; says what was done (S7).

    Deltas that no snapshot needs are merged too: they may be of a snapshot of ours, and nothing tells any more.

    :raises PlatformError: if a snapshot stays.
    """
    removed, problem = remove_tagged(ctx, machine, lambda name: name.startswith(tag.prefix))
    if problem is not None:
        raise PlatformError(f"snapshot of a dead session on VM {machine.name!r}", problem.why,
                            "remove it in the vSphere Client, and run the job again")  # fmt: skip
    done = [f"removed snapshot {name!r} of a dead session from VM {machine.name!r}" for name in removed]
    if not needs_merging(machine):
        return done
    left = merge_left(ctx, machine)
    # The VM can be replicated all the same.
    return [*done, left.why if left else f"merged what removed snapshots had left of VM {machine.name!r}"]


def remove_tagged(
    ctx: Context, machine: Machine, chosen: Callable[[str], bool]
) -> tuple[list[str], Problem | None]:
    """Remove the VM's snapshots whose names are chosen, each tried once; their children stay.

    :return: the names of those that are gone, and why others stay.
    :raises NotFound: if the VM is gone.
    """
    # What was begun goes to its end, whether the task was cancelled or not: it is the undoing.
    steady = Context(fields=ctx.fields)
    removed, stay, hopeless = [], [], False
    for snapshot in reversed(snapshots_of(machine)):  # the youngest first: none is merged into one that goes next
        if not chosen(snapshot.name):
            continue
        try:
            _remove(steady, machine, snapshot)
        except UnderstudyError as exc:
            hopeless = isinstance(exc.__cause__, vim.fault.NoPermission)
            stay.append(f"{snapshot.name!r} stays: {exc.why}" + (f"; {exc.todo}" if exc.todo else ""))
        else:
            removed.append(snapshot.name)
    return removed, Problem("; ".join(stay), hopeless) if stay else None


def _remove(ctx: Context, machine: Machine, snapshot: TreeSnapshot) -> None:
    item = machine.connection.managed("VirtualMachineSnapshot", snapshot.moref)
    try:
        tasks.run(ctx, machine.connection, f"remove snapshot {snapshot.name!r} of VM {machine.name!r}",
                  lambda: item.RemoveSnapshot_Task(removeChildren=False, consolidate=True), _MERGE)  # fmt: skip
    except NotFound as exc:
        if not isinstance(exc.__cause__, vmodl.fault.ManagedObjectNotFound):
            raise


def needs_merging(machine: Machine) -> bool:
    """Whether the VM has deltas that no snapshot needs.

    :raises NotFound: if it is gone.
    """
    return bool(machine.get(NEEDED).get(NEEDED))


def merge_left(ctx: Context, machine: Machine) -> Problem | None:
    """Merge deltas that no snapshot needs; why they stay.

    :raises NotFound: if the VM is gone.
    """
    if not needs_merging(machine):
        return None
    what = f"VM {machine.name!r} has a delta that no snapshot needs, and it is not merged"
    try:
        tasks.run(Context(fields=ctx.fields), machine.connection, f"consolidate the disks of VM {machine.name!r}",
                  machine.ref.ConsolidateVMDisks_Task, _MERGE)  # fmt: skip
    except UnderstudyError as exc:
        return Problem(f"{what}: {exc.why}", isinstance(exc.__cause__, vim.fault.NoPermission))
    return Problem(f"{what}, although it was consolidated") if needs_merging(machine) else None
