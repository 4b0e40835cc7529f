"""A guest that is a directory of this machine: programs run here, its ``/run``, ``/tmp`` and ``/usr`` are inside it."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from understudy.errors import GuestError
from understudy.guests.transport import Completed, go_on
from understudy.model.guest import GuestSystem, GuestTransport

#: A program that speaks the protocol; MODE says what is wrong with it, LOG is where it says what it was told.
PROGRAM = r"""
mode=$(cat "$ROOT/mode" 2>/dev/null)
case $1 in version) ;; *) echo "$*" >>"$ROOT/log";; esac
case $1/$mode in
version/old) printf 'understudy-guest\t0\n';;
version/*) printf 'understudy-guest\t1\n';;
discover/none) printf 'discovered\n';;
discover/*) printf 'app\tpostgresql\t15/main\tport 5432\ndiscovered\n';;
begin/blocks) case "$*" in *--no-applications*) printf 'ready\n';; *) exec sleep 60;; esac;;
end/blocks) printf 'ended\n';;
begin/hangs) exec sleep 60;;
begin/garbage) printf 'app\tpostgresql\tmain\tfrozen\n\377\n';;
begin/cut) printf 'app\tpostgresql\t15/main\tquiesced\t\t12\n';;
begin/refuses) printf 'app\tpostgresql\t15/main\tfailed\tno space left\t12\nready\n';;
begin/unwatched) printf 'unwatched\tfsfreeze is not installed\nready\n';;
begin/none) case "$*" in *--fs*) printf 'fs\t2\t3\n';; esac; printf 'ready\n';;
begin/*) printf 'app\tpostgresql\t15/main\tquiesced\t\t12\n'
    case "$*" in *--fs*) printf 'fs\t2\t3\n';; esac
    printf 'ready\n';;
end/lost) echo 'no such session' >&2; exit 1;;
end/late) printf 'expired\t10\napp\tpostgresql\t15/main\tthawed\t\nended\n';;
end/none | end/unwatched) printf 'fs\t2\nended\n';;
end/*) printf 'fs\t2\napp\tpostgresql\t15/main\tthawed\t\nlabel\tpostgresql\t15/main\tU1RBUlQ=\nended\n';;
commit/*) printf 'committed\n';;
cleanup/left) printf 'removed\tsession 3\nclean\n';;
cleanup/*) printf 'clean\n';;
run/*) sh "$4" >>"$ROOT/script.log" 2>&1; printf 'exit\t%s\noutput\td29yZHM=\n' $?;;
esac
"""


def local_program(system: GuestSystem) -> bytes:
    """The program for a :class:`LocalGuest`."""
    assert system is GuestSystem.POSIX
    return PROGRAM.encode()


class LocalGuest:
    """Implements :class:`understudy.guests.transport.Transport`."""

    system = GuestSystem.POSIX

    def __init__(self, root: Path, mode: str = "", kind: GuestTransport = GuestTransport.QGA) -> None:
        self.root = root
        self.kind = kind
        self.closed = False
        for name in ("run", "tmp", "usr/local/lib"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.mode(mode)

    def mode(self, mode: str) -> None:
        (self.root / "mode").write_text(mode)

    @property
    def log(self) -> list[str]:
        """The first word of everything that the program was told."""
        path = self.root / "log"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def files(self) -> list[str]:
        """What lies in the guest."""
        return [path.name for path in (self.root / "run").rglob("*") if path.is_file()]

    def run_pair(
        self, first: Sequence[str], second: Sequence[str], timeout_s: float
    ) -> tuple[Completed, Callable[[float], Completed]]:
        return self.run(first, timeout_s), functools.partial(self.run, second)

    def run(
        self, argv: Sequence[str], timeout_s: float, stdin: bytes = b"", check: Callable[[], object] = go_on
    ) -> Completed:
        check()
        here = [self._here(word) for word in argv]
        try:
            done = subprocess.run(here, input=stdin, capture_output=True, timeout=timeout_s, check=False,
                                  env={"PATH": "/usr/bin:/bin", "ROOT": str(self.root)})  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise GuestError(f"run {argv[0]}", f"it did not end within {timeout_s:g} s") from exc
        return Completed(done.returncode, done.stdout.replace(bytes(self.root), b""), done.stderr)

    def put(self, path: str, content: bytes, mode: int, timeout_s: float) -> None:
        file = Path(self._here(path))
        file.write_bytes(content)
        file.chmod(mode)

    def close(self) -> None:
        self.closed = True

    def _here(self, word: str) -> str:
        return re.sub(r"/(run|tmp|usr/local)/", lambda match: f"{self.root}{match[0]}", word)
