"""The JSON documents of the command line. Scripts depend on the keys: add, never rename or remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from understudy.controller.leftovers import Swept
from understudy.controller.records import CheckedGuest, ReplicaRecord, SessionSummary, VerifyAnswer
from understudy.model.estimate import DiskEstimate, totals_of
from understudy.model.exclusion import Exclusion, exclusion_of
from understudy.model.health import health_of, last_verified
from understudy.model.inventory import Vm
from understudy.model.job import Host, Job
from understudy.model.replica import PointDisk, RestorePoint
from understudy.model.session import DiskReport, SessionReport, StepReport, TaskReport
from understudy.mover.api import ReplicaFacts
from understudy.storage.values import RebuiltReplica

Shape = dict[str, Any]


def host_shape(host: Host) -> Shape:
    """A host's settings; what means nothing for its kind is empty."""
    return {
        "name": host.name,
        "uri": host.uri,
        "scratch_dir": host.scratch_dir,
        "max_snapshots": host.max_snapshots,
        "nbd_address": host.nbd_address,
        "credential": host.credential,
        "thumbprint": host.thumbprint,
        "library_dir": host.library.directory,
        "library_plugin": host.library.plugin if host.by_library else "",
    }


def vm_shape(vm: Vm) -> Shape:
    """A VM of a host; without its definition, which may hold secrets."""
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "state": vm.state.value,
        "firmware": vm.firmware,
        "memory_bytes": vm.memory_bytes,
        "vcpus": vm.vcpus,
        "has_agent_channel": vm.has_agent_channel,
        "agent_connected": vm.agent_connected,
        "obstacle": vm.obstacle,
        "notes": list(vm.notes),
        "disks": [asdict(disk) for disk in vm.disks],
        "nics": [asdict(nic) for nic in vm.nics],
    }


def job_shape(job: Job) -> Shape:
    """A job's settings; sizes in bytes."""
    return {
        "name": job.name,
        "id": job.id,
        "enabled": job.enabled,
        "source": job.source,
        "other_sources": list(job.other_sources),
        "vms": list(job.vms),
        "target": job.target,
        "datastore": job.datastore,
        "points": job.points,
        "suffix": job.suffix,
        "snapshot_mode": job.snapshot_mode.value,
        "guest_processing": job.guest_policy.value,
        "block_size": job.block_size,
        "compression": job.compression.value,
        "source_proxy": job.source_proxy,
        "target_proxy": job.target_proxy,
        "connections": job.connections,
        "patience_s": job.patience_s,
        "excluded_disks": [{"vm": vm, "disk": disk} for vm, disk in job.excluded_disks],
        "verify_every_s": job.verify_every_s,
        "verify_rate": job.verify_rate,
        "masks": [{"vm": vm, "mask": mask} for vm, mask in job.masks],
        "exclude_swap": job.exclude_swap,
        "exclude_free": job.exclude_free,
        "guests": [asdict(settings) for settings in job.guests],
    }


def summary_shape(summary: SessionSummary) -> Shape:
    """A session in a list: the head of :func:`session_shape`."""
    return {
        "id": summary.id,
        "job": summary.job,
        "state": summary.state.value,
        "started_at": summary.started_at,
        "ended_at": summary.ended_at,
        "kind": summary.kind.value,
    }


def session_shape(report: SessionReport) -> Shape:
    """A session with all that is known of it."""
    return {
        "id": report.id,
        "job": report.job,
        "state": report.state.value,
        "started_at": report.started_at,
        "ended_at": report.ended_at,
        "kind": report.kind.value,
        "tasks": [_task_shape(task) for task in report.tasks],
    }


def _task_shape(task: TaskReport) -> Shape:
    return {
        "vm": task.vm,
        "state": task.state.value,
        "restore_point": task.restore_point,
        "consistency": task.consistency,
        "frozen_ms": task.frozen_ms,
        "error": task.error,
        "warnings": list(task.warnings),
        "steps": [_step_shape(step) for step in task.steps],
        "disks": [_disk_shape(disk) for disk in task.disks],
        "guest": asdict(task.guest) if task.guest is not None else None,
        "estimate": [_estimate_shape(disk) for disk in task.estimate],
    }


def estimate_shape(report: SessionReport) -> Shape:
    """What a session would do: the disks of each VM, and sums; `total` is of the VMs that could be looked at."""
    found = [disk for task in report.tasks for disk in task.estimate]
    return {
        "session": report.id,
        "job": report.job,
        "state": report.state.value,
        "vms": [
            {
                "vm": task.vm,
                "state": task.state.value,
                "error": task.error,
                "warnings": list(task.warnings),
                "disks": [_estimate_shape(disk) for disk in task.estimate],
                "total": asdict(totals_of(task.estimate)),
            }
            for task in report.tasks
        ],
        "total": asdict(totals_of(found)),
    }


def _estimate_shape(disk: DiskEstimate) -> Shape:
    return {
        "name": disk.name,
        "mode": disk.mode.value,
        "reason": disk.reason.value,
        **asdict(totals_of([disk])),
        "notes": list(disk.notes),
    }


def _step_shape(step: StepReport) -> Shape:
    return {"name": step.name.value, "state": step.state.value, "seconds": step.seconds}


def _disk_shape(disk: DiskReport) -> Shape:
    return {
        "name": disk.name,
        "mode": disk.mode.value,
        "reason": disk.reason.value,
        "size": disk.size,
        "read_bytes": disk.read_bytes,
        "sent_bytes": disk.sent_bytes,
        "wire_bytes": disk.wire_bytes,
        "zero_bytes": disk.zero_bytes,
        "seconds": disk.seconds,
        "bottleneck": disk.bottleneck,
        "transport": disk.transport.value,
        "busy": dict(disk.busy),
        "rate": disk.rate,
        "eta_s": disk.eta_s,
        "processed_bytes": disk.processed_bytes,
        "resumed_bytes": disk.resumed_bytes,
        "reconnects": disk.reconnects,
        "waiting": disk.waiting,
        "checked_blocks": disk.checked_blocks,
        "mismatched_blocks": disk.mismatched_blocks,
        "excluded": dict(disk.excluded),
        "notes": list(disk.notes),
    }


def checked_guest_shape(item: CheckedGuest) -> Shape:
    """What a session would find in a guest."""
    check = item.check
    return {
        "vm": item.vm,
        "transport": check.transport.value if check.transport else None,
        "problems": {transport.value: why for transport, why in check.problems.items()},
        "component": check.component.value,
        "version": check.version,
        "applications": [{"kind": kind, "name": name, "detail": detail} for kind, name, detail in check.applications],
        "can_freeze": check.can_freeze,
        "accepted_host_key": item.accepted,
    }


def replica_shape(record: ReplicaRecord) -> Shape:
    """A replica; ``point`` is the restore point on which the head lies, empty if none."""
    replica = record.replica
    return {
        "name": record.name,
        "id": replica.identity.id,
        "datastore": record.datastore,
        "host": record.host,
        "job": record.job,
        "source_vm": replica.identity.source_vm,
        "domain_uuid": replica.identity.domain_uuid,
        "state": replica.state.value,
        "points": len(replica.points),
        "newest_point": replica.newest.id if replica.newest else None,
        "newest_created_at": replica.newest.created_at if replica.newest else None,
        "point": replica.head_point,
    }


def replica_facts_shape(record: ReplicaRecord, facts: ReplicaFacts) -> Shape:
    """A replica with what its files say: whether the head was written to, and damage per point."""
    head = facts.head
    return {
        **replica_shape(record),
        "head_empty": head.empty if head and head.point else None,
        "conversion": head.conversion.value if head and head.point else None,
        "damage": {point: problems(facts, point) for point in {**facts.damage, **facts.losses}},
        **_health_shape(facts),
    }


def problems(facts: ReplicaFacts, point: str) -> list[str]:
    """What is wrong with the files of a restore point; empty if nothing is."""
    return [*facts.damage.get(point, []), *facts.losses.get(point, [])]


def rebuilt_shape(datastore: str, name: str, dry_run: bool, rebuilt: RebuiltReplica) -> Shape:
    """What came of the files of a replica without a record."""
    return {
        "replica": name,
        "datastore": datastore,
        "dry_run": dry_run,
        "points": [point.id for point in rebuilt.replica.points],
        "left_out": dict(rebuilt.left_out),
        "files": list(rebuilt.files),
        "notes": list(rebuilt.notes),
    }


def _health_shape(facts: ReplicaFacts) -> Shape:
    """What verifying has found out: when each point was verified last, and what is wrong with it."""
    bad: dict[str, dict[str, int]] = {}
    problems: dict[str, list[str]] = {}
    for item in facts.health:
        if item.bad:
            bad.setdefault(item.point, {})[item.disk] = item.bad_blocks
        if item.problem:
            problems.setdefault(item.point, []).append(f"disk {item.disk}: {item.problem}")
    points = facts.replica.points if facts.replica else ()
    return {
        "verified_at": {point.id: _verified_at(facts, point) for point in points},
        "bad_blocks": bad,
        "health_problems": problems,
    }


def _verified_at(facts: ReplicaFacts, point: RestorePoint) -> str | None:
    """When the last complete verification of a point was; None for never."""
    return last_verified(facts.health, point.id, [disk.name for disk in point.disks]) or None


def points_shape(facts: ReplicaFacts, left_out: Mapping[str, Sequence[Exclusion] | None]) -> list[Shape]:
    """The restore points of a replica, oldest first; ``image`` is the layer that shows the point, an absolute path;
    empty if the point is a snapshot of the replica VM.

    :param left_out: what each point leaves out, by its id; None if that is lost, nothing if it is not there.
    """
    points = facts.replica.points if facts.replica else ()
    return [
        {
            "id": point.id,
            "created_at": point.created_at,
            "consistency": point.consistency.value,
            "session": point.session,
            "damage": problems(facts, point.id),
            "verified_at": _verified_at(facts, point),
            "bad_blocks": sum(item.bad_blocks for item in facts.health if item.point == point.id),
            "applications": [asdict(item) for item in point.applications],
            "disks": [_point_disk_shape(facts, point, disk, left_out.get(point.id, ())) for disk in point.disks],
        }
        for point in points
    ]


def _point_disk_shape(
    facts: ReplicaFacts, point: RestorePoint, disk: PointDisk, left_out: Sequence[Exclusion] | None
) -> Shape:
    health = health_of(facts.health, point.id, disk.name)
    return {
        "name": disk.name,
        "size": disk.size,
        "image": facts.images.get(point.id, {}).get(disk.name, ""),
        "digest": facts.digests[point.id][disk.name],
        "verified_at": health.verified_at or None,
        "bad_blocks": health.bad_blocks,
        "excluded": None if left_out is None else dict(exclusion_of(left_out, disk.name).by_kind),
    }


def swept_shape(item: Swept, dry_run: bool) -> Shape:
    """A leftover, and what became of it."""
    leftover = item.leftover
    return {
        "kind": leftover.kind.value,
        "place": leftover.place,
        "owner": leftover.owner,
        "name": leftover.name,
        "session": leftover.session,
        "action": leftover.action.value,
        "why": leftover.why,
        "done": leftover.action.acts and not dry_run and not item.problem,
        "problem": item.problem,
        "commands": list(leftover.commands),
    }


def verify_shape(record: ReplicaRecord, point: str, verified: VerifyAnswer, newest: bool) -> Shape:
    """The outcome of a verification; ``complete`` unless the time was over before its end."""
    return {
        "replica": record.name,
        "datastore": record.datastore,
        "point": point,
        "newest": newest,
        "ok": not any(disk.bad_count or disk.problem for disk in verified.disks),
        "complete": verified.complete,
        "disks": [
            {
                "name": disk.name,
                "blocks": disk.blocks,
                "bad_count": disk.bad_count,
                "bad_blocks": list(disk.bad_blocks),
                "problem": disk.problem,
                "bad_ranges": [{"start": part.start, "length": part.length} for part in disk.bad],
                "affected_points": list(disk.affected),
                "verified_at": disk.verified_at or None,
                "digests_recomputed_at": disk.digests_recomputed_at or None,
            }
            for disk in verified.disks
        ],
    }
