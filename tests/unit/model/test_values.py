"""Values of the model: the state of a session, tags, replicas, disks of a VM."""

from __future__ import annotations

import itertools
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.controller.catalog import DEFAULT_SCRATCH_DIR
from understudy.controller.jobs import new_job_id
from understudy.errors import NotFound
from understudy.model.inventory import Disk, Vm, VmState
from understudy.model.replica import Consistency, PointDisk, Replica, ReplicaIdentity, ReplicaState, RestorePoint
from understudy.model.session import SessionState, session_state
from understudy.model.snapshot import SnapshotRequest, Tag
from understudy.platforms.libvirt.backup import socket_path

ENDS = (SessionState.SUCCESS, SessionState.WARNING, SessionState.FAILED, SessionState.CANCELLED)
RANK = {state: rank for rank, state in enumerate(ENDS)}
TAGS = st.builds(
    Tag, st.uuids().map(lambda value: value.hex), st.uuids().map(str), st.integers(1, 1 << 31)
)


@given(st.lists(st.sampled_from(ENDS)))
def test_a_session_ends_as_its_worst_task(tasks: list[SessionState]) -> None:
    worst = max(tasks, key=lambda state: RANK[state], default=SessionState.SUCCESS)
    assert session_state(tuple(tasks)) is worst


def test_only_queued_and_running_have_not_ended() -> None:
    assert {state for state in SessionState if not state.ended} == {SessionState.QUEUED, SessionState.RUNNING}
    assert {state for state in SessionState if state.ended} == set(ENDS)


@given(TAGS, TAGS)
def test_what_belongs_to_another_vm_or_job_never_has_our_prefix(ours: Tag, other: Tag) -> None:
    same = (ours.job_id, ours.vm_uuid) == (other.job_id, other.vm_uuid)
    assert str(other).startswith(ours.prefix) == same


@given(TAGS, st.integers(1, 1 << 31), st.integers(1, 1 << 31))
def test_sessions_of_a_job_share_the_prefix_and_nothing_more(tag: Tag, first: int, second: int) -> None:
    one, two = Tag(tag.job_id, tag.vm_uuid, first), Tag(tag.job_id, tag.vm_uuid, second)
    assert one.prefix == two.prefix
    assert str(one).startswith(one.prefix)
    assert (str(one) == str(two)) == (first == second)
    # Names that we make are the tag and something after a '-' or '.': no session's names are another one's.
    assert f"{one}-vda.scratch".startswith(f"{two}-") == (first == second)


def test_a_changed_job_or_vm_changes_the_prefix() -> None:
    job, vm = new_job_id(), str(uuid.uuid4())
    prefixes = {Tag(job, vm, 1).prefix, Tag(new_job_id(), vm, 1).prefix, Tag(job, str(uuid.uuid4()), 1).prefix}
    assert len(prefixes) == 3
    assert not any(a.startswith(b) for a, b in itertools.permutations(prefixes, 2))


@given(TAGS)
def test_a_snapshot_socket_has_a_path_that_unix_allows(tag: Tag) -> None:
    request = SnapshotRequest(tag, ("vda",), (), None, "", (), DEFAULT_SCRATCH_DIR)
    assert len(socket_path(request).encode()) <= 107
    # An operator's own scratch directory has room as well.
    assert len(socket_path(request).encode()) - len(DEFAULT_SCRATCH_DIR) <= 50


@given(TAGS)
def test_a_tag_is_plain_enough_for_file_names_and_xml(tag: Tag) -> None:
    assert str(tag).replace("-", "").isalnum()
    assert str(tag).isascii()


def point(name: str, *disks: str) -> RestorePoint:
    made = tuple(PointDisk(disk, 1, f"{disk}.qcow2", "", f"{disk}.digest", 1) for disk in disks)
    return RestorePoint(name, "2026-01-01T00:00:00.000+00:00", Consistency.CRASH, 1, 1 << 20, made)


def replica(*points: RestorePoint) -> Replica:
    identity = ReplicaIdentity("id", "web_replica", "job", "nightly", "web", "source-uuid", "domain-uuid")
    return Replica(identity, ReplicaState.READY, points)


def test_the_newest_point_is_the_last_one() -> None:
    assert replica().newest is None
    assert replica(point("a"), point("b")).newest == point("b")


def test_a_point_is_found_by_its_id_and_its_absence_names_the_replica() -> None:
    assert replica(point("a"), point("b")).point("a") == point("a")
    with pytest.raises(NotFound, match=r"restore point 'c' of replica 'web_replica': no such restore point; see"):
        replica(point("a")).point("c")


def test_a_disk_of_a_point_is_found_by_name_or_is_none() -> None:
    both = point("a", "vda", "vdb")
    assert both.disk("vdb") is both.disks[1]
    assert both.disk("vdc") is None


def test_a_disk_of_a_vm_is_found_by_name() -> None:
    disks = (Disk("vda", "/a", "qcow2", 1), Disk("vdb", "/b", "raw", 2))
    vm = Vm("web", "uuid", VmState.RUNNING, "x86_64", "q35", "bios", 1, 1, disks, (), False, False, "<domain/>")
    assert vm.disk("vdb") is disks[1]
    with pytest.raises(KeyError):
        vm.disk("vdc")


def test_the_definition_of_a_vm_which_may_hold_secrets_is_not_in_its_repr() -> None:
    vm = Vm("web", "uuid", VmState.RUNNING, "x86_64", "q35", "bios", 1, 1, (), (), False, False, "<passwd>hunter2")
    assert "hunter2" not in repr(vm)
