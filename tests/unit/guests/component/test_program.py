"""The program itself: its answers, hooks, scripts with a time limit, what crashed sessions leave, and its text."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.unit.guests.component.private_guest import PrivateGuest
from understudy.guests.component import powershell_component, shell_component

HOOK = b"#!/bin/sh\necho ${0##*/} $1 >>/tmp/calls\n"


def _hook(guest: PrivateGuest, name: str, text: bytes = HOOK, mode: int = 0o755) -> None:
    guest.write(f"/etc/understudy/hooks.d/{name}", text, mode)


def test_version_and_discovery_of_a_guest_without_applications(guest: PrivateGuest) -> None:
    assert guest.ask("version").lines == [["understudy-guest", "1"]]
    assert guest.ask("discover").lines == [["discovered"]]


def test_a_guest_without_applications_is_ready_at_once_and_ends(guest: PrivateGuest) -> None:
    assert guest.ask("begin", "s1", "20").lines == [["ready"]]
    assert guest.ask("end", "s1").lines == [["ended"]]
    assert guest.ask("end", "s1").lines == [["ended"]]
    assert guest.ask("commit", "s1").lines == [["committed"]]
    assert guest.sh("ls -A /run/understudy-guest") == ""


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("freeze",),
        ("begin", "s1"),
        ("begin", "../s", "5"),
        ("begin", "s1", "0"),
        ("begin", "s1", "5", "--x"),
        ("begin", "s1", "5", "--share=100"),
        ("begin", "s1", "5", "--share=5;"),
        ("end",),
    ],
)
def test_wrong_usage_is_refused_and_changes_nothing(guest: PrivateGuest, words: tuple[str, ...]) -> None:
    answer = guest.ask(*words)
    assert answer.status == 2
    assert answer.lines == []
    assert "usage" in answer.errors
    assert guest.sh("ls -A /run/understudy-guest 2>/dev/null || :") == ""


def test_hooks_are_called_in_name_order_and_thawed_in_reverse(guest: PrivateGuest) -> None:
    _hook(guest, "20-b")
    _hook(guest, "10-a")
    begun = guest.ask("begin", "s1", "20")
    assert [line[:3] for line in begun.of("app")] == [["hooks", "10-a", "quiesced"], ["hooks", "20-b", "quiesced"]]
    guest.ask("end", "s1")
    guest.ask("commit", "s1")
    words = ["10-a freeze", "20-b freeze", "20-b thaw", "10-a thaw", "10-a commit", "20-b commit"]
    assert guest.sh("cat /tmp/calls").splitlines() == words


def test_a_hook_that_fails_is_thawed_at_once_and_the_others_go_on(guest: PrivateGuest) -> None:
    _hook(guest, "10-a", HOOK + b"[ $1 != freeze ] || { echo because >&2; exit 3; }\n")
    _hook(guest, "20-b")
    begun = guest.ask("begin", "s1", "20")
    assert [line[:3] for line in begun.of("app")] == [["hooks", "10-a", "failed"], ["hooks", "20-b", "quiesced"]]
    assert begun.of("app")[0][3] == "exit status 3 because"
    assert guest.sh("cat /tmp/calls").splitlines() == ["10-a freeze", "10-a thaw", "20-b freeze"]
    assert [line[:3] for line in guest.ask("end", "s1").of("app")] == [["hooks", "20-b", "thawed"]]


def test_a_hook_that_hangs_is_killed_in_time_with_what_it_started(guest: PrivateGuest) -> None:
    _hook(guest, "10-a", b"#!/bin/sh\n[ $1 = thaw ] || sleep 77\n")
    since = time.monotonic()
    begun = guest.ask("begin", "s1", "6")
    assert time.monotonic() - since < 6
    assert begun.of("app")[0][2] == "failed"
    assert "killed" in begun.of("app")[0][3]
    assert begun.lines[-1] == ["ready"]
    assert guest.sh("pgrep -f '^sleep 77' || :") == ""


def test_all_applications_together_leave_most_of_the_time_to_the_rest(guest: PrivateGuest) -> None:
    for name in ("10-a", "20-b", "30-c"):
        _hook(guest, name, b"#!/bin/sh\n[ $1 = thaw ] || sleep 77\n")
    since = time.monotonic()
    begun = guest.ask("begin", "s1", "10")
    assert time.monotonic() - since < 6
    assert [line[2] for line in begun.of("app")] == ["failed"] * 3
    assert begun.lines[-1] == ["ready"]
    assert guest.sh("cat /run/understudy-guest/s1/session/ended 2>&1 || :").endswith("No such file or directory")
    guest.ask("end", "s1")


def test_the_only_application_has_all_of_the_applications_time(guest: PrivateGuest) -> None:
    _hook(guest, "10-a", b"#!/bin/sh\n[ $1 = thaw ] || sleep 2.5\n")
    assert [line[2] for line in guest.ask("begin", "s1", "10").of("app")] == ["quiesced"]
    guest.ask("end", "s1")


def test_applications_have_the_share_that_is_told(guest: PrivateGuest) -> None:
    _hook(guest, "10-a", b"#!/bin/sh\n[ $1 = thaw ] || sleep 2.5\n")
    for share, result in (("60", "quiesced"), ("10", "failed")):
        since = time.monotonic()
        assert [line[2] for line in guest.ask("begin", "s1", "20", f"--share={share}").of("app")] == [result]
        assert time.monotonic() - since < 15
        guest.ask("end", "s1")


def test_a_guest_without_fsfreeze_says_that_it_cannot_thaw_what_its_agent_froze(guest: PrivateGuest) -> None:
    if guest.shell[0] == "busybox":
        pytest.skip("busybox has an fsfreeze of its own")
    guest.sh("mv /usr/sbin/fsfreeze /usr/sbin/fsfreeze.away")
    try:
        assert guest.ask("begin", "s1", "20").lines == [["unwatched", "fsfreeze is not installed"], ["ready"]]
    finally:
        guest.sh("mv /usr/sbin/fsfreeze.away /usr/sbin/fsfreeze")
    guest.ask("end", "s1")


def test_a_hook_that_others_may_write_to_is_not_called(guest: PrivateGuest) -> None:
    _hook(guest, "10-a", mode=0o777)
    _hook(guest, "20-b", mode=0o775)
    _hook(guest, "30-c")
    guest.sh("chown 1234 /etc/understudy/hooks.d/30-c")
    assert [line[2] for line in guest.ask("begin", "s1", "20").of("app")] == ["failed"] * 3
    assert guest.sh("cat /tmp/calls 2>/dev/null || :") == ""


def test_a_failed_commit_is_told_and_leaves_no_state(guest: PrivateGuest) -> None:
    _hook(guest, "10-a", b"#!/bin/sh\n[ $1 != commit ]\n")
    guest.ask("begin", "s1", "20")
    guest.ask("end", "s1")
    answer = guest.ask("commit", "s1")
    assert answer.status == 1
    assert "10-a" in answer.errors
    assert guest.sh("ls -A /run/understudy-guest") == ""


def test_a_second_session_is_refused_until_the_first_has_ended(guest: PrivateGuest) -> None:
    guest.ask("begin", "s1", "20")
    refused = guest.ask("begin", "s2", "20")
    assert refused.status == 1
    assert "s1" in refused.errors
    assert guest.ask("begin", "s1", "20").status == 1
    guest.ask("end", "s1")
    assert guest.ask("begin", "s2", "20").lines == [["ready"]]
    guest.ask("end", "s2")


def test_a_session_that_has_ended_can_begin_anew(guest: PrivateGuest) -> None:
    _hook(guest, "10-a")
    guest.ask("begin", "s1", "20")
    guest.ask("end", "s1")
    assert guest.ask("begin", "s1", "20", "--no-applications").lines == [["ready"]]
    assert guest.sh("pgrep -f '[w]atch s1'") != ""
    assert guest.ask("end", "s1").lines == [["ended"]]


def test_applications_can_be_left_alone(guest: PrivateGuest) -> None:
    _hook(guest, "10-a")
    assert guest.ask("begin", "s1", "20", "--no-applications").lines == [["ready"]]
    assert guest.ask("end", "s1").lines == [["ended"]]


def test_the_watchdog_thaws_when_nobody_comes_back(guest: PrivateGuest) -> None:
    _hook(guest, "10-a")
    guest.ask("begin", "s1", "2")
    guest.eventually("grep -q thaw /tmp/calls", 8)
    ended = guest.ask("end", "s1")
    assert ended.of("expired") in ([["2"]], [["3"]])
    assert guest.sh("grep -c thaw /tmp/calls") == "1"


def test_an_unknown_session_is_told_as_expired(guest: PrivateGuest) -> None:
    assert guest.ask("end", "gone").lines == [["expired", "0"], ["ended"]]


def test_cleanup_thaws_a_session_whose_watchdog_was_killed(guest: PrivateGuest) -> None:
    _hook(guest, "10-a")
    guest.ask("begin", "s1", "60")
    guest.sh("kill -9 $(pgrep -f '[w]atch s1')")
    assert guest.ask("cleanup").lines == [["removed", "s1"], ["clean"]]
    assert guest.sh("cat /tmp/calls").splitlines() == ["10-a freeze", "10-a thaw"]
    assert guest.sh("ls -A /run/understudy-guest") == ""


def test_cleanup_leaves_what_does_not_begin_with_its_prefix_alone(guest: PrivateGuest) -> None:
    _hook(guest, "10-a")
    guest.ask("begin", "job1-vm-7", "60")
    guest.write("/run/script", b"sleep 98\n", 0o600)
    with guest.start("run", "job2-vm-3", "90", "/run/script") as caller:
        guest.eventually("pgrep -f '^sleep 98' >/dev/null")
        assert guest.ask("cleanup", "job2-vm-").lines == [["removed", "job2-vm-3"], ["clean"]]
        caller.communicate(timeout=10)
    assert guest.sh("pgrep -f '^sleep 98' || :") == ""
    assert guest.sh("cat /tmp/calls").splitlines() == ["10-a freeze"]
    assert guest.sh("pgrep -f '[w]atch job1-vm-7'") != ""
    assert guest.ask("end", "job1-vm-7").of("app")[0][2] == "thawed"
    assert guest.ask("cleanup", "../x").status == 2


def test_cleanup_spares_a_process_that_only_has_the_number_of_a_dead_watchdog(guest: PrivateGuest) -> None:
    guest.ask("begin", "s1", "60")
    guest.sh(
        "kill -9 $(pgrep -f '[w]atch s1'); sleep 66 >/dev/null 2>&1 &"
        "echo $! 1 >/run/understudy-guest/s1/session/watchdog"
    )
    guest.ask("cleanup")
    assert guest.sh("pgrep -f '^sleep 66'") != ""
    guest.sh("kill $(pgrep -f '^sleep 66')")


def test_a_full_run_is_passed_over(guest: PrivateGuest) -> None:
    guest.sh("dd if=/dev/zero of=/run/full bs=64k 2>/dev/null || :")
    try:
        assert guest.ask("begin", "s1", "20").lines == [["ready"]]
        assert guest.sh("ls /dev/shm/understudy-guest") == "s1"
        assert guest.ask("end", "s1").lines == [["ended"]]
    finally:
        guest.sh("rm -f /run/full")


def test_no_room_at_all_is_refused_before_anything_is_frozen(guest: PrivateGuest) -> None:
    _hook(guest, "10-a")
    guest.sh(
        "for at in /run /dev/shm /tmp; do"
        " dd if=/dev/zero of=$at/full bs=1M 2>/dev/null || dd if=/dev/zero bs=1k of=$at/f; done || :"
    )
    try:
        answer = guest.ask("begin", "s1", "20")
        assert answer.status == 1
        assert "256 KiB" in answer.errors
    finally:
        guest.sh("rm -f /run/full /dev/shm/full /tmp/full /run/f /dev/shm/f /tmp/f")
    assert guest.sh("cat /tmp/calls 2>/dev/null || :") == ""


def test_a_script_s_status_and_the_end_of_its_output_are_told(guest: PrivateGuest) -> None:
    guest.write("/run/script", b"echo out; echo err >&2; exit 3\n", 0o600)
    answer = guest.ask("run", "r1", "10", "/run/script")
    assert answer.of("exit") == [["3"]]
    assert base64.b64decode(answer.of("output")[0][0]) == b"out\nerr\n"


def test_a_script_without_end_of_output_is_bounded(guest: PrivateGuest) -> None:
    guest.write("/run/script", b"#!/bin/sh\nhead -c 9000000 /dev/zero | tr '\\0' x\n", 0o600)
    answer = guest.ask("run", "r1", "20", "/run/script")
    assert answer.of("exit") == [["0"]]
    assert base64.b64decode(answer.of("output")[0][0]) == b"x" * 4096


def test_a_script_at_its_time_limit_is_killed_with_all_it_started(guest: PrivateGuest) -> None:
    guest.write("/run/script", b"echo started; sleep 88 & sleep 89; wait\n", 0o600)
    answer = guest.ask("run", "r1", "1", "/run/script")
    assert answer.of("exit") == [["124"]]
    assert base64.b64decode(answer.of("output")[0][0]) == b"started\n"
    assert guest.sh("pgrep -f '^sleep 8[89]' || :") == ""
    assert guest.sh("ls -A /run/understudy-guest") == ""


def test_cleanup_ends_a_script_whose_caller_died(guest: PrivateGuest) -> None:
    guest.write("/run/script", b"sleep 99\n", 0o600)
    with guest.start("run", "r1", "90", "/run/script") as caller:
        guest.eventually("pgrep -f '^sleep 99' >/dev/null")
        guest.sh("kill -9 $(pgrep -f '[g]uest.sh run r1')")
        caller.communicate(timeout=10)
    assert ["removed", "r1"] in guest.ask("cleanup").lines
    assert guest.sh("pgrep -f '^sleep 99' || :") == ""


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    program = tmp_path / "program.sh"
    program.write_bytes(shell_component())
    # Functions are called by a name that is composed; `a && b || c` is written only where c is to run if b fails.
    ran = subprocess.run(
        ["shellcheck", "-s", "sh", "-e", "SC2317,SC2015", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout == ""


def test_both_programs_know_the_same_verbs() -> None:
    for verb in (b"version", b"discover", b"begin", b"end", b"commit", b"run", b"cleanup"):
        assert verb in shell_component()
        assert b"'" + verb + b"'" in powershell_component()
