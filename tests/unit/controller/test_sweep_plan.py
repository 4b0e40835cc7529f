"""What a sweep may touch: nothing without our mark, nothing of a session that is not over, never a baseline (S7)."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.controller.leftovers import Action, Kind, Leftover, Scope
from understudy.controller.records import FrozenGuest
from understudy.controller.sweep_plan import Facts, HostFile, HostVm, SurveyedPlace, Unseen, plan_sweep
from understudy.model.job import Datastore, Job
from understudy.model.replica import (
    Baseline,
    Consistency,
    PointDisk,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
)
from understudy.model.snapshot import Mark, Tag
from understudy.mover.api import DatastoreSurvey, DigestCopy, HeldFacts, SurveyedReplica, TaggedFile
from understudy.platforms import VmTraces
from understudy.storage.values import StoreLeftovers

NIGHTLY, HOURLY, FOREIGN = "a" * 32, "b" * 32, "f" * 32
WEB, DB = "uuid-web", "uuid-db"
JOBS = (
    Job(NIGHTLY, "nightly", "prod", "dr", "vault", ("web", "db")),
    Job(HOURLY, "hourly", "prod", "dr", "vault", ("web",), suffix="_h"),
)
VAULT = Datastore("vault", "dr", "qcow2", "/srv")


def tag(job: str, vm: str, session: int) -> str:
    return str(Tag(job, vm, session))


def traces(name: str, uuid: str, **changes: object) -> VmTraces:
    empty = VmTraces(name, uuid, active=True, checkpoints=(), backup="", deltas=(), images=())
    return replace(empty, **changes)  # type: ignore[arg-type]


def replica(name: str, job: str, uuid: str, baseline: str, points: int = 1) -> Replica:
    identity = ReplicaIdentity(f"rid-{name}", name, job, "nightly", "web", uuid, f"dom-{name}")
    disks = (PointDisk("vda", 1, "vda-p1.qcow2", "", "vda-p1.digest", 1),)
    made = [RestorePoint(f"p{number}", "2026-01-01T00:00:00+00:00", Consistency.CRASH, number, 1, disks,
                         Baseline(baseline, ("vda",))) for number in range(1, points + 1)]  # fmt: skip
    return Replica(identity, ReplicaState.READY, tuple(made))


def place(*replicas: Replica, leftovers: StoreLeftovers = StoreLeftovers()) -> SurveyedPlace:  # noqa: B008 - frozen
    found = tuple(SurveyedReplica(item.identity.name, item, leftovers) for item in replicas)
    return SurveyedPlace(VAULT, DatastoreSurvey(exists=True, replicas=found))


def plan(facts: Facts, scope: Scope = Scope()) -> tuple[Leftover, ...]:  # noqa: B008 - frozen
    return plan_sweep(facts, scope)


def acted_on(facts: Facts) -> list[str]:
    return [item.name for item in plan(facts) if item.action.acts]


names = st.one_of(
    st.builds(
        lambda job, vm, session, end: tag(job, vm, session) + end,
        st.sampled_from([NIGHTLY, HOURLY, FOREIGN]), st.sampled_from([WEB, DB, "uuid-gone"]), st.integers(0, 5),
        st.sampled_from(["", "-beef", "-vda.delta", "-vda.scratch", ".sock"]),
    ),
    st.sampled_from(["other-tool", "understudy-", "understudy-notes.txt", "understudy--deadbeef-1", "x.delta"]),
    st.text(max_size=30).map(lambda text: f"understudy-{text}"),
)  # fmt: skip
vm_traces = st.builds(
    lambda name_uuid, active, checkpoints, backup, deltas: traces(
        *name_uuid, active=active, checkpoints=tuple(checkpoints), backup=backup,
        deltas=tuple((f"vd{number}", f"/img/{name}") for number, name in enumerate(deltas)),
    ),
    st.sampled_from([("web", WEB), ("db", DB)]), st.booleans(), st.sets(names, max_size=4),
    st.one_of(st.just(""), names), st.sets(names, max_size=2),
)  # fmt: skip
all_facts = st.builds(
    lambda vms, files, busy, baseline, survey, exports: Facts(
        JOBS, busy=busy, vms=tuple(HostVm("prod", item) for item in vms),
        files=tuple(HostFile(("prod",), TaggedFile("/scratch", name, used)) for name, used in files),
        places=(survey(baseline),), held={"far": HeldFacts(tuple(exports), ())},
    ),
    st.lists(vm_traces, max_size=3), st.sets(st.tuples(names, st.booleans()), max_size=5),
    st.dictionaries(st.sampled_from([NIGHTLY, HOURLY]), st.integers(1, 5), max_size=2),
    names,
    st.sampled_from([
        lambda baseline: place(replica("web_replica", NIGHTLY, WEB, baseline)),
        lambda _: SurveyedPlace(VAULT, None, "the proxy does not answer"),
        lambda _: SurveyedPlace(VAULT, DatastoreSurvey(exists=False, replicas=()), "not mounted"),
    ]),
    st.sets(names, max_size=3),
)  # fmt: skip


@settings(deadline=None)
@given(all_facts)
def test_nothing_is_touched_but_what_a_job_of_ours_marked_for_a_session_that_is_over(facts: Facts) -> None:
    for item in plan(facts):
        if not item.action.acts:
            continue
        mark = Mark.of(item.name.rsplit("/", 1)[-1])
        assert mark is not None
        assert mark.job in {NIGHTLY[:12], HOURLY[:12]}
        assert item.job in {NIGHTLY, HOURLY}
        assert item.job not in facts.busy
        assert item.name not in facts.baselines


@settings(deadline=None)
@given(all_facts)
def test_everything_is_told_with_a_reason_and_what_runs_without_commands(facts: Facts) -> None:
    for item in plan(facts):
        assert item.why
        assert item.action is not Action.SKIP or not item.commands


@settings(deadline=None)
@given(all_facts)
def test_a_checkpoint_is_removed_only_if_the_record_of_its_replica_was_read(facts: Facts) -> None:
    (vault,) = facts.places
    if not vault.complete:
        assert not [item for item in plan(facts) if item.kind is Kind.CHECKPOINT and item.action.acts]


def test_of_checkpoints_only_the_baseline_of_the_newest_point_stays() -> None:
    old, new, other = (f"{tag(NIGHTLY, WEB, number)}-beef" for number in (1, 2, 3))
    foreign = f"{tag(FOREIGN, WEB, 4)}-beef"
    facts = Facts(JOBS, vms=(HostVm("prod", traces("web", WEB, checkpoints=(old, new, other, foreign))),),
                  places=(place(replica("web_replica", NIGHTLY, WEB, new)),))  # fmt: skip
    assert acted_on(facts) == [old, other]
    (told,) = [item for item in plan(facts) if item.name == foreign]
    assert told.action is Action.NOT_OURS
    off = replace(facts, vms=(HostVm("prod", replace(facts.vms[0].traces, active=False)),))
    assert acted_on(off) == []


def test_all_checkpoints_stay_while_the_record_is_missing_damaged_or_out_of_reach() -> None:
    name = f"{tag(NIGHTLY, WEB, 1)}-beef"
    facts = Facts(JOBS, vms=(HostVm("prod", traces("web", WEB, checkpoints=(name,))),), places=(place(),))
    assert acted_on(facts) == [name]  # the job never made a point of this VM
    damaged = SurveyedReplica("web_replica", None, StoreLeftovers(), problem="replica.json is damaged")
    for changed, why in (
        (replace(facts, recorded={"rid": (NIGHTLY, WEB)}), "its replica is not in datastore 'vault'"),
        (replace(facts, places=(SurveyedPlace(VAULT, None, "no answer"),)), "no answer"),
        (replace(facts, places=()), "is not there"),
        (replace(facts, places=(SurveyedPlace(VAULT, DatastoreSurvey(True, (damaged,))),)), "is damaged"),
    ):
        (told,) = [item for item in plan(changed) if item.kind is Kind.CHECKPOINT]
        assert (told.action, why in told.why) == (Action.KEEP, True), told


def test_a_baseline_that_another_job_took_over_stays() -> None:
    taken = f"{tag(NIGHTLY, WEB, 1)}-beef"
    facts = Facts(JOBS, vms=(HostVm("prod", traces("web", WEB, checkpoints=(taken,))),),
                  places=(place(replica("web_h", HOURLY, WEB, taken)),))  # fmt: skip
    assert plan(facts) == ()


def test_a_vm_on_which_another_job_works_is_left_alone() -> None:
    name = tag(HOURLY, WEB, 1)
    facts = Facts(JOBS, vms=(HostVm("prod", traces("web", WEB, backup=f"{name}.sock")),), places=(place(),))
    assert acted_on(facts) == [f"{name}.sock"]
    assert acted_on(replace(facts, busy_vms=frozenset({("prod", "web")}))) == []
    assert acted_on(replace(facts, busy_vms=frozenset({("prod", "db")}))) == [f"{name}.sock"]


def test_a_free_delta_is_removed_only_if_it_is_certain_that_no_disk_needs_it() -> None:
    name = f"{tag(NIGHTLY, WEB, 1)}-vda.delta"
    vm = HostVm("prod", traces("web", WEB))
    facts = Facts(JOBS, vms=(vm,), files=(HostFile(("prod",), TaggedFile("/img", name, False)),), places=(place(),))
    assert acted_on(facts) == [name]
    for kept in (
        replace(facts, vms=()),
        replace(facts, vms=(HostVm("prod", traces("web", WEB, active=False)),)),
        replace(facts, unseen=(Unseen("other", "no answer", failed=True),)),
        replace(facts, files=(HostFile(("prod",), TaggedFile("/img", name, True)),)),
    ):
        (told,) = [item for item in plan(kept) if item.kind is Kind.FILE]
        assert told.action is Action.KEEP
    writing = HostVm("prod", traces("web", WEB, deltas=(("vda", f"/img/{name}"),)))
    in_use = replace(facts, vms=(writing,), files=(HostFile(("prod",), TaggedFile("/img", name, True)),))
    assert [(item.kind, item.action) for item in plan(in_use)] == [(Kind.DELTA, Action.COMMIT)]
    off = HostVm("prod", replace(writing.traces, active=False))
    assert [item.action for item in plan(replace(in_use, vms=(off,)))] == [Action.KEEP]


def test_partial_layers_stay_for_the_next_session_unless_the_job_is_gone() -> None:
    left = StoreLeftovers(("/srv/r/layers/a.partial",), ("/srv/r/layers/b.partial",), ("vda",))
    facts = Facts(JOBS, places=(place(replica("web_replica", NIGHTLY, WEB, "x"), leftovers=left),))
    assert [(item.name, item.action) for item in plan(facts)] == [
        ("vda", Action.FINISH), ("/srv/r/layers/b.partial", Action.REMOVE), ("/srv/r/layers/a.partial", Action.KEEP),
    ]  # fmt: skip
    assert "continued by the next session of job 'nightly'" in plan(facts)[2].why
    gone = replace(facts, jobs=(), recorded={"rid-web_replica": (NIGHTLY, WEB)})
    assert len(acted_on(gone)) == 3
    elsewhere = replace(gone, recorded={})
    assert {item.action for item in plan(elsewhere)} == {Action.NOT_OURS}
    assert {item.action for item in plan(replace(facts, busy={NIGHTLY: 7}))} == {Action.SKIP}


def test_digest_copies_of_points_and_replicas_that_are_no_more_are_removed() -> None:
    copies = tuple(DigestCopy(replica_id, point, f"/copies/{replica_id}-{point}") for replica_id, point in (
        ("rid-web_replica", "p1"), ("rid-web_replica", "p9"), ("rid-nobody", "p1"), ("rid-lost", "p1"),
    ))  # fmt: skip
    facts = Facts(JOBS, places=(place(replica("web_replica", NIGHTLY, WEB, "x")),), copies={"local": copies},
                  recorded={"rid-lost": (NIGHTLY, DB)})  # fmt: skip
    assert [(item.owner, item.name, item.action) for item in plan(facts)] == [
        ("rid-web_replica", "p9", Action.REMOVE), ("rid-nobody", "p1", Action.REMOVE), ("rid-lost", "p1", Action.KEEP),
    ]  # fmt: skip
    other = SurveyedPlace(Datastore("far", "dr", "qcow2", "/far"), None, "no answer")
    unsure = replace(facts, places=(*facts.places, other))
    assert [item.action for item in plan(unsure)] == [Action.REMOVE, Action.KEEP, Action.KEEP]
    busy = plan(replace(facts, busy={NIGHTLY: 7}))
    assert [item.action for item in busy] == [Action.SKIP, Action.REMOVE, Action.KEEP]


def test_what_a_proxy_still_runs_for_a_dead_session_ends() -> None:
    held = HeldFacts((tag(NIGHTLY, WEB, 1), "verify", tag(FOREIGN, WEB, 1)), ("rid-web_replica", "rid-other"))
    facts = Facts(JOBS, places=(place(replica("web_replica", NIGHTLY, WEB, "x")),), held={"far": held})
    assert [(item.kind, item.action) for item in plan(facts)] == [
        (Kind.EXPORT, Action.END), (Kind.EXPORT, Action.NOT_OURS), (Kind.TRANSFER, Action.END),
    ]  # fmt: skip
    assert acted_on(replace(facts, busy={NIGHTLY: 7})) == []


def test_a_guest_of_a_dead_session_is_thawed() -> None:
    guest = FrozenGuest("prod", WEB, 3, "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:10+00:00")
    facts = Facts(JOBS, frozen=(guest,))
    assert [(item.kind, item.action, item.name) for item in plan(facts)] == [(Kind.FROZEN_GUEST, Action.THAW, WEB)]
    assert [item.action for item in plan(replace(facts, busy={NIGHTLY: 3}))] == [Action.SKIP]


def test_a_scope_leaves_out_other_hosts_and_jobs() -> None:
    both = tuple(f"{tag(job, WEB, 1)}-beef" for job in (NIGHTLY, HOURLY))
    facts = Facts(JOBS, vms=(HostVm("prod", traces("web", WEB, checkpoints=both)),),
                  places=(place(replica("db_replica", NIGHTLY, DB, "x"), leftovers=StoreLeftovers((), ("/srv/x",))),),
                  copies={"local": (DigestCopy("rid-nobody", "p1", "/x"),)}, proxy_hosts={"local": ""},
                  unseen=(Unseen("other", "no answer", failed=True),))  # fmt: skip

    def places(scope: Scope) -> list[str]:
        return [item.place for item in plan(facts, scope)]

    assert places(Scope()) == ["prod", "prod", "vault", "local", "other"]
    assert places(Scope(hosts=frozenset({"prod"}))) == ["prod", "prod"]
    assert places(Scope(hosts=frozenset({"dr"}))) == ["vault"]
    assert [item.name for item in plan(facts, Scope(jobs=frozenset({HOURLY})))] == [both[1]]


def test_a_name_of_another_vm_is_not_ours_to_judge() -> None:
    name = f"{tag(NIGHTLY, DB, 1)}-beef"
    facts = Facts(JOBS, vms=(HostVm("prod", traces("web", WEB, checkpoints=(name,))),), places=(place(),))
    assert [item.action for item in plan(facts)] == [Action.NOT_OURS]


def test_a_snapshot_of_a_dead_session_is_committed_whether_its_vm_runs_or_not() -> None:
    for active in (True, False):
        name, by_hand = tag(NIGHTLY, WEB, 3), ("remove it",)
        vm = HostVm("vc", traces("web", WEB, active=active, snapshots=(name,), by_hand={name: by_hand}))
        (found,) = plan(Facts(JOBS, vms=(vm,)))
        assert (found.kind, found.action, found.session, found.commands) == (Kind.SNAPSHOT, Action.COMMIT, 3, by_hand)


def test_a_snapshot_of_a_session_that_is_not_over_or_of_an_unknown_job_or_of_another_vm_stays() -> None:
    names = (tag(NIGHTLY, WEB, 3), tag(FOREIGN, WEB, 1), tag(HOURLY, DB, 2), "understudy-by-hand")
    vm = HostVm("vc", traces("web", WEB, snapshots=names))
    found = {item.name: item.action for item in plan(Facts(JOBS, vms=(vm,), busy={NIGHTLY: 3}))}
    assert found == {names[0]: Action.SKIP, names[1]: Action.NOT_OURS, names[2]: Action.NOT_OURS}


def test_a_delta_that_no_snapshot_needs_is_merged_on_a_vm_that_a_job_replicates_and_on_no_other() -> None:
    left = {"unmerged": True, "by_hand": {"merge": ("merge it",)}}
    vms = (HostVm("prod", traces("web", WEB, **left)), HostVm("prod", traces("somebody", "uuid-x", **left)),
           HostVm("prod", traces("db", DB)), HostVm("elsewhere", traces("web", "uuid-y", **left)))  # fmt: skip
    facts = Facts(JOBS, vms=vms)
    (found,) = plan(facts)
    assert (found.kind, found.owner, found.action, found.job) == (Kind.UNMERGED, "web", Action.COMMIT, NIGHTLY)
    assert found.commands == ("merge it",)
    # Renamed since, or its host is called by another name: its replica tells.
    (found,) = plan(Facts(JOBS, vms=vms[1:2], recorded={"rid": (HOURLY, "uuid-x")}))
    assert (found.owner, found.action, found.job) == ("somebody", Action.COMMIT, HOURLY)
    (found,) = plan(replace(facts, busy={HOURLY: 7}))
    assert (found.action, found.commands) == (Action.SKIP, ())
