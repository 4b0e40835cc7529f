"""Looking at the guests of a job as a session would, and accepting their SSH host keys."""

from __future__ import annotations

import functools
from collections.abc import Callable

from understudy.controller import jobs
from understudy.controller.credentials import accept_host_key
from understudy.controller.database import Database
from understudy.controller.records import CheckedGuest
from understudy.controller.sites import SiteBuilder
from understudy.controller.whereabouts import job_there
from understudy.errors import GuestError, UsageError
from understudy.guests.checking import check_guest, install_agent, remove_agent
from understudy.guests.ssh import fingerprint, presented_host_key
from understudy.guests.transport import Transport
from understudy.model.guest import GuestTransport
from understudy.model.inventory import Vm
from understudy.model.job import Job
from understudy.model.snapshot import Tag
from understudy.replication.guest_side import guest_ways


def check_guests(
    database: Database, sites: SiteBuilder, name: str, only: str, *, accept: bool
) -> tuple[CheckedGuest, ...]:
    """Check the guests of a job, or that of ``only``.

    :param accept: take the SSH host keys that guests show now for theirs, from now on.
    :raises NotFound: if there is no such job, or no such VM on its hosts.
    :raises UsageError: if the job has no such VM.
    :raises GuestError: if a host key is to be accepted and none is shown.
    """
    job = _job(database, name, only)
    found = []
    for vm in [only] if only else job.vms:
        accepted = _accept(database, job, vm) if accept else ""
        there, described, ways = _ways(sites, job, vm)
        source = sites.source_of(there)
        agent = functools.partial(source.agent_command, described.uuid) if described.agent_connected else None
        # Sessions have numbers from 1 on: this one is none, and leaves what one that runs now has in the guest alone.
        key = str(Tag(job.id, described.uuid, 0))
        found.append(CheckedGuest(vm, check_guest(ways, agent, key, key), accepted))
    return tuple(found)


def change_agent(database: Database, sites: SiteBuilder, name: str, vm: str, *, install: bool) -> GuestTransport:
    """Install the program in a guest for good, or remove it; the transport by which that was done.

    :raises GuestError: if no transport works, or the guest refused.
    """
    job = _job(database, name, vm)
    _, _, ways = _ways(sites, job, vm)
    problems = []
    for kind, way in ways.items():
        try:
            transport = way()
        except GuestError as exc:
            problems.append(f"{kind}: {exc}")
            continue
        try:
            (install_agent if install else remove_agent)(transport)
        finally:
            transport.close()
        return kind
    raise GuestError(f"guest of VM {vm!r}", "; ".join(problems) or "no transport is set up for it",
                     f"see 'understudy job check-guest {name} --vm {vm}'")


def _job(database: Database, name: str, vm: str) -> Job:
    job = jobs.get_job(database, name)
    if vm and vm not in job.vms:
        raise UsageError(f"job {name!r}", f"it has no VM {vm!r}", "see 'understudy job show'")
    return job


def _ways(sites: SiteBuilder, job: Job, vm: str) -> tuple[Job, Vm, dict[GuestTransport, Callable[[], Transport]]]:
    """The job where the VM is now, the VM, and the transports to its guest."""
    where = sites.locate(job, vm, "")
    there = job_there(job, vm, where)
    source = sites.source_of(there)
    described = source.describe_vm(where.name)
    return there, described, guest_ways(there, source, sites.guests_of(there), described)


def _accept(database: Database, job: Job, vm: str) -> str:
    address = job.guest(vm).address
    if not address:
        return ""
    key = presented_host_key(address)
    accept_host_key(database, address, key)
    return fingerprint(key)
