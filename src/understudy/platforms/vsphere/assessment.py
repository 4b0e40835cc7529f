"""What the facts of a vCenter or ESXi host mean for replication. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from understudy.model.preflight import (
    DatastoreSpace,
    Finding,
    Gravity,
    PrivilegeCheck,
    Role,
    Tracking,
    VmCheck,
    by_gravity,
)
from understudy.units import GIB, format_size

#: The oldest version of the API that this was written for.
OLDEST_API = (6, 5)
#: Without any of these nothing of a VM can be read.
ESSENTIAL = frozenset({
    "VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.Provisioning.DiskRandomRead",
})  # fmt: skip
#: ESXi refuses snapshots beyond 32 in one chain.
LONG_CHAIN = 24
LOW_SHARE, LOW_BYTES = 0.10, 2 * GIB
_FREE_EDITIONS = ("esxbasic", "esx.hypervisor")
_SHOWN = 5

_blocking = partial(Finding, Gravity.BLOCKING)
_warning = partial(Finding, Gravity.WARNING)
_note = partial(Finding, Gravity.NOTE)


@dataclass(frozen=True)
class Licence:
    """A licence as the server shows it; never its key."""

    name: str
    edition: str


def is_read_only(kind: str, licences: Sequence[Licence]) -> bool | None:
    """Whether the API of a server can change nothing; None if its licences are not shown. A free ESXi is such a one."""
    if kind == "vcenter":
        return False
    if not licences:
        return None
    return any(_is_free(licence) for licence in licences)


def _is_free(licence: Licence) -> bool:
    edition = licence.edition.casefold()
    return edition.startswith(_FREE_EDITIONS) or licence.name.casefold().endswith("hypervisor")


def assess(
    api_version: str,
    read_only: bool | None,
    privileges: Sequence[PrivilegeCheck],
    vms: Sequence[VmCheck],
    datastores: Sequence[DatastoreSpace],
    unusable: Sequence[str] = (),
) -> tuple[Finding, ...]:
    """Everything worth telling, the gravest first.

    :param unusable: names of ESXi hosts that are in maintenance, or not connected.
    """
    found = [
        *_of_server(api_version, read_only),
        *_of_account(privileges),
        *_of_inventory(vms),
        *(_note(f"ESXi host {name}", "it is in maintenance, or not connected") for name in unusable),
        *(finding for vm in vms for finding in _of_vm(vm)),
        *(finding for store in datastores for finding in _of_datastore(store)),
    ]
    return by_gravity(found)


def _of_server(api_version: str, read_only: bool | None) -> Iterator[Finding]:
    if _version(api_version) < OLDEST_API:
        why = f"its API is of version {api_version}, and this was written for 6.5 and later"
        yield _warning("server", why, "upgrade it, or try a VM that does not matter first")
    if read_only:
        why = "it has the free licence, with which the API changes nothing: no snapshot can be taken"
        yield _blocking("server", why, "give the ESXi host a licence that includes the vSphere API")
    if read_only is None:
        why = "its licences are not shown to this account; with the free one no snapshot can be taken"
        yield _note("server", why, "give the account Global.Licenses to have this checked")


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(int(part) for part in parts if part.isdecimal()) or OLDEST_API


def _of_account(privileges: Sequence[PrivilegeCheck]) -> Iterator[Finding]:
    if all(check.granted is None for check in privileges):
        yield _note("account", "the server does not tell which privileges it has",
                    "compare its role with the list in docs/vsphere.md")  # fmt: skip
    for check in privileges:
        if check.granted is not False:
            continue
        why = f"{check.privilege} is missing on {_places(check)}: it is needed to {check.purpose}"
        if check.role is Role.TARGET:
            yield _note("account", why, "only needed where vSphere is to be a target")
        elif check.role is Role.GUESTS:
            yield _note("account", why, "only needed for guests that are processed by --transport vmtools")
        elif check.privilege in ESSENTIAL and len(check.missing_on) == check.asked:
            yield _blocking("account", why, "add it to the account's role there")
        else:
            yield _warning("account", why, "add it to the account's role there")


def _places(check: PrivilegeCheck) -> str:
    if len(check.missing_on) == check.asked:
        return check.place if check.asked == 1 else f"all {check.place}"
    return f"{len(check.missing_on)} of {check.asked} {check.place} ({_some(check.missing_on)})"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _of_inventory(vms: Sequence[VmCheck]) -> Iterator[Finding]:
    if not vms:
        yield _blocking("account", "it sees no VM", "give it its role on a folder or cluster, and let that propagate")
    elif all(vm.obstacle for vm in vms):
        yield _blocking("server", "none of its VMs can be replicated", "see each VM")


def _of_vm(vm: VmCheck) -> Iterator[Finding]:
    subject = f"VM {vm.name}"
    if vm.obstacle:
        yield _warning(subject, vm.obstacle)
    for disk, why in vm.disks:
        yield _warning(subject, f"disk {disk} cannot be replicated: {why}",
                       f"change that, or leave it out: --exclude-disk '{vm.name}:{disk}'")  # fmt: skip
    if vm.tracking is Tracking.UNSUPPORTED:
        why = f"changed block tracking is not possible ({vm.hardware or 'unknown hardware'}): each session reads it all"
        yield _warning(subject, why, "upgrade its virtual hardware to version 7 or later")
    yield from _of_snapshots(subject, vm)


def _of_snapshots(subject: str, vm: VmCheck) -> Iterator[Finding]:
    has = f"it has {vm.snapshots} snapshot{'s' if vm.snapshots > 1 else ''}"
    if vm.snapshots and vm.tracking is Tracking.OFF:
        why = f"{has}, and changed block tracking is not switched on while it has any: each session reads it all"
        yield _warning(subject, why, "remove them before its first session")
    elif vm.snapshots:
        yield _note(subject, f"{has}, left alone; after a revert to one the next session reads it all")
    if vm.deepest >= LONG_CHAIN:
        why = f"{vm.deepest} snapshots lie upon each other, and ESXi allows 32"
        yield _warning(subject, why, "remove some of them")
    if vm.unmerged:
        yield _warning(subject, "its disks need consolidation: deltas of snapshots that are gone are left",
                       "consolidate them in the vSphere client when the VM writes little")  # fmt: skip


def _of_datastore(store: DatastoreSpace) -> Iterator[Finding]:
    subject = f"datastore {store.name}"
    if store.problem:
        yield _warning(subject, store.problem, "VMs on it cannot be read until that is over")
    elif store.free < max(LOW_BYTES, store.capacity * LOW_SHARE):
        why = (f"only {format_size(store.free)} of {format_size(store.capacity)} are free, and what guests write while "
               "they are read lies there as deltas")  # fmt: skip
        yield _warning(subject, why, "free some space, or read one VM at a time: host set --max-snapshots 1")
