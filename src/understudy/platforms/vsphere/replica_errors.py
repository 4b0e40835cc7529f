"""What the faults mean that a replica VM meets on its server, in the operator's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from understudy.context import Context
from understudy.errors import DatastoreError, PlatformError, Refused, UnderstudyError
from understudy.platforms.vsphere import tasks
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.faults import fault_text

#: A server takes 32 snapshots one above the other, its vendor advises fewer.
LONGEST_CHAIN = 32


def run(
    ctx: Context, connection: Connection, what: str, start: Callable[[], Any], patience: tasks.Patience | None = None
) -> Any:
    """A task as :func:`understudy.platforms.vsphere.tasks.run` runs it.

    :raises DatastoreError: if no space is left.
    """
    try:
        return tasks.run(ctx, connection, what, start, patience)
    except UnderstudyError as exc:
        better = told(what, exc.__cause__)
        if better is None:
            raise
        raise better from exc.__cause__


def told(what: str, fault: BaseException | None) -> UnderstudyError | None:
    """Our error for a fault; None if it needs no other words than everywhere."""
    return next((convert(what, fault) for kind, convert in _WORDS if isinstance(fault, kind)), None)


def too_many(what: str, depth: int) -> UnderstudyError:
    """The error of one snapshot more than there can be."""
    return PlatformError(what, f"the replica VM stands on {depth} snapshots, and {LONGEST_CHAIN} are the most",
                         "remove snapshots that others made, and let the job keep fewer restore points")  # fmt: skip


def _full(what: str, fault: Any) -> UnderstudyError:
    store = getattr(fault, "datastore", "") or getattr(fault, "file", "")
    return DatastoreError(what, f"no space is left{f' on {store}' if store else ''} ({fault_text(fault)})",
                          "free space on the datastore, or let the job keep fewer restore points")  # fmt: skip


def _named_twice(what: str, fault: Any) -> UnderstudyError:
    return Refused(what, f"the folder has another VM of that name ({fault_text(fault)})",
                   "rename or remove it, or use another --suffix")  # fmt: skip


def _too_deep(what: str, _fault: Any) -> UnderstudyError:
    return too_many(what, LONGEST_CHAIN)


def _in_maintenance(what: str, fault: Any) -> UnderstudyError:
    return PlatformError(what, f"its ESXi host does not take it now ({fault_text(fault)})",
                         "end the maintenance of the host, or move the VM to another one")  # fmt: skip


def _no_resources(what: str, fault: Any) -> UnderstudyError:
    return PlatformError(what, f"the host has not the CPUs or the memory for it ({fault_text(fault)})",
                         "power other VMs off, or move the VM to another host")  # fmt: skip


def _too_new(what: str, fault: Any) -> UnderstudyError:
    return PlatformError(what, f"the ESXi host is too old for the VM's virtual hardware ({fault_text(fault)})",
                         "use a target of the source's version or later")  # fmt: skip


_WORDS: tuple[tuple[Any, Callable[[str, Any], UnderstudyError]], ...] = (
    (vim.fault.NoDiskSpace, _full),
    (vim.fault.InsufficientStorageSpace, _full),
    (vim.fault.DuplicateName, _named_twice),
    (vim.fault.TooManySnapshotLevels, _too_deep),
    (vim.fault.InvalidHostState, _in_maintenance),
    (vmodl.fault.HostNotConnected, _in_maintenance),
    (vim.fault.NoCompatibleHost, _in_maintenance),
    (vim.fault.InsufficientResourcesFault, _no_resources),
    (vim.fault.VirtualHardwareVersionNotSupported, _too_new),
)
