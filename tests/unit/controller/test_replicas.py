"""The cache of replica records: what replica.json says comes back unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.controller import catalog, jobs, replicas
from understudy.controller.database import Database
from understudy.errors import NotFound, Refused
from understudy.model.job import Datastore
from understudy.model.replica import (
    Baseline,
    Consistency,
    PointDisk,
    Replica,
    ReplicaIdentity,
    ReplicaState,
    RestorePoint,
)
from understudy.units import GIB, MIB

IDENTITY = ReplicaIdentity("id-1", "web 1_replica", "0" * 31 + "1", "nightly", "web 1", "src-uuid", "dom-uuid")
DISK = PointDisk("vda", 64 * 1024 * GIB, "vda-1.qcow2", "", "vda-1.digest", 3 * GIB, "/img/web.qcow2")
OLD = RestorePoint("20260101T000000Z-1", "2026-01-01T00:00:00+00:00", Consistency.CRASH, 1, MIB,
                   (DISK,))  # fmt: skip
NEW = RestorePoint("20260102T000000Z-2", "2026-01-02T00:00:00+00:00", Consistency.FILESYSTEM, 2, MIB,
                   (PointDisk("vda", GIB, "vda-2.qcow2", "vda-1.qcow2", "vda-2.digest", 12),),
                   Baseline("understudy-1", ("vda",)), {"qemu": "7.2"})  # fmt: skip
REPLICA = Replica(IDENTITY, ReplicaState.READY, (OLD, NEW), NEW.id)


def test_a_replica_comes_back_as_it_was(site: Database) -> None:
    saved = replicas.save_replica(site, REPLICA, "vault", "dr")
    assert (saved.replica, saved.datastore, saved.host, saved.job) == (REPLICA, "vault", "dr", "nightly")
    assert replicas.find_replica(site, "web 1_replica") == saved
    assert replicas.find_replica(site, "vault/web 1_replica") == saved
    assert replicas.get_replica(site, "id-1") == saved
    assert replicas.list_replicas(site) == (saved,)


def test_saving_again_replaces_what_was_known(site: Database) -> None:
    replicas.save_replica(site, REPLICA, "vault", "dr")
    newer = replace(NEW, id="20260103T000000Z-3")
    changed = Replica(IDENTITY, ReplicaState.FAILOVER, (NEW, newer), newer.id)
    assert replicas.save_replica(site, changed, "vault", "dr").replica == changed
    assert replicas.get_replica(site, "id-1").replica == changed
    replicas.save_replica(site, replace(changed, points=()), "vault", "dr")
    assert replicas.get_replica(site, "id-1").replica.points == ()


def test_a_replica_of_another_controllers_job_has_no_job_here(site: Database) -> None:
    foreign = replace(REPLICA, identity=replace(IDENTITY, job_id="elsewhere", job_name="theirs"))
    saved = replicas.save_replica(site, foreign, "vault", "dr")
    assert saved.job is None
    assert saved.replica.identity.job_name == "theirs"


def test_a_replica_stays_when_its_job_is_deleted(site: Database) -> None:
    replicas.save_replica(site, REPLICA, "vault", "dr")
    jobs.delete_job(site, "nightly")
    kept = replicas.get_replica(site, "id-1")
    assert (kept.job, kept.replica) == (None, REPLICA)


def test_another_replica_in_the_same_place_takes_over(site: Database) -> None:
    replicas.save_replica(site, REPLICA, "vault", "dr")
    replicas.save_replica(site, replace(REPLICA, identity=replace(IDENTITY, id="id-2")), "vault", "dr")
    assert [item.replica.identity.id for item in replicas.list_replicas(site)] == ["id-2"]


def test_an_ambiguous_name_is_refused_with_the_candidates(site: Database) -> None:
    catalog.add_datastore(site, Datastore("attic", "dr", "qcow2", "/srv/attic"))
    replicas.save_replica(site, REPLICA, "vault", "dr")
    replicas.save_replica(site, replace(REPLICA, identity=replace(IDENTITY, id="id-2")), "attic", "dr")
    with pytest.raises(Refused, match="say which: 'attic/web 1_replica', 'vault/web 1_replica'"):
        replicas.find_replica(site, "web 1_replica")
    assert replicas.find_replica(site, "attic/web 1_replica").replica.identity.id == "id-2"


def test_unknown_replicas_and_places_are_told(site: Database) -> None:
    for name in ("mars", "vault/mars", "mars/web 1_replica"):
        with pytest.raises(NotFound, match=f"replica '{name}': no such replica"):
            replicas.find_replica(site, name)
    with pytest.raises(NotFound):
        replicas.get_replica(site, "mars")
    with pytest.raises(NotFound, match="datastore 'mars'"):
        replicas.save_replica(site, REPLICA, "mars", "dr")


def test_a_forgotten_replica_is_gone_with_its_points(site: Database) -> None:
    replicas.save_replica(site, REPLICA, "vault", "dr")
    replicas.forget_replica(site, "id-1")
    assert replicas.list_replicas(site) == ()
    with pytest.raises(NotFound):
        replicas.forget_replica(site, "id-1")
    replicas.save_replica(site, REPLICA, "vault", "dr")
