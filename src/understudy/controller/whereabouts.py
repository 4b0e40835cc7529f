"""Where is a VM of a job now, and how is it called there? VMs are renamed, and migrate among the hosts of their job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from understudy.errors import HostUnreachable, NotFound, Refused
from understudy.model.inventory import Sighting, VmState
from understudy.model.job import Job
from understudy.platforms import SourcePlatform


@dataclass(frozen=True)
class Whereabouts:
    """A VM of a job on one of its hosts.

    :ivar name: how it is called there now.
    """

    host: str
    name: str


def locate_vm(job: Job, vm: str, uuid: str, platform: Callable[[str], SourcePlatform]) -> Whereabouts:
    """Look for a VM on all hosts of its job.

    :param uuid: of the VM as the replica's record knows it; empty before the first run.
    :param platform: connects to the host of a name.
    :raises NotFound: if no host has it.
    :raises HostUnreachable: if it may be on a host that does not answer.
    :raises Refused: if it cannot be said which host has the one that counts.
    """
    seen: dict[str, Sighting] = {}
    silent: dict[str, HostUnreachable] = {}
    for host in job.sources:
        try:
            found = platform(host).sighting(vm, uuid)
        except HostUnreachable as exc:
            silent[host] = exc
        else:
            if found is not None:
                seen[host] = found
    if any(sighting.uuid == uuid for sighting in seen.values()):
        # A VM that only has the old name is somebody else.
        seen = {host: sighting for host, sighting in seen.items() if sighting.uuid == uuid}
    host = choose_host(vm, seen, silent)
    return Whereabouts(host, seen[host].name)


def choose_host(vm: str, seen: Mapping[str, Sighting], silent: Mapping[str, HostUnreachable]) -> str:
    """The host on which the VM is; pure. A definition that a migration left behind does not count.

    :param silent: hosts that do not answer, and how that was noticed.
    :raises UnderstudyError: see :func:`locate_vm`.
    """
    what = f"VM {vm!r}"
    runs = [host for host, sighting in seen.items() if sighting.state is not VmState.SHUT_OFF]
    if len(runs) == 1:
        return runs[0]
    if runs:
        raise Refused(what, f"it runs on hosts {' and '.join(runs)}", "wait for the end of its migration")
    if silent:
        raise next(iter(silent.values()))
    if len(seen) > 1:
        raise Refused(what, f"hosts {' and '.join(seen)} have it, and it runs on none of them",
                      "undefine it where it was left over, or start it")
    if not seen:
        raise NotFound(what, "no host of the job has a VM of that name", "see 'understudy host vms'")
    return next(iter(seen))


def job_there(job: Job, vm: str, found: Whereabouts) -> Job:
    """The job as it holds for ``vm`` where that was found: its source host, and the VM's settings by its present name.

    Settings of other VMs are not in it: one of them may have the same name there.
    """
    return replace(
        job, source=found.host,
        excluded_disks=tuple((found.name, disk) for name, disk in job.excluded_disks if name == vm),
        masks=tuple((name and found.name, mask) for name, mask in job.masks if name in ("", vm)),
        guests=tuple(replace(item, vm=item.vm and found.name) for item in job.guests if item.vm in ("", vm)),
    )
