"""A lab leaves nothing behind, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.lab import leftovers
from understudy.lab.commands import run
from understudy.lab.errors import LabError, LabNotClean, LabUnavailable
from understudy.lab.lab import Lab
from understudy.lab.processes import ProcessIdentity
from understudy.lab.small_fs import SmallFs

pytestmark = pytest.mark.system

_OWNER = """
import sys, time
from pathlib import Path
from understudy.lab.lab import Lab
lab = Lab.open(cache_dir=Path(sys.argv[1]))
vm = lab.create_vm(lab.alpha, "orphan")
print(lab.directory, vm.pid(), *(host.libvirtd().pid for host in lab.hosts), flush=True)
time.sleep(600)
"""

_LINKED_OWNER = """
import sys, time
from pathlib import Path
from understudy.lab.lab import Lab
from understudy.lab.small_fs import SmallFs
lab = Lab.open(cache_dir=Path(sys.argv[1]), linked=True)
lab.link.set_rate(10_000_000)
SmallFs.mount(lab.beta, lab.directory / "small", 16 << 20)
programs = [host.start_process(["sleep", "600"], log=lab.directory / "sleep.log") for host in lab.hosts]
programs[1].stop()
print(lab.directory, *(program.pid for program in programs), flush=True)
time.sleep(600)
"""

_STATE = ("lib", "cache", "log")
_PLACES = ("/run", "/run/libvirt", "/run/netns", "/etc/libvirt", *(f"/var/{part}/libvirt" for part in _STATE))


def _traces() -> dict[str, set[str]]:
    """What a lab could leave changed outside its directory; nothing that other programs change all the time."""
    return {
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "links": {path.name for path in Path("/sys/class/net").iterdir()},
        "routes": set(Path("/proc/net/route").read_text().splitlines()),
        "files": {str(path) for place in _PLACES for path in Path(place).glob("*")},
    }


def _backing_files() -> list[str]:
    return run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"]).splitlines()


def test_a_closed_lab_leaves_no_trace(cache_dir: Path) -> None:
    before = _traces()
    with Lab.open(cache_dir=cache_dir) as lab:
        vms = [lab.create_vm(host, "left running") for host in lab.hosts]
        for vm in vms:
            vm.wait_agent()
        members = [member for host in lab.hosts for member in host.processes()]
        processes = [ProcessIdentity.of(member.pid) for member in members]
    # Per host: the holder, libvirtd, QEMU.
    assert len(processes) == 6
    assert not any(process is not None and process.alive() for process in processes)
    assert not lab.directory.exists()
    assert not any(str(lab.directory) in path or str(cache_dir) in path for path in _backing_files())
    assert _traces() == before


def test_link_processes_and_small_file_system_of_a_closed_lab_leave_no_trace(cache_dir: Path) -> None:
    before = _traces()
    with Lab.open(cache_dir=cache_dir, linked=True) as lab:
        SmallFs.mount(lab.beta, lab.directory / "small", 16 << 20)
        programs = [host.start_process(["sleep", "600"], log=lab.directory / "sleep.log") for host in lab.hosts]
        programs[1].kill()
        assert _traces() == before
    assert not any(program.alive for program in programs)
    assert not lab.directory.exists()
    _await_no_backing_file_below(lab.directory)
    assert _traces() == before


def test_a_linked_lab_whose_owner_is_killed_leaves_no_trace(cache_dir: Path) -> None:
    before = _traces()
    with subprocess.Popen([sys.executable, "-c", _LINKED_OWNER, cache_dir], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        directory, *pids = owner.stdout.readline().split()
        programs = [ProcessIdentity.of(int(pid)) for pid in pids]
        owner.send_signal(signal.SIGKILL)
    assert len(programs) == 2
    for program in programs:
        assert program is not None
        assert program.wait_end(timeout_s=10)
    _await_no_backing_file_below(Path(directory))
    with Lab.open(cache_dir=cache_dir):
        assert not Path(directory).exists()
    assert _traces() == before


def _await_no_backing_file_below(directory: Path) -> None:
    """The kernel takes down the mounts of an ended namespace in its own time."""
    deadline = time.monotonic() + 10
    while any(str(directory) in path for path in _backing_files()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lab_whose_owner_is_killed_ends_and_is_swept_by_the_next(cache_dir: Path) -> None:
    before = _traces()
    with subprocess.Popen([sys.executable, "-c", _OWNER, cache_dir], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        directory, *pids = owner.stdout.readline().split()
        running = [ProcessIdentity.of(int(pid)) for pid in pids]
        owner.send_signal(signal.SIGKILL)
    assert len(running) == 3
    for process in running:
        assert process is not None
        assert process.wait_end(timeout_s=10)
    assert Path(directory).exists()
    with Lab.open(cache_dir=cache_dir):
        assert not Path(directory).exists()
    assert _traces() == before


def test_the_sweep_ends_recorded_processes_that_outlived_their_owner(tmp_path: Path) -> None:
    directory = tmp_path / f"{leftovers.PREFIX}dead"
    directory.mkdir()
    with subprocess.Popen(["sleep", "600"]) as survivor:
        identity = ProcessIdentity.of(survivor.pid)
        assert identity is not None
        stranger = replace(identity, start_ticks=identity.start_ticks + 1)
        leftovers.record(directory, [stranger])
        leftovers.sweep_dead_labs(tmp_path)
        assert not directory.exists()
        assert survivor.poll() is None
        directory.mkdir()
        leftovers.record(directory, [identity])
        leftovers.sweep_dead_labs(tmp_path)
        assert survivor.wait(timeout=5) == -signal.SIGKILL
    assert not directory.exists()


def test_a_live_lab_is_not_swept(lab: Lab, cache_dir: Path) -> None:
    with Lab.open(cache_dir=cache_dir) as other:
        assert other.directory != lab.directory
    with lab.alpha.connection() as connection:
        assert connection.isAlive()


def test_a_directory_of_a_live_lab_is_refused(lab: Lab, cache_dir: Path) -> None:
    with pytest.raises(LabError, match="another lab"):
        Lab.open(lab.directory, cache_dir)


def test_a_given_directory_is_kept_without_our_files(cache_dir: Path, lab: Lab) -> None:
    place = lab.directory / "given"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    with Lab.open(place, cache_dir) as inner:
        assert inner.directory == place
    assert sorted(path.name for path in place.iterdir()) == ["notes.txt"]


def test_a_directory_that_the_qemu_user_cannot_enter_is_refused(cache_dir: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(LabUnavailable, match="cannot enter"):
        Lab.open(closed / "lab", cache_dir)
    assert not (closed / "lab").exists()


def test_a_lab_with_a_mount_in_it_keeps_its_files_and_says_so(cache_dir: Path) -> None:
    lab = Lab.open(cache_dir=cache_dir)
    inside = lab.directory / "mnt"
    inside.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    (inside / "precious").touch()
    try:
        with pytest.raises(LabNotClean, match="still mounted"):
            lab.close()
        assert (inside / "precious").exists()
    finally:
        subprocess.run(["umount", inside], check=True)
    with Lab.open(cache_dir=cache_dir):
        pass
    assert not lab.directory.exists()
