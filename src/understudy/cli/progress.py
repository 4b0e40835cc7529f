"""How far a session is: rate and remaining time, sampled by the reader from what the journal says."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.model.session import SessionReport, StepState, TaskReport
from understudy.units import format_seconds, format_size

# Old samples fade: the rate shown is of the last ten seconds or so.
_MEMORY_S = 10.0


@dataclass
class RateMeter:
    """Bytes a second of something that grows."""

    rate: float = 0.0
    _at_s: float | None = None
    _bytes: int = 0

    def sample(self, now_s: float, count: int) -> float:
        """Note that ``count`` bytes are done at ``now_s``; the rate."""
        if self._at_s is None or count < self._bytes:
            self._at_s, self._bytes, self.rate = now_s, count, 0.0
        elif now_s > self._at_s and count > self._bytes:
            # Equal counts say nothing: the journal is written once a second and read more often.
            elapsed = now_s - self._at_s
            weight = min(1.0, elapsed / _MEMORY_S) if self.rate else 1.0
            self.rate += weight * ((count - self._bytes) / elapsed - self.rate)
            self._at_s, self._bytes = now_s, count
        return self.rate


@dataclass(frozen=True)
class ProgressLine:
    """What is shown for one disk, or for a VM whose disks are not known yet (``disk`` empty).

    :ivar fraction: 0 to 1.
    """

    vm: str
    disk: str
    doing: str
    fraction: float
    amount: str
    rate: str
    remaining: str


class SessionProgress:
    """Turns successive reports of one session into lines."""

    def __init__(self) -> None:
        self._meters: dict[tuple[str, str], RateMeter] = {}

    def lines(self, report: SessionReport, now_s: float) -> list[ProgressLine]:
        """The lines for ``report``, read at the monotonic instant ``now_s``."""
        return [line for task in report.tasks for line in self._task_lines(task, now_s)]

    def _task_lines(self, task: TaskReport, now_s: float) -> list[ProgressLine]:
        doing = task.state.value if task.state.ended else current_step(task)
        if not task.disks:
            return [ProgressLine(task.vm, "", doing, 1.0 if task.state.ended else 0.0, "", "", "")]
        lines = []
        for disk in task.disks:
            rate = self._meters.setdefault((task.vm, disk.name), RateMeter()).sample(now_s, disk.processed_bytes)
            left = disk.size - disk.processed_bytes
            busy = left > 0 and not task.state.ended and rate > 0
            lines.append(
                ProgressLine(
                    task.vm,
                    disk.name,
                    doing,
                    disk.processed_bytes / disk.size if disk.size else 1.0,
                    f"{format_size(disk.processed_bytes)} / {format_size(disk.size)}",
                    f"{format_size(rate)}/s" if busy else "",
                    format_seconds(left / rate) if busy else "",
                )
            )
        return lines


def current_step(task: TaskReport) -> str:
    """The steps of a task that run now, or its state before the first; reading, sending and writing run together."""
    running = [step.name.value for step in task.steps if step.state is StepState.RUNNING]
    doing = ", ".join(running) or task.state.value
    return f"{doing}: waiting, {task.waiting}" if task.waiting else doing


def plain_events(before: SessionReport | None, after: SessionReport) -> list[str]:
    """What happened between two reports, a line each, for output that is no terminal."""
    old = {task.vm: task for task in before.tasks} if before else {}
    events = []
    for task in after.tasks:
        events += _task_events(old.get(task.vm), task)
    return events


def _task_events(before: TaskReport | None, after: TaskReport) -> list[str]:
    known = {step.name: step.state for step in before.steps} if before else {}
    events = []
    for step in after.steps:
        if known.get(step.name) != step.state:
            took = "" if step.state is StepState.RUNNING else f" ({format_seconds(step.seconds)})"
            events.append(f"{after.vm}: {step.name.value}: {step.state.value}{took}")
    if after.state.ended and (before is None or before.state != after.state):
        events.append(f"{after.vm}: {after.state.value}")
    return events
