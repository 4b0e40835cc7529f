"""A stand-in for a guest: a process, mount and file tree of its own, in which no disk of this machine can be seen.

The root is an overlay over this machine's files, what is written goes to memory, and the old root is taken away: a
program in it that freezes every file system it finds, finds only those that a test has made there.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_INIT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 guest "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay guest -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=1777,size=64m shm dev/shm
mount -t tmpfs -o mode=755,size=64m run run
mount -t tmpfs -o mode=1777,size=1g tmp tmp
mkdir -p old run/lock etc/understudy
pivot_root . old
cd /
umount -l /old
echo ready
# Waiting for a child, a shell reaps those whose parents have died too.
while :; do sleep 1000; done
"""
PROGRAM = "/run/understudy-guest.sh"


@dataclass(frozen=True)
class Answer:
    """What the program said: `lines` are its fields, `status` how it ended."""

    status: int
    lines: list[list[str]]
    errors: str

    def of(self, word: str) -> list[list[str]]:
        """Return the fields after `word` of each line that begins with it."""
        return [line[1:] for line in self.lines if line[0] == word]


@dataclass(frozen=True)
class PrivateGuest:
    """A running stand-in; `shell` are the words of the shell that runs the program."""

    pid: int
    shell: tuple[str, ...]

    def entering(self, *words: str) -> list[str]:
        """Return the command that runs `words` inside."""
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "--", *words]

    def sh(self, script: str, *, check: bool = True, timeout_s: float = 60) -> str:
        """Run a piece of shell inside, return its output without the last line end."""
        ran = subprocess.run(
            self.entering("/bin/sh", "-c", script),
            capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or ran.returncode == 0, ran.stderr
        return ran.stdout.rstrip("\n")

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file inside."""
        words = self.entering("/bin/sh", "-c", f"mkdir -p $(dirname {path}); cat >{path}; chmod {mode:o} {path}")
        subprocess.run(words, input=data, check=True)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start the program and do not wait for it."""
        return subprocess.Popen(
            self.entering(*self.shell, PROGRAM, *words),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, *words: str, timeout_s: float = 60) -> Answer:
        """Run the program to its end; its answer is parsed strictly."""
        with self.start(*words) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Answer(process.returncode, parse(out), err)

    def eventually(self, condition: str, timeout_s: float = 15) -> None:
        """Wait until a piece of shell succeeds inside."""
        until = time.monotonic() + timeout_s
        while self.sh(f"if {condition}; then echo yes; fi") != "yes":
            assert time.monotonic() < until, f"not in time: {condition}"
            time.sleep(0.1)


_FIELDS = {
    "understudy-guest": {2}, "app": {4, 5, 6}, "discovered": {1}, "fs": {2, 3}, "ready": {1}, "label": {4},
    "expired": {2}, "ended": {1}, "committed": {1}, "exit": {2}, "output": {2}, "removed": {2}, "clean": {1},
    "unwatched": {2},
}  # fmt: skip


def parse(text: str) -> list[list[str]]:
    """Split an answer; anything that the contract does not name fails the test."""
    assert text == "" or text.endswith("\n")
    lines = [line.split("\t") for line in text.splitlines()]
    for line in lines:
        assert len(line) in _FIELDS[line[0]], line
    return lines


@contextmanager
def private_guest(directory: Path, shell: Sequence[str], program: bytes) -> Iterator[PrivateGuest]:
    """Run a stand-in with the program in it; everything in it ends with it."""
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "/bin/sh", "-c", _INIT, "sh", str(directory)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "the stand-in did not start"
            inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            guest = PrivateGuest(int(inside[0]), tuple(shell))
            sources = guest.sh("sed 's/.* - //' /proc/self/mountinfo")
            assert not any(line.split()[1].startswith("/dev/") for line in sources.splitlines()), sources
            guest.write(PROGRAM, program)
            yield guest
        finally:
            process.kill()
