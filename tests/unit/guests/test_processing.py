"""Guest processing: the order, what is achieved, and that the guest is thawed and left whatever happens in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.unit.guests.local_guest import PROGRAM, LocalGuest, local_program
from understudy.context import Context
from understudy.errors import Cancelled, GuestError, Refused, UnderstudyError
from understudy.guests import processing as module
from understudy.guests.frozen import begin_s
from understudy.guests.processing import GuestProcessing, Surroundings
from understudy.guests.program import AGENT_PATH
from understudy.guests.transport import Transport
from understudy.model.guest import (
    ApplicationState,
    Component,
    GuestPolicy,
    GuestReport,
    GuestSettings,
)

KEY = "understudy-j1-00000000-7"


@dataclass
class World:
    """A guest, the agent that freezes its file systems, and what was said of it."""

    guest: LocalGuest
    settings: GuestSettings
    by_agent: bool = True
    freeze: int | UnderstudyError = 2
    in_time: bool = True
    watchdog: UnderstudyError | None = None
    reach: UnderstudyError | None = None
    reports: list[GuestReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ctx: Context = field(default_factory=Context)
    armed: list[float] = field(default_factory=list)

    def say(self, word: str) -> None:
        with (self.guest.root / "log").open("a") as log:
            log.write(word + "\n")

    def open(self) -> Transport:
        if self.reach is not None:
            raise self.reach
        return self.guest

    def processing(self) -> GuestProcessing:
        return GuestProcessing(self.ctx, Surroundings(
            settings=self.settings, ways=(self.open,), agent=Agent(self) if self.by_agent else None,
            watchdog=Watch(self) if self.by_agent else None, record=lambda _: None, report=self.reports.append,
            warn=self.warnings.append, key=KEY, prefix="understudy-j1-00000000-", program=local_program,
        ))  # fmt: skip


class Agent:
    def __init__(self, world: World) -> None:
        self._world = world

    def freeze(self, timeout_s: float) -> int:
        self._world.say("freeze")
        if isinstance(self._world.freeze, UnderstudyError):
            raise self._world.freeze
        return self._world.freeze

    def thaw(self, timeout_s: float) -> int:
        self._world.say("thaw")
        return 2


class Watch:
    def __init__(self, world: World) -> None:
        self._world = world

    def ready(self) -> None:
        self._world.say("ready")
        if self._world.watchdog is not None:
            raise self._world.watchdog

    def arm(self, seconds: float) -> None:
        self.ready()
        self._world.armed.append(seconds)

    def disarm(self) -> bool:
        return self._world.in_time


@pytest.fixture
def world(tmp_path: Path) -> World:
    settings = GuestSettings("web", GuestPolicy.TRY, script_timeout_s=5, applications=True, freeze_deadline_s=10,
                             applications_percent=40)
    return World(LocalGuest(tmp_path / "guest"), settings)


def require(world: World) -> None:
    world.settings = replace(world.settings, policy=GuestPolicy.REQUIRE)


def script(world: World, tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


BOTH = pytest.mark.parametrize("by_agent", [True, False], ids=["agent", "program"])


def test_the_order_with_scripts_and_applications(world: World, tmp_path: Path) -> None:
    world.settings = replace(
        world.settings,
        pre_freeze=(script(world, tmp_path, "a.sh", 'echo pre-a >>"$ROOT/log"'),
                    script(world, tmp_path, "b.sh", 'echo pre-b >>"$ROOT/log"')),
        post_thaw=(script(world, tmp_path, "c.sh", 'echo post >>"$ROOT/log"'),),
    )  # fmt: skip
    processing = world.processing()
    with processing.quiesced() as quiescing:
        world.say("snapshot")
    assert (quiescing.application_consistent, quiescing.warnings, world.warnings) == (True, [], [])
    processing.committed()
    processing.close()
    assert world.guest.log == [
        "cleanup", "run", "pre-a", "run", "pre-b", "ready", "begin", "ready", "freeze", "snapshot", "thaw", "end",
        "run", "post", "commit", "cleanup",
    ]  # fmt: skip
    (application,) = quiescing.applications
    assert (application.state, application.label) == (ApplicationState.QUIESCED, "START")
    report = world.reports[-1]
    assert (report.component, report.version, report.transport) == (Component.RUNTIME, "1", "qga")
    assert {"connect", "prepare", "freeze", "thaw", "frozen", "file systems frozen", "commit", "remove"} <= {
        stage.name for stage in report.stages
    }
    assert world.guest.files == []
    assert world.guest.closed


def test_without_an_agent_the_program_freezes_file_systems_as_well(world: World) -> None:
    world.by_agent = False
    processing = world.processing()
    with processing.quiesced() as quiescing:
        world.say("snapshot")
    assert quiescing.frozen
    assert quiescing.application_consistent
    assert world.guest.log == ["cleanup", "begin", "snapshot", "end"]


@BOTH
def test_a_guest_without_applications_is_file_system_consistent_and_left_at_once(world: World, by_agent: bool) -> None:
    require(world)
    world.by_agent = by_agent
    world.guest.mode("none")
    with world.processing().quiesced() as quiescing:
        pass
    assert (quiescing.frozen, quiescing.application_consistent, quiescing.warnings) == (True, False, [])
    assert world.warnings == []
    assert world.guest.files == []


@pytest.mark.parametrize("applications", [True, False])
def test_the_watchdog_in_the_guest_is_armed_before_the_agent_freezes(world: World, applications: bool) -> None:
    require(world)
    world.settings = replace(world.settings, applications=applications)
    world.guest.mode("none")
    with world.processing().quiesced() as quiescing:
        world.say("snapshot")
    assert quiescing.frozen
    assert world.guest.log == [
        "cleanup", "ready", "begin", "ready", "freeze", "snapshot", "thaw", "end", "cleanup",
    ]  # fmt: skip
    begin = next(line for line in (world.guest.root / "log").read_text().splitlines() if line.startswith("begin"))
    assert begin.split()[1:] == [KEY, "10", *([] if applications else ["--no-applications"])]
    assert "frozen" not in {stage.name for stage in world.reports[-1].stages}


@pytest.mark.parametrize("mode", ["garbage", "hangs"])
@pytest.mark.parametrize("policy", [GuestPolicy.TRY, GuestPolicy.REQUIRE])
def test_a_guest_that_cannot_watch_is_frozen_by_its_agent_and_that_is_told(
    world: World, mode: str, policy: GuestPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "begin_s", lambda _: 0.5)
    world.settings = replace(world.settings, applications=False, policy=policy)
    world.guest.mode(mode)
    with world.processing().quiesced() as quiescing:
        world.say("snapshot")
    assert quiescing.frozen
    (warning,) = quiescing.warnings
    assert "the guest does not watch by itself" in warning
    assert "only the watchdog on the host's side" in warning
    assert world.guest.log == [
        "cleanup", "ready", "begin", "end", "ready", "freeze", "snapshot", "thaw", "cleanup",
    ]  # fmt: skip


def test_applications_that_hold_begin_up_do_not_keep_the_guest_from_being_watched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "begin_s", lambda _: 0.5)
    world.guest.mode("blocks")
    with world.processing().quiesced() as quiescing:
        world.say("snapshot")
    assert (quiescing.frozen, quiescing.application_consistent) == (True, False)
    assert any("applications were not quiesced" in warning for warning in quiescing.warnings)
    assert not any("only the watchdog on the host's side" in warning for warning in quiescing.warnings)
    assert world.guest.log == [
        "cleanup", "ready", "begin", "end", "begin", "ready", "freeze", "snapshot", "thaw", "end", "cleanup",
    ]  # fmt: skip


@pytest.mark.parametrize(("deadline_s", "percent", "told"), [(10, 40, ["10"]), (60, 25, ["60", "--share=25"])])
@pytest.mark.parametrize("by_agent", [True, False])
def test_both_watchdogs_keep_the_deadline_of_the_settings(
    world: World, deadline_s: int, percent: int, told: list[str], by_agent: bool
) -> None:
    world.by_agent = by_agent
    world.settings = replace(world.settings, freeze_deadline_s=deadline_s, applications_percent=percent)
    with world.processing().quiesced() as quiescing:
        pass
    assert quiescing.application_consistent
    assert [deadline_s - 5 < armed <= deadline_s for armed in world.armed] == [True] * by_agent
    (begun,) = [line for line in (world.guest.root / "log").read_text().splitlines() if line.startswith("begin ")]
    assert [word for word in begun.split()[2:] if word != "--fs"] == told


def test_applications_have_their_share_of_the_deadline_and_the_program_a_moment_more(world: World) -> None:
    longer = replace(world.settings, freeze_deadline_s=60, applications_percent=50)
    assert (begin_s(world.settings), begin_s(longer)) == (5, 31)


def test_a_watchdog_in_the_guest_that_cannot_thaw_file_systems_is_told(world: World) -> None:
    world.guest.mode("unwatched")
    with world.processing().quiesced() as quiescing:
        pass
    assert (quiescing.frozen, quiescing.warnings, world.warnings) == (True, [], [])
    (note,) = world.reports[-1].notes
    assert note.startswith("fsfreeze is not installed; only the watchdog on the host's side")


def test_without_the_watchdog_on_our_side_nothing_at_all_is_frozen(world: World) -> None:
    world.watchdog = GuestError("thaw watchdog", "it could not reach the VM")
    with world.processing().quiesced() as quiescing:
        pass
    assert not quiescing.frozen
    assert any("it could not reach the VM" in warning for warning in quiescing.warnings)
    assert not {"begin", "freeze"} & set(world.guest.log)
    require(world)
    with pytest.raises(GuestError, match="it could not reach the VM"), world.processing().quiesced():
        pass
    assert not {"begin", "freeze"} & set(world.guest.log)


FAULTS = pytest.mark.parametrize("mode", ["refuses", "garbage", "cut", "hangs", "lost", "late"])


@FAULTS
def test_what_goes_wrong_with_applications_is_a_warning_and_file_systems_are_frozen(
    world: World, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "begin_s", lambda _: 0.5)
    world.guest.mode(mode)
    started = time.monotonic()
    with world.processing().quiesced() as quiescing:
        world.say("snapshot")
    assert time.monotonic() - started < 5
    assert (quiescing.frozen, quiescing.application_consistent) == (True, False)
    assert quiescing.warnings
    assert "end" in world.guest.log
    assert world.guest.files == []


@FAULTS
def test_with_require_it_is_an_error_after_the_thaw(
    world: World, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "begin_s", lambda _: 0.5)
    require(world)
    world.guest.mode(mode)
    with pytest.raises(GuestError), world.processing().quiesced():
        world.say("snapshot")
    assert "end" in world.guest.log
    assert ("freeze" in world.guest.log) is (mode in ("lost", "late"))
    assert world.guest.log.count("freeze") == world.guest.log.count("thaw")
    assert world.guest.files == []


@pytest.mark.parametrize("mode", ["refuses", "lost", "late"])
def test_over_the_program_alone_require_is_an_error_as_well(world: World, mode: str) -> None:
    require(world)
    world.by_agent = False
    world.guest.mode(mode)
    with pytest.raises(GuestError), world.processing().quiesced():
        pass
    assert "end" in world.guest.log
    assert world.guest.files == []


def test_a_guest_that_thawed_by_itself_is_not_counted_as_frozen(world: World) -> None:
    world.by_agent = False
    world.guest.mode("late")
    with world.processing().quiesced() as quiescing:
        pass
    assert (quiescing.frozen, quiescing.application_consistent) == (False, False)
    assert quiescing.applications[0].state is ApplicationState.FAILED
    assert any("by itself after 10 s" in warning for warning in quiescing.warnings)


def test_a_failed_snapshot_thaws_runs_the_post_thaw_scripts_and_leaves(world: World, tmp_path: Path) -> None:
    world.settings = replace(world.settings, post_thaw=(script(world, tmp_path, "c", 'echo post >>"$ROOT/log"'),))
    with pytest.raises(ZeroDivisionError), world.processing().quiesced():
        raise ZeroDivisionError
    assert world.guest.log[-5:] == ["thaw", "end", "run", "post", "cleanup"]
    assert world.guest.files == []


def test_a_pre_freeze_script_that_fails_is_a_warning_or_an_error_and_nothing_is_frozen_then(
    world: World, tmp_path: Path
) -> None:
    path = script(world, tmp_path, "bad.sh", "echo words >&2; exit 3")
    world.settings = replace(world.settings, pre_freeze=(path,))
    with world.processing().quiesced() as quiescing:
        pass
    assert (quiescing.frozen, quiescing.application_consistent) == (True, False)
    assert any("bad.sh: it ended with status 3" in warning for warning in quiescing.warnings)
    require(world)
    (world.guest.root / "log").unlink()
    with pytest.raises(GuestError, match="status 3"), world.processing().quiesced():
        pass
    assert "freeze" not in world.guest.log
    assert world.guest.files == []


def test_what_a_script_writes_is_logged(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "understudy")
    world.settings = replace(world.settings, pre_freeze=(script(world, tmp_path, "a", ":"),))
    with world.processing().quiesced():
        pass
    assert "script 1-a in the guest wrote: words" in caplog.text


def test_what_a_script_says_on_stderr_does_not_matter(world: World, tmp_path: Path) -> None:
    require(world)
    world.settings = replace(world.settings, pre_freeze=(script(world, tmp_path, "loud", "echo error >&2"),))
    with world.processing().quiesced() as quiescing:
        pass
    assert quiescing.application_consistent


def test_a_missing_script_is_refused_before_the_guest_is_touched(world: World) -> None:
    world.settings = replace(world.settings, post_thaw=("/nonexistent/script",))
    with pytest.raises(Refused, match=r"/nonexistent/script.*No such file"):
        world.processing()
    assert world.guest.log == []


def test_a_cancelled_task_leaves_the_guest_in_order(world: World, tmp_path: Path) -> None:
    world.settings = replace(world.settings, pre_freeze=(script(world, tmp_path, "a", ":"),))
    processing = world.processing()
    world.ctx.cancel.cancel()
    with pytest.raises(Cancelled), processing.quiesced():
        pass
    assert "freeze" not in world.guest.log
    assert world.guest.log[-1] == "cleanup"
    assert world.guest.files == []


def test_a_guest_that_runs_no_programs_is_frozen_by_its_agent_as_before(world: World) -> None:
    world.reach = GuestError("guest agent", "the guest does not allow guest-exec")
    for policy in (GuestPolicy.TRY, GuestPolicy.REQUIRE):
        world.settings = replace(world.settings, policy=policy)
        with world.processing().quiesced() as quiescing:
            pass
        assert (quiescing.frozen, quiescing.warnings, world.warnings) == (True, [], [])
        (note,) = world.reports[-1].notes
        assert "does not allow guest-exec" in note
        assert "only the watchdog on the host's side" in note


def test_a_program_that_does_not_work_in_the_guest_is_a_warning(world: World) -> None:
    (world.guest.root / "run").rmdir()
    (world.guest.root / "run").touch()
    (world.guest.root / "tmp").rmdir()
    with world.processing().quiesced() as quiescing:
        pass
    assert quiescing.frozen
    (warning,) = world.warnings
    assert "make a directory in the guest" in warning
    assert "only the watchdog on the host's side" in warning


def test_if_scripts_cannot_run_that_is_told_or_an_error(world: World, tmp_path: Path) -> None:
    world.reach = GuestError("guest agent", "the guest does not allow guest-exec")
    world.settings = replace(world.settings, pre_freeze=(script(world, tmp_path, "a", ":"),))
    with world.processing().quiesced() as quiescing:
        pass
    assert quiescing.frozen
    assert any("does not allow guest-exec" in warning for warning in world.warnings)
    require(world)
    with pytest.raises(GuestError, match="does not allow guest-exec"), world.processing().quiesced():
        pass


def test_an_installed_program_is_used_and_stays(world: World) -> None:
    installed = world.guest.root / AGENT_PATH.lstrip("/")
    installed.parent.mkdir(parents=True)
    installed.write_text(PROGRAM)
    processing = world.processing()
    with processing.quiesced() as quiescing:
        pass
    processing.committed()
    assert quiescing.application_consistent
    assert world.reports[-1].component is Component.AGENT
    assert installed.exists()


def test_an_installed_program_of_another_protocol_is_not_used(world: World) -> None:
    installed = world.guest.root / AGENT_PATH.lstrip("/")
    installed.parent.mkdir(parents=True)
    installed.write_text("printf 'understudy-guest\\t99\\n'")
    with world.processing().quiesced() as quiescing:
        pass
    assert quiescing.application_consistent
    assert world.reports[-1].component is Component.RUNTIME


def test_what_a_crashed_session_left_is_removed_and_told(world: World) -> None:
    directory = world.guest.root / "run/understudy-guest"
    directory.mkdir(mode=0o700)
    (directory / "understudy-j1-00000000-3.sh").touch()
    (directory / "understudy-j2-00000000-3.sh").touch()
    world.guest.mode("left")
    processing = world.processing()
    with processing.quiesced():
        assert f"{KEY}.sh" in world.guest.files
    processing.close()
    assert any("session 3" in warning for warning in world.warnings)
    assert world.guest.files == ["understudy-j2-00000000-3.sh"]


def test_a_directory_that_others_can_change_is_not_used(world: World) -> None:
    (world.guest.root / "elsewhere").mkdir()
    (world.guest.root / "run/understudy-guest").symlink_to(world.guest.root / "elsewhere")
    processing = world.processing()
    with processing.quiesced() as quiescing:
        assert list((world.guest.root / "elsewhere").iterdir()) == []
    processing.close()
    assert quiescing.application_consistent
    assert list((world.guest.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("end", [GuestProcessing.close, GuestProcessing.committed])
def test_the_guest_is_left_once_however_it_ends(world: World, end: Callable[[GuestProcessing], None]) -> None:
    processing = world.processing()
    with suppress(GuestError), processing.quiesced():
        pass
    end(processing)
    end(processing)
    assert world.guest.files == []
    assert world.guest.log.count("commit") == (end is GuestProcessing.committed)
