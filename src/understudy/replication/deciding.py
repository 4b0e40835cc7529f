"""Facts in, decisions out: how are the changes of each disk found? Asks both ends, and changes nothing there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.model.inventory import Disk, Vm
from understudy.model.replica import SourceGeneration
from understudy.model.transfer import DiskPlan, Reason
from understudy.mover import api
from understudy.replication import source_side as source
from understudy.replication import target_side as target
from understudy.replication.held import Excluding
from understudy.replication.planning import PlanningFacts, began_at, no_longer_replicated, plan_disks
from understudy.replication.site import Site, Task
from understudy.replication.source_images import Images, generation, with_tracking_facts
from understudy.replication.surveying import former_exclusions


@dataclass(frozen=True)
class Decided:
    """What is decided for a VM.

    :ivar disks: those that are replicated.
    :ivar generation: what their images are.
    :ivar excluding: what the points left out that they are compared with.
    """

    disks: tuple[Disk, ...]
    plans: tuple[DiskPlan, ...]
    generation: SourceGeneration | None
    excluding: Excluding


def decide(
    task: Task, site: Site, vm: Vm, facts: api.ReplicaFacts, disks: Sequence[Disk], images: Images, *, left: bool
) -> Decided:
    """Decide for each disk; what the operator should know of it becomes a warning.

    :param left: the VM was found on a snapshot delta of a dead session.
    :raises Refused: if a disk became smaller.
    """
    newest = facts.replica.newest if facts.replica else None
    tracked = with_tracking_facts(disks, images)
    marks = generation(vm, images)
    # If QEMU died while the delta was in use, its part of the dirty map is lost, and the merge does not tell.
    unknown = {disk.name: Reason.SNAPSHOT_LEFT for disk in tracked}
    known = unknown if left else source.tracking_since(site, vm, tracked, images, newest)
    plans = plan_disks(vm.name, tracked, PlanningFacts(
        newest=newest, damaged=target.damaged_disks(facts), tracking=known, block_size=task.job.block_size,
        full_scan=task.full_scan, began=began_at(facts.replica.points) if facts.replica else None,
        images={image.disk: image for image in marks.images} if marks else {},
        in_place=site.snapshots is not None,
    ))  # fmt: skip
    plans, excluding = former_exclusions(site, target.replica_ref(task, site), facts.replica, plans)
    plans = target.with_repairs(site, facts, plans, task.job.block_size)
    for text in no_longer_replicated(vm, tracked, newest):
        site.journal.warn(text)
    return Decided(tracked, plans, marks, excluding)
