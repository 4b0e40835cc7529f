"""The rows of whole jobs on a running VM: against virtnbdbackup with virtnbdrestore, and what an empty run costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.backup_peer import BackupPeer
from bench.copy_rows import memory_row
from bench.installation import Installation, JobRun
from bench.result import Goal, Row, Unit, ratios
from bench.settings import Settings
from bench.tools import BenchError, interleaved
from bench.twins import DISK, Twins, check_copy, drop_checkpoints, running_twins
from understudy.lab.lab import Lab

FULL, INCREMENTAL, EMPTY, FROZEN = "job-full", "job-incremental", "job-empty", "job-frozen"
NAMES = (FULL, INCREMENTAL, EMPTY, FROZEN, f"memory-{FULL}", f"memory-{INCREMENTAL}", f"memory-{EMPTY}")
#: No point is retired while the clock runs: the peer has no retention either.
POINTS = "100"
#: The command line of a job that has one restore point after another.
JOB = "bench"
CHECKED = "every byte of the data disk, both copies of the last run, with qemu-img compare"


@dataclass
class Match:
    """Both contenders, ready to run."""

    twins: Twins
    peer: BackupPeer
    installation: Installation
    runs: list[JobRun] = field(default_factory=list)
    backups: list[float] = field(default_factory=list)
    restores: list[float] = field(default_factory=list)

    def forget(self) -> None:
        """Forget what was measured."""
        for values in (self.runs, self.backups, self.restores):
            values.clear()

    def peer_seconds(self, level: str) -> float:
        """One backup and the restore of its chain."""
        self.backups.append(self.peer.backup(level))
        self.restores.append(self.peer.restore())
        return self.backups[-1] + self.restores[-1]

    def our_seconds(self, mode: str) -> float:
        """One job run, which must have copied in this mode."""
        run = self.installation.run_job(JOB)
        if set(run.modes) != {mode}:
            raise BenchError(f"the job ran in modes {run.modes}, not {mode}")
        self.runs.append(run)
        return run.seconds

    def check(self) -> None:
        """Hold both newest copies against their sources."""
        check_copy(self.twins.peer, self.peer.image)
        check_copy(self.twins.ours, self.installation.newest_image(self.twins.ours.name, DISK))


def job_rows(settings: Settings, place: Path) -> Iterator[Row]:
    """All rows that need running VMs."""
    if not settings.wants(*NAMES):
        return
    with Lab.open() as lab, running_twins(lab, place, settings) as twins:
        peer = BackupPeer(lab.alpha, twins.peer, place / "peer")
        match = Match(twins, peer, Installation(lab, place))
        match.installation.make_job(JOB, twins.ours.name, "--points", POINTS)
        if settings.wants(FULL, f"memory-{FULL}"):
            yield from _full(settings, match)
        if settings.wants(INCREMENTAL, f"memory-{INCREMENTAL}"):
            yield from _incremental(settings, match)
        if settings.wants(EMPTY, FROZEN, f"memory-{EMPTY}"):
            yield from _empty(settings, match)


def _full(settings: Settings, match: Match) -> Iterator[Row]:
    """First runs, each into nothing."""
    match.forget()

    def peer() -> float:
        drop_checkpoints(match.twins.peer)
        match.peer.drop()
        return match.peer_seconds("full")

    def ours() -> float:
        match.installation.remove_replica(match.twins.ours.name)
        drop_checkpoints(match.twins.ours)
        return match.our_seconds("full")

    title = "full job run / virtnbdbackup full + virtnbdrestore"
    yield from _against_peer(FULL, title, Goal(4, at_least=True), settings.runs, match, [peer, ours])


def _incremental(settings: Settings, match: Match) -> Iterator[Row]:
    """Runs after one percent of the disk changed; the changes are made before both and not timed."""
    _ensure_chains(match)
    match.forget()
    seeds = iter(range(settings.runs * 2))
    waiting = {"peer": False, "ours": False}

    def changed(who: str) -> None:
        if not waiting[who]:
            match.twins.change(next(seeds))
            waiting.update(peer=True, ours=True)
        waiting[who] = False

    def peer() -> float:
        changed("peer")
        return match.peer_seconds("inc")

    def ours() -> float:
        changed("ours")
        return match.our_seconds("incremental")

    title = "incremental job run, 1 % changed / virtnbdbackup inc + virtnbdrestore"
    yield from _against_peer(INCREMENTAL, title, Goal(3, at_least=True), settings.runs, match, [peer, ours])


def _ensure_chains(match: Match) -> None:
    """A full backup and a first restore point, if the full row did not leave them."""
    if not match.runs:
        drop_checkpoints(match.twins.peer)
        match.peer.backup("full")
        match.our_seconds("full")
    match.peer.drop_restored()


def _empty(settings: Settings, match: Match) -> Iterator[Row]:
    """Runs without any change."""
    match.peer.drop()
    # Two first: what the guest still had to write goes with them.
    for _ in range(2):
        match.installation.run_job(JOB)
    match.forget()
    seconds = [match.our_seconds("incremental") for _ in range(settings.runs)]
    check_copy(match.twins.ours, match.installation.newest_image(match.twins.ours.name, DISK))
    details = _steps(match.runs)
    yield Row(EMPTY, "job run, nothing changed, guest frozen by its agent", Unit.SECONDS, tuple(seconds), Goal(2),
              details, "every byte of the data disk after the last run, with qemu-img compare")  # fmt: skip
    frozen = tuple(float(run.task["frozen_ms"]) for run in match.runs)
    yield Row(FROZEN, f"how long the guest was frozen in {EMPTY}", Unit.MILLISECONDS, frozen, Goal(250))
    yield _memory(EMPTY, match.runs)


def _against_peer(
    name: str, title: str, goal: Goal, runs: int, match: Match, contenders: list[Callable[[], float]]
) -> Iterator[Row]:
    peer, ours = interleaved(runs, contenders)
    match.check()
    match.peer.drop_restored()
    details = {
        "peer_s": peer,
        "peer_backup_s": list(match.backups),
        "peer_restore_s": list(match.restores),
        "peer_failed_restores": [float(match.peer.failed_restores)],
        "ours_s": ours,
        **_steps(match.runs),
        "ours_read_mib": [sum(disk["read_bytes"] for disk in run.task["disks"]) / (1 << 20) for run in match.runs],
        "ours_sent_mib": [sum(disk["sent_bytes"] for disk in run.task["disks"]) / (1 << 20) for run in match.runs],
    }
    yield Row(name, title, Unit.RATIO, ratios(peer, ours), goal, details, CHECKED)
    yield _memory(name, match.runs)


def _steps(runs: list[JobRun]) -> dict[str, list[float]]:
    """Seconds of each step, and what is left: the start and the end of the process."""
    steps = {
        f"step_{step['name']}_s": [
            next(found["seconds"] for found in run.task["steps"] if found["name"] == step["name"]) for run in runs
        ]
        for step in runs[0].task["steps"]
    }
    outside = [run.seconds - sum(step["seconds"] for step in run.task["steps"]) for run in runs]
    return {**steps, "outside_steps_s": outside}


def _memory(name: str, runs: list[JobRun]) -> Row:
    return memory_row(name, [run.peak for run in runs], [run.private for run in runs])


GROUPS = (job_rows,)
