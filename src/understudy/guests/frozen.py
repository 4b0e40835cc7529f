"""One guest between ``begin`` and ``end``: which applications were frozen, whether they were held until the thaw.

The watchdog in the guest is there as long, whether or not there are applications.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from understudy.errors import GuestError, UnderstudyError
from understudy.guests.program import Ended, Program
from understudy.model.guest import ApplicationResult, ApplicationState, GuestSettings, GuestStage

#: The time that the program itself takes to begin, besides that of the applications.
_PROGRAM_S = 1.0
#: How long we listen to ``end``; the guest itself thaws at the deadline, whatever becomes of us.
END_S = 12.0


def begin_s(settings: GuestSettings) -> float:
    """How long we listen to the program while it freezes applications."""
    return settings.freeze_deadline_s * settings.applications_percent / 100 + _PROGRAM_S


class FrozenApplications:
    """Freezes and thaws by the program in the guest; thawing is done once, however often it is asked for."""

    def __init__(
        self, program: Program, settings: GuestSettings, file_systems: bool, applications: bool,
        stages: list[GuestStage],
    ) -> None:
        """:param settings: of them, how long anything may be frozen.
        :param file_systems: the program freezes these as well.
        """
        self._program = program
        self._settings = settings
        self._file_systems = file_systems
        self._wanted = applications
        self._stages = stages
        self._thawed = False
        self._problem = ""
        #: By the monotonic clock; None before.
        self.began: float | None = None
        #: Why the guest cannot thaw file systems by itself; empty if it can.
        self.unwatched = ""
        #: The program said that it froze what it found, and that the guest's watchdog is armed.
        self.begun = False
        self.results: tuple[ApplicationResult, ...] = ()
        self.complaints: list[str] = []
        #: File systems that were frozen until the thaw; 0 if they were not held so long.
        self.held_file_systems = 0

    @property
    def failed(self) -> str:
        """Why not everything was quiesced until the thaw, in words; empty if it was."""
        bad = [f"{item.kind} {item.name}: {item.detail}" for item in self.results
               if item.state is ApplicationState.FAILED]
        return "; ".join([*([self._problem] if self._problem else []), *bad])

    def freeze(self, timeout_s: float) -> int:
        """Freeze; how many file systems the program froze.

        :raises GuestError: if the program did not say that it froze; it must be told to thaw all the same.
        """
        self.began = time.monotonic()
        try:
            with timed(self._stages, "freeze"):
                begun = self._program.begin(self._settings, timeout_s, self._file_systems, self._wanted)
        except UnderstudyError as exc:
            self._problem = str(exc)
            raise
        self.begun = True
        self.results = begun.applications
        self.unwatched = begun.unwatched
        return begun.file_systems

    @property
    def held_since(self) -> float | None:
        """When it was begun, if it was not thawed since."""
        return None if self._thawed else self.began

    def thaw(self) -> None:
        """Thaw; what goes wrong is in :attr:`failed` and :attr:`complaints`. Nothing if nothing was begun."""
        if self.began is None or self._thawed:
            return
        self._thawed = True
        try:
            with timed(self._stages, "thaw"):
                self._settle(self._program.end(END_S))
        except UnderstudyError as exc:
            self.lost(f"whether it was held is not known: {exc}")
            self.complaints.append(f"the guest was not told to thaw: {exc}; it does so by itself within "
                                   f"{self._settings.freeze_deadline_s} s of the freeze")
        if self.results or self._file_systems:
            self._stages.append(GuestStage("frozen", round((time.monotonic() - self.began) * 1000, 1)))

    def _settle(self, ended: Ended) -> None:
        self.held_file_systems = ended.file_systems
        last = {(item.kind, item.name): item for item in ended.applications}
        self.results = tuple(_together(item, last.get((item.kind, item.name))) for item in self.results)
        if ended.expired_s is not None:
            self.held_file_systems = 0
            why = f"the guest thawed by itself after {ended.expired_s:g} s"
            if not self.results:  # nobody else tells it then
                self.complaints.append(why)
            self.lost(why)

    def lost(self, why: str) -> None:
        """What was quiesced counts as failed."""
        self._problem = self._problem or why
        self.results = tuple(
            replace(item, state=ApplicationState.FAILED, detail=why)
            if item.state is ApplicationState.QUIESCED else item for item in self.results
        )


def _together(begun: ApplicationResult, ended: ApplicationResult | None) -> ApplicationResult:
    """An application as it is recorded: one that failed at either end has failed."""
    if begun.state is ApplicationState.FAILED:
        return begun
    if ended is None:
        return replace(begun, state=ApplicationState.FAILED, detail="the guest did not say that it was thawed")
    if ended.state is ApplicationState.FAILED:
        return ended
    return replace(begun, detail=ended.detail or begun.detail, label=ended.label)


class ByProgram:
    """Implements :class:`understudy.guests.freezing.FileSystems` by the program in the guest."""

    def __init__(self, frozen: FrozenApplications, least_s: float, strict: bool) -> None:
        """:param least_s: what applications need to be frozen.
        :param strict: an application that could not be quiesced is an error.
        """
        self._frozen = frozen
        self._least_s = least_s
        self._strict = strict

    def freeze(self, timeout_s: float) -> int:
        """Freeze applications and file systems; how many of these."""
        count = self._frozen.freeze(max(timeout_s, self._least_s))
        if self._strict and self._frozen.failed:
            raise GuestError("freeze applications", self._frozen.failed)
        return count

    def thaw(self, timeout_s: float) -> int:
        """Thaw everything; how many file systems had been frozen until now."""
        del timeout_s  # the guest keeps the deadline; this only hears what it says
        self._frozen.thaw()
        return self._frozen.held_file_systems


class InGuest:
    """The watchdog in the guest, which the program starts before it freezes anything, and which needs nobody."""

    def ready(self) -> None:
        """It is started with the freeze."""

    def arm(self, seconds: float) -> None:
        """It is armed with the freeze."""

    def disarm(self) -> bool:
        """Whether it had fired is in the answer to the thaw."""
        return True


@contextmanager
def timed(stages: list[GuestStage], name: str) -> Iterator[None]:
    """Note how long the block took, however it ends."""
    started = time.monotonic()
    try:
        yield
    finally:
        stages.append(GuestStage(name, round((time.monotonic() - started) * 1000, 1)))
