"""What the command line needs from the controller beyond the configuration database.

Commands that only read or write the database call :mod:`understudy.controller` themselves. Everything that talks to a
platform or a proxy goes through this protocol, which ``understudy.controller.services`` fulfils.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from understudy.controller.database import Database
from understudy.controller.leftovers import Swept
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
from understudy.model.access import ServerCertificate
from understudy.model.exclusion import Exclusion
from understudy.model.guest import GuestTransport
from understudy.model.inventory import Vm
from understudy.model.job import Datastore
from understudy.model.live_test import LiveStep, LiveTestReport, LiveTestWish
from understudy.model.replica import ConversionWish
from understudy.model.session import SessionReport
from understudy.mover.api import Progress, ReplicaFacts
from understudy.storage.values import DatastoreFacts, RebuiltReplica


class Services(Protocol):
    """The controller's acts. Each raises an error of our tree, or returns a complete answer."""

    def server_certificate(self, uri: str) -> ServerCertificate:
        """Ask a server of VMware vSphere who it is, without logging in.

        :raises HostUnreachable: if it does not answer.
        """

    def check_host(self, name: str) -> CheckedHost:
        """Connect to the platform of the host and ask what it is; of VMware vSphere also whether VMs can be replicated
        from there, and by which proxies.

        :raises NotFound: if there is no such host.
        :raises HostUnreachable: if its platform does not answer.
        """

    def live_test(self, name: str, wish: LiveTestWish, on_step: Callable[[LiveStep], None]) -> LiveTestReport:
        """Make every call of a session on one VM of a host of VMware vSphere, and clean up; a step that fails is told
        in the report. Ctrl-C stops it, after it has cleaned up.

        :raises NotFound: if there is no such host, or proxy.
        :raises Refused: if the host is of another kind.
        :raises HostUnreachable: if its platform does not answer.
        :raises MoverError: if no proxy can read its disks.
        """

    def list_vms(self, name: str) -> tuple[Vm, ...]:
        """All VMs of the host, by name.

        :raises NotFound: if there is no such host.
        :raises HostUnreachable: if its platform does not answer.
        """

    def check_guests(self, job: str, vm: str, accept: bool) -> tuple[CheckedGuest, ...]:
        """Look at the guests of a job, or at that of ``vm``; see :mod:`understudy.controller.guest_checks`."""

    def change_agent(self, job: str, vm: str, *, install: bool) -> GuestTransport:
        """Install the program for guest processing in a guest for good, or remove it; how the guest was reached."""

    def check_datastore(self, name: str) -> DatastoreFacts:
        """Ask the proxy of the datastore's host about it, trying a write. A missing directory is a fact, no error.

        :raises NotFound: if there is no such datastore.
        """

    def mark_datastore(self, name: str) -> Datastore:
        """Give a datastore its marker file, if its directory exists; the datastore as it is then.

        :raises UnderstudyError: if its proxy does not answer, or the file cannot be written.
        """

    def move_datastore(self, name: str, path: str, accept: bool) -> Datastore:
        """The datastore lies in directory ``path`` from now on; empty for the one where it lies.

        :param accept: it may be another one, or an empty one.
        :raises DatastoreError: if it is another one, and is not accepted.
        """

    def check_proxy(self, name: str) -> CheckedProxy:
        """Start the proxy if need be, or connect to it, and ask who it is; renew its certificate if that is due.

        :raises NotFound: if there is no such proxy.
        :raises MoverError: if it does not answer, or is not who it should be.
        """

    def invite_proxy(self, wish: ProxyWish) -> InvitedProxy:
        """Invite a host to become a proxy; a background process waits for it when this returns.

        It runs ``understudy --home HOME enrolment``, which ends up in :meth:`run_enrolment`.

        :raises NotFound: if the proxy's host is unknown.
        :raises Refused: if the name is taken.
        :raises MoverError: if nobody can wait at the address.
        """

    def run_enrolment(self) -> None:
        """Serve invited hosts until no invitation is open; wait first if another process does."""

    def remove_proxy(self, name: str) -> RemovedProxy:
        """Forget a proxy, which revokes its identity, and tell a service so if it can be reached.

        :raises NotFound: if there is no such proxy.
        :raises Refused: if it is the built-in one, or something uses it.
        """

    def run_session(self, session_id: int, on_progress: Callable[[SessionReport], None] | None) -> SessionReport:
        """See a queued session to its end, and return its final report.

        Becomes the controller if no other process is; else follows. ``on_progress`` gets a report about twice a
        second, always in the calling thread; without it none is made but the last. The first Ctrl-C (SIGINT) or SIGTERM
        requests the cancellation of the session and goes on waiting for its orderly end, so the report returned is then
        of a cancelled session; a second one raises KeyboardInterrupt.
        """

    def interrupted_session(self, job: str) -> int | None:
        """The session of a job that a dead controller left and that can be gone on with; others that it left are ended.

        :raises NotFound: if there is no such job.
        """

    def start_background_controller(self) -> None:
        """Make sure that a controller lives, as a process of its own that outlives this command. Returns at once.

        It runs ``understudy --home HOME controller``, which ends up in :meth:`run_controller`.
        """

    def run_controller(self) -> None:
        """Be the controller until no session is queued or running; do nothing if another process is."""

    def replica_facts(self, replica: ReplicaRecord) -> ReplicaFacts:
        """Ask the target proxy for everything known of the replica, reading its files.

        :raises ReplicaError: if its record is damaged, or of a newer format.
        """

    def left_out(self, replica: ReplicaRecord, point: str) -> tuple[Exclusion, ...]:
        """Ask the target proxy what the disks of a restore point leave out.

        :raises ReplicaError: if that is lost.
        """

    def verify_point(
        self, replica: ReplicaRecord, wish: VerifyWish, on_progress: Callable[[Progress], None]
    ) -> VerifyAnswer:
        """Recompute the digests of a restore point from its layers, on the target, and compare; goes on where an
        earlier call was stopped. What is found is remembered beside the replica. Ctrl-C stops it.

        :raises NotFound: if there is no such point, any more.
        :raises Refused: if the replica is being verified already, or layers are merged.
        :raises Cancelled: after Ctrl-C.
        """

    def due_verifications(self) -> DueAnswer:
        """What is to be verified now by the schedules of the jobs, by turn; reads the files of their replicas.

        A replica that cannot be asked is told as a problem.
        """

    def adopt_replica(self, datastore: str, name: str) -> ReplicaRecord:
        """Take a replica that lies in a datastore into the configuration database; define its VM if it is missing.

        :raises NotFound: if the datastore is unknown, or has no such replica.
        A replica that is known elsewhere and is not there any more has moved.

        :raises Refused: if it is known elsewhere and is there.
        :raises ReplicaError: if its record is lost or damaged.
        """

    def rebuild_replica(
        self, datastore: str, name: str, dry_run: bool, on_progress: Callable[[Progress], None]
    ) -> RebuiltReplica:
        """Make the record of a replica again from its files, every point proved by its digests. Ctrl-C stops it.

        :raises Refused: if its record is neither lost nor damaged, or nothing tells whose replica it is.
        :raises ReplicaError: if no restore point can be proved.
        """

    def delete_replica(self, replica: ReplicaRecord) -> None:
        """Undefine the replica VM, delete the replica's files, then forget its record.

        :raises Refused: if the replica VM runs, or a session is working on it.
        """

    def start_failover(self, replica: ReplicaRecord, point: str, wish: ConversionWish) -> FailoverAnswer:
        """Make a new head on the restore point and start the replica VM; the replica as it then is.

        :param point: id of a point that the replica has.
        :param wish: whether a guest from another platform is converted on that head. Ctrl-C stops a conversion.
        :raises Refused: if it is in failover, its VM runs, a session is working on it, or it cannot be converted.
        :raises Cancelled: after Ctrl-C.
        """

    def undo_failover(self, replica: ReplicaRecord) -> FailoverAnswer:
        """Stop the replica VM and drop what it wrote; the replica as it then is.

        :raises Refused: if it is not in failover.
        """

    def sweep(self, hosts: Sequence[str], dry_run: bool) -> tuple[Swept, ...]:
        """Look everywhere, or on some hosts, for what dead sessions left, and remove it unless ``dry_run``.

        :raises NotFound: if a host is unknown.
        :raises Refused: if another process is the controller; not if ``dry_run``.
        """

    def close(self) -> None:
        """End the proxies and connections that this process started; may be called again."""


OpenServices = Callable[[Path, Database], Services]
