"""The JSON documents of the command line. Scripts depend on the keys: add, never rename or remove."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from understudy.controller.leftovers import Swept
from understudy.controller.records import ReplicaRecord, SessionSummary
from understudy.model.inventory import Vm
from understudy.model.job import Job
from understudy.model.session import DiskReport, SessionReport, StepReport, TaskReport
from understudy.mover.api import ReplicaFacts, VerifiedDisk

Shape = dict[str, Any]


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
    }


def summary_shape(summary: SessionSummary) -> Shape:
    """A session in a list: the head of :func:`session_shape`."""
    return {
        "id": summary.id,
        "job": summary.job,
        "state": summary.state.value,
        "started_at": summary.started_at,
        "ended_at": summary.ended_at,
    }


def session_shape(report: SessionReport) -> Shape:
    """A session with all that is known of it."""
    return {
        "id": report.id,
        "job": report.job,
        "state": report.state.value,
        "started_at": report.started_at,
        "ended_at": report.ended_at,
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
        "damage": {point: list(problems) for point, problems in facts.damage.items() if problems},
    }


def points_shape(facts: ReplicaFacts) -> list[Shape]:
    """The restore points of a replica, oldest first; ``image`` is the layer that shows the point, an absolute path."""
    points = facts.replica.points if facts.replica else ()
    return [
        {
            "id": point.id,
            "created_at": point.created_at,
            "consistency": point.consistency.value,
            "session": point.session,
            "disks": [
                {
                    "name": disk.name,
                    "size": disk.size,
                    "image": facts.images[point.id][disk.name],
                    "digest": facts.digests[point.id][disk.name],
                }
                for disk in point.disks
            ],
        }
        for point in points
    ]


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


def verify_shape(record: ReplicaRecord, point: str, disks: tuple[VerifiedDisk, ...]) -> Shape:
    """The outcome of a verification."""
    return {
        "replica": record.name,
        "datastore": record.datastore,
        "point": point,
        "ok": not any(disk.bad_count or disk.problem for disk in disks),
        "disks": [
            {
                "name": disk.name,
                "blocks": disk.blocks,
                "bad_count": disk.bad_count,
                "bad_blocks": list(disk.bad_blocks),
                "problem": disk.problem,
            }
            for disk in disks
        ],
    }
