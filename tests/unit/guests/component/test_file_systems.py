"""File systems frozen by the program: really frozen, and thawed whoever dies."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.unit.guests.component.private_guest import PrivateGuest

# A name as the kernel has to quote it.
DISK = "/tmp/a disk"


@pytest.fixture
def disks(guest: PrivateGuest) -> Iterator[PrivateGuest]:
    """Two file systems on loop devices, the second one's image in the first one, and one read-only."""
    guest.sh(
        f"truncate -s 96M /tmp/image && mkfs.ext4 -q -F /tmp/image && mkdir -p '{DISK}' &&"
        f"mount -o loop /tmp/image '{DISK}' &&"
        f"truncate -s 32M '{DISK}/image' && mkfs.ext4 -q -F '{DISK}/image' && mkdir '{DISK}/inner' &&"
        f"mount -o loop '{DISK}/image' '{DISK}/inner' &&"
        "truncate -s 32M /tmp/image3 && mkfs.ext4 -q -F /tmp/image3 && mkdir -p /tmp/ro &&"
        "mount -o loop,ro /tmp/image3 /tmp/ro"
    )
    try:
        yield guest
    finally:
        guest.sh(f"fsfreeze -u '{DISK}' 2>/dev/null; fsfreeze -u '{DISK}/inner' 2>/dev/null; :")
        guest.sh(f"umount '{DISK}/inner'; umount '{DISK}'; umount /tmp/ro; rm /tmp/image /tmp/image3")


def _writer(guest: PrivateGuest, path: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(guest.entering("/bin/sh", "-c", f"echo x >'{path}'"))


def _is_blocked(writer: subprocess.Popen[bytes]) -> bool:
    try:
        writer.wait(timeout=0.7)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_writes_wait_between_begin_and_end(disks: PrivateGuest) -> None:
    begun = disks.ask("begin", "s1", "30", "--fs")
    assert begun.of("fs")[0][0] == "2"
    writers = [_writer(disks, f"{DISK}/x"), _writer(disks, f"{DISK}/inner/x")]
    assert all(_is_blocked(writer) for writer in writers)
    assert disks.ask("end", "s1").lines == [["fs", "2"], ["ended"]]
    assert [writer.wait(timeout=10) for writer in writers] == [0, 0]
    assert disks.ask("end", "s1").lines == [["fs", "2"], ["ended"]]


def test_the_watchdog_thaws_though_the_caller_was_killed(disks: PrivateGuest) -> None:
    disks.ask("begin", "s1", "3", "--fs")
    writer = _writer(disks, f"{DISK}/inner/x")
    assert _is_blocked(writer)
    assert writer.wait(timeout=10) == 0
    disks.eventually("[ -e /run/understudy-guest/s1/session/ended ]")
    ended = disks.ask("end", "s1")
    assert ended.of("expired") in ([["3"]], [["4"]])
    assert ended.of("fs") == [["0"]]


def test_the_watchdog_thaws_what_the_agent_has_frozen(disks: PrivateGuest) -> None:
    disks.ask("begin", "s1", "3")
    disks.sh(f"fsfreeze -f '{DISK}/inner' && fsfreeze -f '{DISK}'")
    writer = _writer(disks, f"{DISK}/x")
    assert _is_blocked(writer)
    assert writer.wait(timeout=10) == 0
    disks.eventually("[ -e /run/understudy-guest/s1/session/ended ]")
    assert disks.ask("end", "s1").of("expired")


def test_the_watchdog_thaws_a_read_only_file_system_that_the_agent_has_frozen(disks: PrivateGuest) -> None:
    disks.ask("begin", "s1", "2")
    disks.sh("fsfreeze -f /tmp/ro")
    disks.eventually("[ -e /run/understudy-guest/s1/session/ended ]")
    assert "Invalid argument" in disks.sh("fsfreeze -u /tmp/ro 2>&1 || :")  # it was not frozen any more
    disks.ask("end", "s1")


def test_a_session_whose_watchdog_was_killed_is_ended_by_another_job_s_once_its_time_is_over(
    disks: PrivateGuest,
) -> None:
    disks.ask("begin", "job1-1", "3")
    disks.sh(f"kill -9 $(pgrep -f '[w]atch job1-1'); fsfreeze -f '{DISK}'")
    writer = _writer(disks, f"{DISK}/x")
    assert "job1-1 is quiescing this guest" in disks.ask("begin", "job2-1", "3").errors
    assert _is_blocked(writer)
    times = "/run/understudy-guest/job1-1/session/times"
    disks.eventually(f"[ $(cut -d. -f1 /proc/uptime)00 -gt $(cut -d' ' -f2 {times}) ]")
    assert disks.ask("begin", "job2-1", "20").lines == [["ready"]]
    assert writer.wait(timeout=5) == 0
    disks.ask("end", "job2-1")


def test_end_thaws_though_the_watchdog_was_killed(disks: PrivateGuest) -> None:
    disks.ask("begin", "s1", "60", "--fs")
    disks.sh("kill -9 $(pgrep -f '[w]atch s1')")
    writer = _writer(disks, f"{DISK}/inner/x")
    assert _is_blocked(writer)
    assert disks.ask("end", "s1").lines == [["fs", "2"], ["ended"]]
    assert writer.wait(timeout=5) == 0


def test_a_begin_killed_in_the_middle_leaves_nothing_frozen_after_the_deadline(disks: PrivateGuest) -> None:
    disks.write("/etc/understudy/hooks.d/10-a", b"#!/bin/sh\necho $1 >>/tmp/calls; [ $1 = thaw ] || sleep 2\n", 0o755)
    with disks.start("begin", "s1", "3", "--fs") as caller:
        disks.eventually("grep -q freeze /tmp/calls")
        disks.sh("kill -9 $(pgrep -f '[g]uest.sh begin s1')")
        caller.communicate(timeout=10)
    disks.eventually("[ -e /run/understudy-guest/s1/session/ended ]")
    assert _writer(disks, f"{DISK}/x").wait(timeout=2) == 0
    assert disks.sh("cat /tmp/calls").splitlines() == ["freeze", "thaw"]


def test_a_file_system_that_cannot_be_frozen_thaws_the_others(disks: PrivateGuest) -> None:
    if disks.shell[0] == "busybox":
        pytest.skip("busybox calls its own fsfreeze, which no stand-in can replace")
    disks.write(
        "/usr/local/bin/fsfreeze",
        f'#!/bin/sh\n[ "$1$2" != "--freeze{DISK}" ] && exec /usr/sbin/fsfreeze "$@"\nexit 1\n'.encode(),
        0o755,
    )
    disks.write("/etc/understudy/hooks.d/10-a", b"#!/bin/sh\necho $1 >>/tmp/calls\n", 0o755)
    try:
        begun = disks.ask("begin", "s1", "20", "--fs")
    finally:
        disks.sh("rm /usr/local/bin/fsfreeze")
    assert begun.status == 1
    assert f"{DISK} cannot be frozen" in begun.errors
    assert [_writer(disks, f"{DISK}{name}").wait(timeout=5) for name in ("/x", "/inner/x")] == [0, 0]
    assert disks.sh("cat /tmp/calls").splitlines() == ["freeze", "thaw"]
    disks.ask("end", "s1")


def test_cleanup_thaws_though_the_watchdog_was_killed(disks: PrivateGuest) -> None:
    disks.ask("begin", "s1", "60", "--fs")
    disks.sh("kill -9 $(pgrep -f '[w]atch s1')")
    writer = _writer(disks, f"{DISK}/inner/x")
    assert _is_blocked(writer)
    assert disks.ask("cleanup").lines == [["removed", "s1"], ["clean"]]
    assert writer.wait(timeout=5) == 0
