"""Programs by guest operations: how they are told to a shell of the guest, which here is one of this machine."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from understudy.errors import GuestError
from understudy.guests.vmtools import MEMORY, SHELL, VmwareToolsTransport
from understudy.model.guest import GuestSystem

#: A sudo that says that it was passed, and a file that only root could have made.
SUDO = '#!/bin/sh\n[ "$1 $2" = "-n --" ] || exit 9\nshift 2\numask 077\nPASSED=yes exec "$@"\n'


@dataclass
class LocalOperations:
    """Implements :class:`understudy.model.guest_operations.GuestOperations` in a directory of this machine."""

    root: Path
    user: str = "root"
    shell: tuple[str, ...] = (SHELL,)
    system: GuestSystem = GuestSystem.POSIX
    refusals: set[str] = field(default_factory=set)
    programs: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, program: str, arguments: str) -> int:
        assert program == SHELL
        words = [*self.shell, *shlex.split(arguments)]
        path = f"{self.root / 'bin'}:/usr/bin:/bin"
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env={"PATH": path})
        self.programs[process.pid] = process
        return process.pid

    def ended(self, pid: int) -> int | None:
        return self.programs[pid].poll()

    def terminate(self, pid: int) -> None:
        self.programs[pid].kill()

    def put(self, path: str, content: bytes) -> None:
        Path(path).write_bytes(content)

    def get(self, path: str, limit: int) -> bytes:
        try:
            return Path(path).read_bytes()[:limit]
        except OSError as exc:
            raise GuestError(f"read {path}", str(exc)) from exc

    def make_directory(self, parent: str) -> str:
        if parent in self.refusals:
            raise GuestError("make a directory", f"{parent} is not there")
        made = self.root / (parent or "default").strip("/").replace("/", "-") / "understudy-vmtools1"
        made.mkdir(parents=True)
        return str(made)

    def remove_directory(self, path: str) -> None:
        if path in self.refusals:
            raise GuestError("remove a directory", "it is busy")
        shutil.rmtree(path)


@pytest.fixture(params=["dash", "busybox"])
def operations(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalOperations]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    made = LocalOperations(tmp_path, shell=("busybox", "sh") if request.param == "busybox" else ("dash",))
    sudo = tmp_path / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text(SUDO)
    sudo.chmod(0o755)
    yield made
    for process in made.programs.values():
        process.wait(timeout=60)


def test_root_needs_no_sudo_and_another_user_passes_it(operations: LocalOperations) -> None:
    asked = ["/bin/sh", "-c", 'cat; echo "$PASSED"; exit 3']
    done = VmwareToolsTransport(operations).run(asked, 60, b"in ")
    assert (done.status, done.stdout) == (3, b"in \n")
    operations.user = "admin"
    shutil.rmtree(operations.root / "dev-shm")
    done = VmwareToolsTransport(operations).run(asked, 60, b"in ")
    assert (done.status, done.stdout) == (3, b"in yes\n")


def test_sudo_is_passed_once_for_both_programs_of_a_pair(operations: LocalOperations) -> None:
    operations.user = "admin"
    transport = VmwareToolsTransport(operations)
    done, finish = transport.run_pair(["sh", "-c", "echo a $PASSED"], ["sh", "-c", "echo b $PASSED; exit 5"], 60)
    (operations.root / "bin" / "sudo").unlink()  # nobody is let in any more
    assert (done.status, done.stdout) == (0, b"a yes\n")
    done = finish(60)
    assert (done.status, done.stdout) == (5, b"b yes\n")


def test_words_arrive_as_they_are(operations: LocalOperations) -> None:
    words = ["", "it's", '"$HOME"', "`id`", "a\nb", "-n", "*", "\\"]
    done = VmwareToolsTransport(operations).run(["/bin/sh", "-c", 'printf "%s|" "$@"', "sh", *words], 60)
    assert done.stdout.decode() == "".join(f"{word}|" for word in words)


def test_a_first_program_that_cannot_be_started_is_told_in_its_own_words(operations: LocalOperations) -> None:
    operations.user = "admin"
    (operations.root / "bin" / "sudo").write_text("#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    with pytest.raises(GuestError, match="a password is required"):
        VmwareToolsTransport(operations).run_pair(["true"], ["true"], 60)


def test_a_program_that_is_not_there_has_the_status_of_a_shell(operations: LocalOperations) -> None:
    done = VmwareToolsTransport(operations).run(["/nowhere/program"], 60)
    assert done.status == 127
    assert b"not found" in done.stderr


def test_the_pair_ends_when_its_files_are_taken_away(operations: LocalOperations) -> None:
    transport = VmwareToolsTransport(operations)
    marker = operations.root / "second"
    transport.run_pair(["true"], ["touch", str(marker)], 60)
    transport.close()
    (process,) = operations.programs.values()
    process.wait(timeout=60)
    assert marker.exists()


def test_another_place_than_memory_is_no_place_to_freeze_from(operations: LocalOperations) -> None:
    operations.refusals.add(MEMORY)
    transport = VmwareToolsTransport(operations)
    assert transport.run(["echo", "x"], 60).stdout == b"x\n"
    with pytest.raises(GuestError, match="no place in memory"):
        transport.run_pair(["true"], ["true"], 60)


def test_a_directory_that_cannot_be_removed_is_no_error(
    operations: LocalOperations, caplog: pytest.LogCaptureFixture
) -> None:
    transport = VmwareToolsTransport(operations)
    operations.refusals.add(str(operations.root / "dev-shm" / "understudy-vmtools1"))
    transport.close()
    assert "it is busy" in caplog.text
