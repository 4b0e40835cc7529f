"""Guest processing of one VM: what is done in its guest before, at and after the source snapshot, in which order.

Reach the guest, put the program there, pre-freeze scripts, start the watchdog in the guest, freeze applications,
freeze file systems - the snapshot - thaw file systems, thaw applications, post-thaw scripts; when the point is
published, what applications do then.

The time limits, of which the first four lie inside the freeze deadline: :func:`begin_s` for freezing applications;
half of what remains for file systems; the snapshot; the other half for the thaw. Whatever we wait for after that, the
watchdogs do not: the one on our host thaws file systems, the one in the guest thaws everything, a moment later. A guest
in which no program can run has the first one only, and its report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from understudy.context import Context
from understudy.errors import GuestError, UnderstudyError, UsageError
from understudy.guests.component import component_for
from understudy.guests.freezing import VSS_DEADLINE_S, FileSystems, Quiesced, Quiescing, ThawWatch
from understudy.guests.frozen import ByProgram, FrozenApplications, InGuest, begin_s, timed
from understudy.guests.program import Program, prepare_program
from understudy.guests.scripts import Script, load_scripts, run_script
from understudy.guests.transport import Transport, go_on
from understudy.model.guest import GuestPolicy, GuestReport, GuestSettings, GuestStage, GuestSystem

COMMIT_S = 120.0
_HOST_ALONE = "only the watchdog on the host's side thaws file systems at the deadline"


@dataclass(frozen=True)
class Surroundings:
    """What guest processing of one VM works with.

    :ivar ways: open the transports, in the order in which they are tried.
    :ivar agent: freezes file systems by the guest agent; None if it is not to, or cannot: then the program does.
    :ivar watchdog: thaws by the guest agent; needed with ``agent``.
    :ivar record: as for :class:`Quiesced`, while ``agent`` freezes.
    :ivar system: the kind of guest, as far as its agent says.
    :ivar otherwise: what becomes of the point if nothing here freezes the guest.
    :ivar key: names the session in the guest; ``prefix`` is what all of the job's sessions for this VM share.
    """

    settings: GuestSettings
    ways: tuple[Callable[[], Transport], ...]
    agent: FileSystems | None
    watchdog: ThawWatch | None
    record: Callable[[bool], None]
    report: Callable[[GuestReport], None]
    warn: Callable[[str], None]
    key: str
    prefix: str
    system: GuestSystem = GuestSystem.POSIX
    otherwise: str = "the restore point is crash-consistent"
    program: Callable[[GuestSystem], bytes] = component_for


class GuestProcessing:
    """One guest around one snapshot. Enter :meth:`quiesced` once; :meth:`committed` after publish; always close."""

    def __init__(self, ctx: Context, around: Surroundings) -> None:
        """:raises Refused: if a script is missing on this host."""
        self._ctx = ctx
        self._around = around
        self._settings = around.settings
        self._pre = load_scripts(around.settings.pre_freeze)
        self._post = load_scripts(around.settings.post_thaw)
        self._transport: Transport | None = None
        self._program: Program | None = None
        self._begun: FrozenApplications | None = None
        self._report = GuestReport()
        self._stages: list[GuestStage] = []

    @property
    def _required(self) -> bool:
        return self._settings.policy is GuestPolicy.REQUIRE

    @contextmanager
    def quiesced(self) -> Iterator[Quiescing]:
        """The guest frozen inside the context, as far as its settings want it and it can.

        :raises GuestError: with ``require``, if it could not be quiesced; it is thawed then.
        """
        complaints: list[str] = []
        quiescing = Quiescing()
        try:
            with ExitStack() as undo:
                scripts_worked = self._before(undo, complaints)
                applications = undo.enter_context(self._applications(complaints))
                quiescing = undo.enter_context(self._frozen(applications))
                yield quiescing
            self._judge(quiescing, scripts_worked)
        finally:
            quiescing.warnings.extend(complaints)
            self._tell()
            if not quiescing.application_consistent:
                self._leave()

    def committed(self) -> None:
        """The point is published: applications do what they do after a backup."""
        if self._program is not None:
            with self._forgiving("after the point was published"), self._stage("commit"):
                self._program.commit(COMMIT_S)
        self._leave()

    def close(self) -> None:
        """Leave the guest; what fails is a warning."""
        self._leave()

    # --- before the freeze --------------------------------------------------------------------------------------------

    def _before(self, undo: ExitStack, complaints: list[str]) -> bool:
        """Reach the guest and run the pre-freeze scripts; whether those worked."""
        self._reach()
        if self._program is None:
            return not self._pre
        undo.callback(self._after, complaints)
        return self._scripts("pre-freeze", self._pre, complaints)

    def _reach(self) -> None:
        """Find a way into the guest, and put the program there."""
        reasons, broken = [], False
        for way in self._around.ways:
            try:
                with self._stage("connect"):
                    self._transport = way()
                broken = True  # unless all goes well from here on
                with self._stage("prepare"):
                    self._prepare(self._transport)
            except (GuestError, UsageError) as exc:
                self._leave()
                reasons.append(str(exc))
            else:
                return
        self._unreached("; ".join(reasons) or "there is no way to run a program in the guest", broken)

    def _unreached(self, why: str, broken: bool) -> None:
        """No program works in the guest.

        :param broken: it should have; otherwise the guest just does not allow it.
        """
        problem = GuestError("guest processing", why)
        if self._pre or self._post or self._around.agent is None:
            if self._required:
                raise problem
            left = _HOST_ALONE if self._around.agent is not None else self._around.otherwise
            self._around.warn(f"{problem}; no script ran, no application was looked for, {left}")
        elif broken:
            self._around.warn(f"{problem}; no application was looked for, {_HOST_ALONE}")
        else:
            self._note(f"{why}; no application was looked for, {_HOST_ALONE}")

    def _prepare(self, transport: Transport) -> None:
        around = self._around
        program = prepare_program(transport, around.key, around.prefix, around.program)
        self._program = program
        for left in program.cleanup(around.prefix):
            around.warn(f"the guest had left of an earlier session: {left}")
        self._report = replace(self._report, transport=transport.kind.value, component=program.component,
                               version=program.version)

    def _scripts(self, when: str, scripts: tuple[Script, ...], complaints: list[str]) -> bool:
        """Run scripts one after the other until one fails; whether all worked."""
        if not scripts:
            return True
        assert self._program is not None
        check = self._ctx.check if when == "pre-freeze" else go_on
        with self._stage(f"{when} scripts"):
            for script in scripts:
                try:
                    run_script(self._program, when, script, self._settings.script_timeout_s, check)
                except GuestError as exc:
                    if self._required and when == "pre-freeze":
                        raise
                    complaints.append(str(exc))
                    return False
        return True

    # --- the freeze ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _applications(self, complaints: list[str]) -> Iterator[FrozenApplications | None]:
        """Applications frozen inside the context, and the guest's watchdog armed; None without a program there."""
        program, own = self._program, self._around.agent is None
        if program is None or not self._watched():
            yield None
            return
        frozen = FrozenApplications(program, self._settings, own, bool(self._settings.applications), self._stages)
        held = self._begun = frozen
        try:
            if not (own or self._begin(frozen, complaints)):
                held = FrozenApplications(program, self._settings, False, False, self._stages)
                self._watch(held, complaints)
            yield held
        finally:
            held.thaw()
            complaints.extend(held.complaints)

    def _watched(self) -> bool:
        """Whether the watchdog on our side is ready; it says why not when it is armed, and nothing is frozen then."""
        try:
            if self._around.watchdog is not None:
                self._around.watchdog.ready()
        except GuestError:
            return False
        return True

    def _begin(self, frozen: FrozenApplications, complaints: list[str]) -> bool:
        """Freeze applications; False if that went wrong, and then nothing is frozen and nobody watches in the guest."""
        if not self._settings.applications:
            return False
        try:
            frozen.freeze(begin_s(self._settings))
            if frozen.failed and self._required:
                raise GuestError("guest processing", frozen.failed, "see the application, or use policy try")
        except GuestError as exc:
            if self._required:
                raise
            frozen.thaw()
            complaints.extend([f"applications were not quiesced: {exc}", *frozen.complaints])
            return False
        self._unwatched(frozen)
        return True

    def _watch(self, watch: FrozenApplications, complaints: list[str]) -> None:
        """Arm the watchdog in the guest, and that alone."""
        try:
            watch.freeze(begin_s(self._settings))
        except GuestError as exc:
            watch.thaw()
            complaints.append(f"the guest does not watch by itself: {exc}; {_HOST_ALONE}")
        else:
            self._unwatched(watch)

    def _unwatched(self, begun: FrozenApplications) -> None:
        if begun.unwatched:
            self._note(f"{begun.unwatched}; {_HOST_ALONE}")

    @contextmanager
    def _frozen(self, applications: FrozenApplications | None) -> Iterator[Quiescing]:
        agent, watchdog, policy = self._around.agent, self._around.watchdog, self._settings.policy
        assert policy is not None
        by_vss = self._around.system is GuestSystem.WINDOWS
        if agent is not None and watchdog is not None:
            # VSS freezes nothing before the agent asks it to.
            since = None if by_vss or applications is None else applications.held_since
            deadline_s = VSS_DEADLINE_S if by_vss else self._settings.freeze_deadline_s
            quiesced = Quiesced(agent, watchdog, policy, self._around.record, deadline_s, since)
        elif applications is not None:
            by_program = ByProgram(applications, begin_s(self._settings), self._required)
            quiesced = Quiesced(by_program, InGuest(), policy, lambda _: None, self._settings.freeze_deadline_s)
        else:
            yield Quiescing()
            return
        try:
            with quiesced as quiescing:
                yield quiescing
        finally:
            if quiesced.result.frozen_ms is not None:
                self._stages.append(GuestStage("file systems frozen", quiesced.result.frozen_ms))
            if by_vss and applications is not None and not quiesced.result.frozen:
                applications.lost("VSS did not keep the guest frozen")

    def _judge(self, quiescing: Quiescing, scripts_worked: bool) -> None:
        """Say what was achieved; with ``require``, an application that was not held is an error."""
        frozen = self._begun
        if frozen is None or not self._settings.applications or (frozen.begun and not frozen.results):
            return  # there was nothing but file systems
        quiescing.applications = frozen.results
        quiescing.application_consistent = (
            quiescing.frozen and scripts_worked and bool(frozen.results) and not frozen.failed
        )
        if frozen.failed:
            problem = GuestError("guest processing", frozen.failed)
            if self._required:
                raise problem
            quiescing.warnings.append(f"the restore point is not application-consistent: {problem}")

    # --- after it -----------------------------------------------------------------------------------------------------

    def _after(self, complaints: list[str]) -> None:
        """Post-thaw scripts, whatever happened; what fails is a warning, for it cannot change the point."""
        try:
            self._scripts("post-thaw", self._post, complaints)
        except UnderstudyError as exc:
            complaints.append(str(exc))

    def _leave(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            with self._forgiving("leave the guest"), self._stage("remove"):
                program.remove()
            self._tell()
        self._disconnect()

    def _disconnect(self) -> None:
        self._program = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        try:
            yield
        except UnderstudyError as exc:
            self._around.warn(f"guest processing: {what}: {exc}")

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        with timed(self._stages, name):
            yield

    def _note(self, text: str) -> None:
        self._report = replace(self._report, notes=(*self._report.notes, text))

    def _tell(self) -> None:
        results = self._begun.results if self._begun is not None else ()
        self._around.report(replace(self._report, stages=tuple(self._stages), applications=results))
