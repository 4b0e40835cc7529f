"""What the command line asks of the controller: each verb opens what it needs and closes it with :meth:`close`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from understudy import platforms
from understudy.context import Context
from understudy.controller import catalog, control, guest_checks, host_checks, interrupted, jobs, lock, verification
from understudy.controller.database import Database
from understudy.controller.datastores import marked_datastore, moved_datastore, proved_datastore
from understudy.controller.leftovers import Swept
from understudy.controller.proxies import proxy_warnings
from understudy.controller.records import (
    CheckedGuest,
    CheckedHost,
    CheckedProxy,
    DueAnswer,
    FailoverAnswer,
    InvitedProxy,
    ProxyWish,
    RemovedProxy,
    ReplicaRecord,
    VerifyAnswer,
    VerifyWish,
)
from understudy.controller.recovery import end_dead_sessions
from understudy.controller.replicas import forget_replica, get_replica, list_replicas, save_replica
from understudy.controller.sites import SiteBuilder
from understudy.controller.sweep import list_leftovers, sweep_as_controller
from understudy.errors import DatastoreError, MoverError, NotFound, Refused
from understudy.model.access import ServerCertificate
from understudy.model.exclusion import Exclusion
from understudy.model.guest import GuestTransport
from understudy.model.inventory import Vm, VmState
from understudy.model.job import Datastore, ProxyKind
from understudy.model.live_test import LiveStep, LiveTestReport, LiveTestWish
from understudy.model.replica import ConversionWish
from understudy.model.session import SessionReport
from understudy.model.snapshot import LibraryExport
from understudy.mover import about, api
from understudy.mover.process import MoverProcess
from understudy.replication import failover
from understudy.replication.snapshot_points import verify_exports
from understudy.replication.target_side import refuse_unreadable
from understudy.replication.work import finish
from understudy.storage.values import DatastoreFacts, RebuiltReplica


class ControllerServices:
    """The acts behind the commands; implements :class:`understudy.cli.services.Services`."""

    def __init__(self, home: Path, database: Database) -> None:
        self._home = home
        self._database = database
        self._sites = SiteBuilder(home, database)

    def close(self) -> None:
        """End the proxies and connections that this process started."""
        self._sites.close()

    # --- hosts, datastores, proxies -----------------------------------------------------------------------------------

    def server_certificate(self, uri: str) -> ServerCertificate:
        """Ask a server who it is."""
        return platforms.server_certificate(uri)

    def check_host(self, name: str) -> CheckedHost:
        """Connect, and ask what the host is."""
        return host_checks.check_host(self._database, self._sites, name)

    def live_test(self, name: str, wish: LiveTestWish, on_step: Callable[[LiveStep], None]) -> LiveTestReport:
        """Make every call of a session on one VM."""
        return host_checks.live_test(self._database, self._sites, name, wish, on_step)

    def list_vms(self, name: str) -> tuple[Vm, ...]:
        """All VMs of the host."""
        return self._sites.platforms.get(catalog.get_host(self._database, name)).list_vms()

    def check_guests(self, job: str, vm: str, accept: bool) -> tuple[CheckedGuest, ...]:
        """Look at the guests of a job."""
        return guest_checks.check_guests(self._database, self._sites, job, vm, accept=accept)

    def change_agent(self, job: str, vm: str, *, install: bool) -> GuestTransport:
        """Install the program in a guest, or remove it."""
        return guest_checks.change_agent(self._database, self._sites, job, vm, install=install)

    def check_datastore(self, name: str) -> DatastoreFacts:
        """Ask the proxy of the datastore's host about its directory."""
        datastore = catalog.get_datastore(self._database, name)
        return self._sites.mover_at(datastore.host).call(api.CheckDatastore(datastore.path), api.DatastoreAnswer).facts

    def mark_datastore(self, name: str) -> Datastore:
        """Give the datastore its marker if its directory exists."""
        datastore = catalog.get_datastore(self._database, name)
        return marked_datastore(self._database, self._sites.mover_at(datastore.host), datastore)

    def move_datastore(self, name: str, path: str, accept: bool) -> Datastore:
        """The datastore lies in another directory, or is another one, from now on."""
        datastore = catalog.get_datastore(self._database, name)
        mover = self._sites.mover_at(datastore.host)
        return moved_datastore(self._database, mover, datastore, path or datastore.path, accept=accept)

    def check_proxy(self, name: str) -> CheckedProxy:
        """Start the proxy, or connect to it, and ask who it is."""
        mover = self._sites.movers.start(name).result()
        info = mover.client.call(api.About(), api.MoverInfo)
        skew_s = 0.0 if isinstance(mover, MoverProcess) else mover.clock_skew_s
        proxy = catalog.get_proxy(self._database, name)
        return CheckedProxy(proxy, info, skew_s, proxy_warnings(info, skew_s, about.package_version()))

    def invite_proxy(self, wish: ProxyWish) -> InvitedProxy:
        """Invite a host to become a proxy."""
        from understudy.controller.invite import invite

        return invite(self._home, self._database, wish, self._start_enrolment)

    def run_enrolment(self) -> None:
        """Serve enrolment until no invitation is open."""
        from understudy.controller.enrolment_server import serve_enrolment

        serve_enrolment(self._home, self._database)

    def remove_proxy(self, name: str) -> RemovedProxy:
        """Forget a proxy, and tell a service that it is no proxy any more."""
        from understudy.controller.authority import Authorities
        from understudy.controller.remote import make_forget

        proxy = catalog.get_proxy(self._database, name)
        catalog.remove_proxy(self._database, name)
        if proxy.kind is ProxyKind.CHILD:
            return RemovedProxy(name, None)
        return RemovedProxy(name, make_forget(proxy, Authorities(self._home)))

    def _start_enrolment(self) -> None:
        self._start_background("enrolment")

    # --- sessions -----------------------------------------------------------------------------------------------------

    def run_session(self, session_id: int, on_progress: Callable[[SessionReport], None] | None) -> SessionReport:
        """See a queued session to its end, as the controller or as a follower."""
        duties = control.Control(self._home, self._database, self._sites)
        return control.follow_session(duties, self._database, session_id, on_progress)

    def interrupted_session(self, job: str) -> int | None:
        """The session of a job to go on with, if there is one; the end of those that nobody can go on with."""
        end_dead_sessions(self._database, lambda left: any(self._sites.is_held(task.held) for task in left.resumed))
        return interrupted.session_of(self._database, job) if lock.holder(self._home) is None else None

    def start_background_controller(self) -> None:
        """Start a controller that outlives this command."""
        self._start_background("controller")

    def _start_background(self, name: str) -> None:
        command = [sys.executable, "-m", "understudy", "--home", str(self._home), name]
        log = self._home / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)

    def run_controller(self) -> None:
        """Be the controller until nothing is left to do."""
        duties = control.Control(self._home, self._database, self._sites)
        control.control_until_idle(duties, self._database)

    # --- replicas -----------------------------------------------------------------------------------------------------

    def replica_facts(self, replica: ReplicaRecord) -> api.ReplicaFacts:
        """Everything known of the replica, read from its files."""
        site = self._failover_site(replica)
        facts = site.mover.call(api.InspectReplica(site.ref), api.ReplicaFacts)
        refuse_unreadable(facts, replica.full_name)
        if facts.replica is None:
            raise NotFound(f"replica {replica.full_name!r}", f"its directory below {site.ref.datastore} is gone",
                           "mount the datastore, or forget the replica with 'understudy replica remove'")
        return facts

    def left_out(self, replica: ReplicaRecord, point: str) -> tuple[Exclusion, ...]:
        """What the disks of a restore point leave out."""
        site = self._failover_site(replica)
        return site.mover.call(api.ReadExclusions(site.ref, point), api.PointExclusions).exclusions

    def verify_point(
        self, replica: ReplicaRecord, wish: VerifyWish, on_progress: Callable[[api.Progress], None]
    ) -> VerifyAnswer:
        """Recompute a point's digests from its layers and compare."""
        site = self._failover_site(replica)
        exports = self._point_exports(site, replica, wish.point)
        return verification.verify_point(site.mover, site.ref, wish, on_progress, exports)

    def _point_exports(
        self, site: failover.FailoverSite, replica: ReplicaRecord, point: str
    ) -> tuple[LibraryExport, ...]:
        """How the proxy reads a point that it has not in files; by the replica's own record, which may know more."""
        found = None if site.snapshots is None else self.replica_facts(replica).replica
        if site.snapshots is None or found is None:
            return ()
        return verify_exports(site.snapshots, found.identity, found.point(point))

    def due_verifications(self) -> DueAnswer:
        """What is to be verified by the schedules of the jobs."""
        return verification.due_verifications(
            jobs.list_jobs(self._database), list_replicas(self._database), self.replica_facts)

    def adopt_replica(self, datastore: str, name: str) -> ReplicaRecord:
        """Take a replica from a datastore into the database, and define its VM if it is missing or lies elsewhere."""
        store = catalog.get_datastore(self._database, datastore)
        site = self._site_at(store, name)
        ref = site.ref
        facts = site.mover.call(api.InspectReplica(ref), api.ReplicaFacts)
        refuse_unreadable(facts, f"{datastore}/{name}")
        if facts.replica is None:
            raise NotFound(f"replica '{datastore}/{name}'", "the datastore has no such replica",
                           f"it has: {', '.join(self._names_in(site, ref)) or 'none'}")
        full_name, replica_id = f"{datastore}/{name}", facts.replica.identity.id
        for known in list_replicas(self._database):
            same = known.replica.identity.id == replica_id and known.full_name != full_name
            if same and self._is_there(known):
                raise Refused(f"adopt replica {full_name!r}", f"it is known as {known.full_name!r}, and is there",
                              "one of the two is a copy: forget that one first with 'understudy replica remove'")
        failover.define_adopted(site, facts)
        return save_replica(self._database, facts.replica, datastore, store.host)

    def _is_there(self, known: ReplicaRecord) -> bool:
        """Whether a replica is where the database says, as far as its datastore can be looked at."""
        try:
            return self.replica_facts(known).replica is not None
        except (DatastoreError, NotFound):
            return False

    def rebuild_replica(
        self, datastore: str, name: str, dry_run: bool, on_progress: Callable[[api.Progress], None]
    ) -> RebuiltReplica:
        """Make the record of a replica again from its files."""
        full_name = f"{datastore}/{name}"
        store = catalog.get_datastore(self._database, datastore)
        site = self._site_at(store, name)
        facts = site.mover.call(api.InspectReplica(site.ref), api.ReplicaFacts)
        if not facts.problem:
            if facts.replica is None:
                raise NotFound(f"replica {full_name!r}", "the datastore has no files of such a replica")
            raise Refused(f"rebuild replica {full_name!r}", "its record is neither lost nor damaged",
                          f"see 'understudy replica show {full_name}'")
        known = next((item for item in list_replicas(self._database) if item.full_name == full_name), None)
        identity = known.replica.identity if known else None
        request = api.RebuildReplica(site.ref, facts.last_attempt + 1, identity, dry_run)
        ctx = Context()
        with control.cancel_on_interrupt(ctx.cancel):
            rebuilt = finish(ctx, site.mover, request, on_progress).rebuilt
        if rebuilt is None:
            raise MoverError(f"rebuild replica {full_name!r}", "the proxy did not say what came of it", "see its log")
        if known is not None and not dry_run:
            save_replica(self._database, rebuilt.replica, datastore, store.host)
        return rebuilt

    def delete_replica(self, replica: ReplicaRecord) -> None:
        """Undefine the replica VM, delete the files, forget the record."""
        site = self._failover_site(replica)
        uuid = replica.replica.identity.domain_uuid
        if site.target.replica_state(uuid) in (VmState.RUNNING, VmState.PAUSED):
            raise Refused(f"remove replica {replica.full_name!r}", "its VM runs",
                          "run 'understudy failover undo' or shut it down first")
        facts = site.mover.call(api.InspectReplica(site.ref), api.ReplicaFacts)
        if site.snapshots is None:
            site.target.undefine_replica(uuid)
        else:
            site.snapshots.remove_snapshot_replica(Context(), replica.replica.identity)
        if facts.replica is not None or facts.problem:
            owner = api.OwnedReplica(site.ref, attempt=facts.last_attempt + 1)
            site.mover.call(api.RemoveReplica(owner), api.Nothing)
        forget_replica(self._database, replica.replica.identity.id)

    # --- failover -----------------------------------------------------------------------------------------------------

    def start_failover(self, replica: ReplicaRecord, point: str, wish: ConversionWish) -> FailoverAnswer:
        """Start the replica VM on a restore point."""
        ctx = Context()
        with control.cancel_on_interrupt(ctx.cancel):
            outcome = failover.start_failover(ctx, self._failover_site(replica), point, wish)
        return FailoverAnswer(self._renewed(replica), outcome.warnings, outcome.note)

    def undo_failover(self, replica: ReplicaRecord) -> FailoverAnswer:
        """Stop the replica VM and drop what it wrote."""
        outcome = failover.undo_failover(self._failover_site(replica))
        return FailoverAnswer(self._renewed(replica), outcome.warnings)

    def _renewed(self, replica: ReplicaRecord) -> ReplicaRecord:
        found = self.replica_facts(replica).replica
        if found is None:
            raise NotFound(f"replica {replica.full_name!r}", "its record is gone")
        save_replica(self._database, found, replica.datastore, replica.host)
        return get_replica(self._database, found.identity.id)

    # --- leftovers ----------------------------------------------------------------------------------------------------

    def sweep(self, hosts: Sequence[str], dry_run: bool) -> tuple[Swept, ...]:
        """Look for what dead sessions left, and remove it unless it is only to be listed."""
        act = list_leftovers if dry_run else sweep_as_controller
        return act(self._database, self._sites, hosts)

    # --- places -------------------------------------------------------------------------------------------------------

    def _failover_site(self, replica: ReplicaRecord) -> failover.FailoverSite:
        return self._site_at(catalog.get_datastore(self._database, replica.datastore), replica.name)

    def _site_at(self, store: Datastore, replica: str) -> failover.FailoverSite:
        """:raises DatastoreError: if the datastore is not there, or is another one."""
        target = self._sites.platforms.get(catalog.get_host(self._database, store.host))
        mover = self._sites.mover_at(store.host)
        proved_datastore(self._database, mover, store)
        return failover.FailoverSite(api.ReplicaRef(store.kind, store.path, replica), mover, target)

    def _names_in(self, site: failover.FailoverSite, ref: api.ReplicaRef) -> tuple[str, ...]:
        return site.mover.call(api.ListReplicas(ref.kind, ref.datastore), api.ReplicaNames).names


def open_services(home: Path, database: Database) -> ControllerServices:
    """The controller's services for one command."""
    return ControllerServices(home, database)
