"""A Windows guest through its agent: the agent is scripted and strict, everything on this side is the real thing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.guests.windows_agent import DIRECTORY, WRITERS, WindowsAgent, nothing_left
from understudy.context import Context
from understudy.errors import GuestError
from understudy.guests import processing as module
from understudy.guests.checking import check_guest, install_agent, remove_agent
from understudy.guests.component import component_for, powershell_component
from understudy.guests.processing import GuestProcessing, Surroundings
from understudy.guests.program import prepare_program
from understudy.guests.qga import QgaTransport, guest_system
from understudy.model.guest import (
    ApplicationState,
    Component,
    GuestPolicy,
    GuestReport,
    GuestSettings,
    GuestSystem,
    GuestTransport,
)

KEY, PREFIX = "understudy-j1-00000000-7", "understudy-j1-00000000-"


@dataclass
class Watch:
    """A watchdog that only notes for how long it was armed."""

    armed_s: list[float] = field(default_factory=list)

    def ready(self) -> None:
        pass

    def arm(self, seconds: float) -> None:
        self.armed_s.append(seconds)

    def disarm(self) -> bool:
        return True


@dataclass
class Session:
    """Guest processing of one guest, and what was said of it."""

    agent: WindowsAgent
    policy: GuestPolicy = GuestPolicy.TRY
    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    watch: Watch = field(default_factory=Watch)
    reports: list[GuestReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def processing(self) -> GuestProcessing:
        settings = GuestSettings("win", self.policy, pre_freeze=self.pre, post_thaw=self.post, script_timeout_s=5,
                                 applications=True, freeze_deadline_s=10, applications_percent=40)
        return GuestProcessing(Context(), Surroundings(
            settings=settings, ways=(lambda: QgaTransport(self.agent),), agent=self.agent, watchdog=self.watch,
            record=lambda _: None, report=self.reports.append, warn=self.warnings.append, key=KEY, prefix=PREFIX,
            system=guest_system(self.agent),
        ))  # fmt: skip


def script(tmp_path: Path, name: str, text: str = "") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_a_session_from_the_program_s_way_in_to_its_way_out(tmp_path: Path) -> None:
    pre, post = script(tmp_path, "sync & run.cmd"), script(tmp_path, "b.ps1")
    with nothing_left(WindowsAgent()) as agent:
        session = Session(agent, GuestPolicy.REQUIRE, (pre,), (post,))
        processing = session.processing()
        with processing.quiesced() as quiescing:
            assert agent.frozen
            assert agent.files[rf"{DIRECTORY}\{KEY}.ps1".lower()] == powershell_component()
        processing.committed()
        processing.close()
    assert agent.told == ["cleanup", "run", "begin", "freeze", "thaw", "end", "run", "commit"]
    assert (quiescing.application_consistent, quiescing.warnings, session.warnings) == (True, [], [])
    assert [(item.kind, item.name, item.state) for item in quiescing.applications] == [
        ("vss", name, ApplicationState.QUIESCED) for name, _ in WRITERS]  # fmt: skip
    report = session.reports[-1]
    assert (report.component, report.version, report.transport) == (Component.RUNTIME, "1", "qga")
    scripts = [words[3] for words in agent.verbs if words[0] == "run"]
    assert scripts == [rf"{DIRECTORY}\{KEY}.script-1-sync___run.cmd", rf"{DIRECTORY}\{KEY}.script-1-b.ps1"]


def test_vss_may_take_its_time_to_freeze() -> None:
    session = Session(WindowsAgent())
    with session.processing().quiesced():
        pass
    assert session.watch.armed_s == [60.0]


def test_a_writer_that_failed_is_told_and_the_point_is_not_application_consistent() -> None:
    with nothing_left(WindowsAgent("writer fails")) as agent, Session(agent).processing().quiesced() as quiescing:
        pass
    assert (quiescing.frozen, quiescing.application_consistent) == (True, False)
    assert [item.state for item in quiescing.applications] == [ApplicationState.QUIESCED, ApplicationState.FAILED]
    assert any("SqlServerWriter: [8] Failed, Non-retryable error" in warning for warning in quiescing.warnings)


@pytest.mark.parametrize("mode", ["freeze fails", "hold expires"])
def test_without_a_freeze_to_the_end_no_writer_counts_as_quiesced(mode: str) -> None:
    with nothing_left(WindowsAgent(mode)) as agent, Session(agent).processing().quiesced() as quiescing:
        pass
    assert (quiescing.frozen, quiescing.application_consistent) == (False, False)
    assert {item.state for item in quiescing.applications} == {ApplicationState.FAILED}
    with nothing_left(WindowsAgent(mode)) as agent:
        session = Session(agent, GuestPolicy.REQUIRE)
        with pytest.raises(GuestError), session.processing().quiesced():
            pass
        assert "end" in agent.told
        assert {item.state for item in session.reports[-1].applications} == {ApplicationState.FAILED}


@pytest.mark.parametrize("verb", ["begin", "end", "commit"])
def test_a_program_that_crashes_is_told_and_removed(verb: str) -> None:
    with nothing_left(WindowsAgent(f"crashes in {verb}")) as agent:
        session = Session(agent)
        processing = session.processing()
        with processing.quiesced() as quiescing:
            pass
        processing.committed()
    assert quiescing.frozen
    assert quiescing.application_consistent is (verb == "commit")
    assert any("status -1073741819" in warning for warning in session.warnings + quiescing.warnings)


def test_a_program_that_hangs_is_killed_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "begin_s", lambda _: 0.2)
    monkeypatch.setattr("understudy.guests.shells.Windows.start_s", 0.2)
    started = time.monotonic()
    with nothing_left(WindowsAgent("hangs in begin")) as agent, Session(agent).processing().quiesced() as quiescing:
        pass
    assert time.monotonic() - started < 3
    # The second time without applications.
    assert agent.told == ["cleanup", *["begin", "killed", "end"] * 2, "freeze", "thaw"]
    assert (quiescing.frozen, quiescing.application_consistent) == (True, False)


def test_a_guest_whose_policy_forbids_the_program_says_so_and_keeps_nothing() -> None:
    with nothing_left(WindowsAgent("policy forbids")) as agent, pytest.raises(GuestError, match="not digitally signed"):
        prepare_program(QgaTransport(agent), KEY, PREFIX, component_for)


def test_a_directory_that_somebody_else_made_is_not_used() -> None:
    agent = WindowsAgent("directory of another")
    with nothing_left(agent), pytest.raises(GuestError, match="belongs to S-1-5-21"):
        prepare_program(QgaTransport(agent), KEY, PREFIX, component_for)


def test_a_full_disk_leaves_no_file_and_no_handle() -> None:
    with nothing_left(WindowsAgent("disk is full")) as agent, pytest.raises(GuestError, match="not enough space"):
        prepare_program(QgaTransport(agent), KEY, PREFIX, component_for)


def test_what_a_crashed_session_left_is_removed_and_told() -> None:
    agent = WindowsAgent("left")
    agent.directories.add(DIRECTORY.lower())
    for session in ("j1-00000000-3", "j2-00000000-3"):
        agent.files[rf"{DIRECTORY}\understudy-{session}.ps1".lower()] = b"old"
    session_now = Session(agent)
    processing = session_now.processing()
    with processing.quiesced():
        pass
    processing.close()
    assert any("understudy-j1-00000000-3" in warning for warning in session_now.warnings)
    assert [Path(path.replace("\\", "/")).name for path in agent.files] == ["understudy-j2-00000000-3.ps1"]


@pytest.mark.parametrize("name", ["a.cmd", "a.sh"])
def test_a_script_that_failed_or_is_none_of_windows_is_an_error(tmp_path: Path, name: str) -> None:
    with nothing_left(WindowsAgent()) as agent:
        session = Session(agent, GuestPolicy.REQUIRE, (script(tmp_path, name, "3"),))
        why = "ended with status 3" if name == "a.cmd" else r"ends with \.ps1, \.cmd or \.bat"
        with pytest.raises(GuestError, match=why), session.processing().quiesced():
            pass
    assert "freeze" not in agent.told


def test_check_guest_lists_the_writers_and_leaves_nothing() -> None:
    with nothing_left(WindowsAgent()) as agent:
        found = check_guest({GuestTransport.QGA: lambda: QgaTransport(agent)}, agent, KEY, PREFIX)
    assert (found.component, found.can_freeze, found.problems) == (Component.RUNTIME, True, {})
    assert found.applications == tuple(("vss", name, shown) for name, shown in WRITERS)


def test_an_agent_that_does_not_answer_has_no_kind_of_guest() -> None:
    def silent(command: str, arguments: object, timeout_s: float) -> object:
        raise GuestError(f"guest agent: {command}", "no answer")

    assert guest_system(silent) is GuestSystem.POSIX


def test_no_program_is_installed_for_good() -> None:
    with nothing_left(WindowsAgent()) as agent:
        transport = QgaTransport(agent)
        assert transport.system is GuestSystem.WINDOWS
        for change in (install_agent, remove_agent):
            with pytest.raises(GuestError, match="none for Windows guests"):
                change(transport)


def test_a_file_that_is_written_in_parts_arrives_whole() -> None:
    agent = WindowsAgent(largest_write=1000)
    agent.directories.add(DIRECTORY.lower())
    content = bytes(range(256)) * 20
    QgaTransport(agent).put(rf"{DIRECTORY}\x", content, 0o700, 10)
    assert agent.files == {rf"{DIRECTORY}\x".lower(): content}
    assert agent.handles == {}


def test_a_file_of_which_nothing_is_written_is_an_error() -> None:
    agent = WindowsAgent(largest_write=0)
    agent.directories.add(DIRECTORY.lower())
    with pytest.raises(GuestError, match="0 of 5 bytes"):
        QgaTransport(agent).put(rf"{DIRECTORY}\x", b"12345", 0o700, 10)
    assert agent.handles == {}
