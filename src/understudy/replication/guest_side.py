"""The guest of a task: which ways lead into it, who freezes it, and whether it is touched at all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import GuestError
from understudy.guests.freezing import Quiescing
from understudy.guests.processing import GuestProcessing, Surroundings
from understudy.guests.qga import QgaTransport, guest_system
from understudy.guests.ssh import SshTransport
from understudy.guests.transport import Transport
from understudy.guests.vmtools import VmwareToolsTransport
from understudy.model.guest import GuestPolicy, GuestSettings, GuestSystem, GuestTransport
from understudy.model.guest_operations import GuestLogin
from understudy.model.inventory import Vm, VmState
from understudy.model.job import Job
from understudy.model.snapshot import SnapshotRequest, SourceSnapshot, Tag
from understudy.platforms import SourcePlatform
from understudy.replication.site import Guests, Place, Task

_CRASH = "the restore point is crash-consistent"
_BY_PLATFORM = "the platform is asked to quiesce it instead"


@dataclass(frozen=True)
class _Agent:
    """The guest agent behind the platform; a :class:`understudy.guests.freezing.FileSystems`."""

    source: SourcePlatform
    vm_uuid: str

    def freeze(self, timeout_s: float) -> int:
        return self.source.freeze(self.vm_uuid, timeout_s)

    def thaw(self, timeout_s: float) -> int:
        return self.source.thaw(self.vm_uuid, timeout_s)


@contextmanager
def guest_processing(ctx: Context, task: Task, place: Place, vm: Vm) -> Iterator[GuestProcessing | None]:
    """The processing of the guest, which is left with the context; None if the guest is not to be touched.

    :raises GuestError: with ``require``, if no way leads into the guest.
    :raises Refused: if a script of the job is missing on this host.
    """
    settings = task.job.guest(vm.name)
    if settings.policy is GuestPolicy.OFF or vm.state is not VmState.RUNNING:
        yield None
        return
    ways = tuple(guest_ways(task.job, place.source, place.guests, vm).values())
    problem = _agent_problem(vm) if GuestTransport.QGA in settings.transports else "its guest agent is not to be used"
    if not ways:
        if not place.source_host.by_library:
            _without(place, vm, settings, problem)
        elif settings.pre_freeze or settings.post_thaw:
            _without_scripts(place, vm, settings)
        yield None
        return
    watchdog = None if problem else place.guests.watchdog(vm.uuid)
    try:
        tag = Tag(task.job.id, vm.uuid, task.session)
        command = functools.partial(place.source.agent_command, vm.uuid)
        processing = GuestProcessing(ctx, Surroundings(
            settings=settings, ways=ways, agent=None if problem else _Agent(place.source, vm.uuid), watchdog=watchdog,
            record=functools.partial(place.journal.freezing, vm.uuid, settings.freeze_deadline_s),
            report=place.journal.guest, warn=place.journal.warn, key=str(tag), prefix=tag.prefix,
            system=GuestSystem.POSIX if problem else guest_system(command),
            otherwise=_BY_PLATFORM if place.source_host.by_library else _CRASH,
        ))  # fmt: skip
        try:
            yield processing
        finally:
            processing.close()
    finally:
        if watchdog is not None:
            watchdog.close()


def guest_ways(
    job: Job, source: SourcePlatform, guests: Guests, vm: Vm
) -> dict[GuestTransport, Callable[[], Transport]]:
    """What opens the transports that are to be tried, in their order; without those that nobody has set up."""
    ways: dict[GuestTransport, Callable[[], Transport]] = {}
    for kind in job.guest(vm.name).transports:
        if kind is GuestTransport.QGA and not _agent_problem(vm):
            agent = functools.partial(source.agent_command, vm.uuid)
            ways[kind] = functools.partial(QgaTransport, agent)
        elif kind is GuestTransport.SSH and (access := guests.access(job, vm)) is not None:
            ways[kind] = functools.partial(SshTransport, access)
        elif (
            kind is GuestTransport.VMTOOLS
            and (login := guests.login(job, vm)) is not None
            and not _is_windows(source, vm, login)
        ):
            ways[kind] = functools.partial(_by_tools, source, vm.uuid, login)
    return ways


def _is_windows(source: SourcePlatform, vm: Vm, login: GuestLogin) -> bool:
    """Whether nothing but VMware Tools themselves, with the snapshot, can freeze the guest."""
    try:
        return source.guest_operations(vm.uuid, login).system is GuestSystem.WINDOWS
    except GuestError:  # the same is told when it is tried to go that way
        return False


def _by_tools(source: SourcePlatform, vm_uuid: str, login: GuestLogin) -> Transport:
    return VmwareToolsTransport(source.guest_operations(vm_uuid, login))


@contextmanager
def quiesced(processing: GuestProcessing | None) -> Iterator[Quiescing]:
    """The guest frozen inside the context, as far as the job wants it and the guest can."""
    if processing is None:
        yield Quiescing()
        return
    with processing.quiesced() as quiescing:
        yield quiescing


def with_quiescing(
    request: SnapshotRequest, task: Task, place: Place, vm: Vm, quiescing: Quiescing
) -> SnapshotRequest:
    """The request with the wish that the platform quiesces the guest, where it can and nothing else has."""
    policy = task.job.guest(vm.name).policy
    if not place.source_host.by_library or policy is GuestPolicy.OFF or vm.state is not VmState.RUNNING:
        return request
    return replace(request, quiesce=not quiescing.frozen,
                   must_quiesce=not quiescing.frozen and policy is GuestPolicy.REQUIRE)  # fmt: skip


def complaints(quiescing: Quiescing, snapshot: SourceSnapshot) -> tuple[str, ...]:
    """What the operator should know of guest processing and of the snapshot."""
    instead = ("the platform quiesced the guest instead: the restore point is file-system-consistent",)
    said = tuple(quiescing.warnings)
    return (*said, *(instead if said and snapshot.quiesced else ()), *snapshot.notes)


def _without_scripts(place: Place, vm: Vm, settings: GuestSettings) -> None:
    """The platform quiesces the guest, but nobody runs the job's scripts in it."""
    problem = "the job has scripts, and there is no way to run them in the guest"
    if settings.policy is GuestPolicy.REQUIRE:
        raise GuestError(f"guest processing of VM {vm.name!r}", problem, "give the job a credential of a user of the "
                         "guest, see 'understudy job guest'")  # fmt: skip
    place.journal.warn(f"no script ran: {problem}")


def _without(place: Place, vm: Vm, settings: GuestSettings, problem: str) -> None:
    if settings.policy is GuestPolicy.REQUIRE:
        raise GuestError(f"guest processing of VM {vm.name!r}", problem,
                         "install and start qemu-guest-agent in the guest, or use --guest-processing try")
    place.journal.warn(f"guest processing skipped, the restore point is crash-consistent: {problem}")


def _agent_problem(vm: Vm) -> str:
    if not vm.has_agent_channel:
        return "the VM has no guest agent channel"
    return "" if vm.agent_connected else "the host has no connection to a guest agent in the VM"
