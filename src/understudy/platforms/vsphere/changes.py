"""Which areas of a disk does the server say have changed? And what if it does not say?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vmodl

from understudy.errors import HostUnreachable, NotFound, PlatformError, TrackingLost, UnderstudyError
from understudy.model.extent import Extent
from understudy.model.transfer import Reason
from understudy.platforms.vsphere.areas import AnswerError, Page, changed_areas, checked
from understudy.platforms.vsphere.devices import VirtualDisk
from understudy.platforms.vsphere.machine import Machine


@dataclass(frozen=True)
class Question:
    """Of which disk in which snapshot the changes are wanted, since which change id."""

    machine: Machine
    snapshot: str
    disk: VirtualDisk
    since: str

    @property
    def what(self) -> str:
        """What is done, for messages."""
        return f"changed areas of disk {self.disk.name} of VM {self.machine.name!r}"


def all_changes(question: Question) -> tuple[Extent, ...]:
    """All areas that changed, or more.

    :raises TrackingLost: if the server does not tell them, or what it tells makes no sense.
    """
    return _told(question, lambda: changed_areas(lambda start: _page(question, start), question.disk.capacity))


def try_changes(question: Question) -> None:
    """Ask for the first page alone: whether the server tells at all.

    :raises TrackingLost: as :func:`all_changes`.
    """
    _told(question, lambda: checked(_page(question, 0), 0, question.disk.capacity) if question.disk.capacity else ())


def _told(question: Question, ask: Callable[[], tuple[Extent, ...]]) -> tuple[Extent, ...]:
    reason = Reason.CBT_REFUSED.value
    try:
        return ask()
    except AnswerError as exc:
        raise TrackingLost(question.what, f"the server's answer makes no sense: {exc}", reason=reason) from exc
    except HostUnreachable:
        raise
    except (PlatformError, NotFound) as exc:
        if isinstance(exc.__cause__, vmodl.fault.ManagedObjectNotFound):
            raise snapshot_gone(question.machine, exc) from exc
        raise TrackingLost(question.what, exc.why, reason=reason) from exc


def snapshot_gone(machine: Machine, error: UnderstudyError) -> PlatformError:
    """The error when a snapshot that we hold was removed by somebody else."""
    return PlatformError(f"snapshot of VM {machine.name!r}", f"it is not held any more: {error.why}",
                         "find out who removes snapshots, and run the job again")  # fmt: skip


def _page(question: Question, start: int) -> Page:
    vm, connection = question.machine.ref, question.machine.connection
    snapshot = connection.managed("VirtualMachineSnapshot", question.snapshot)
    answer = connection.read(
        question.what, lambda: vm.QueryChangedDiskAreas(snapshot, question.disk.key, start, question.since)
    )
    return _as_page(answer)


def _as_page(answer: Any) -> Page:
    areas = tuple(Extent(area.start, area.length) for area in answer.changedArea or ())
    return Page(answer.startOffset, answer.length, areas)
