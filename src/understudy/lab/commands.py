"""Run programs of this machine, with errors that repeat the program's own words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from understudy.lab.errors import CommandFailed, LabTimeout, LabUnavailable

# Administrator tools live in sbin directories that the PATH of a service or of cron may lack.
SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str) -> str:
    """Return the path of a program, or raise LabUnavailable."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise LabUnavailable(name, f"program not found in {SEARCH_PATH}", "install the package that has it")
    return found


def plain_environment() -> dict[str, str]:
    """An environment without the caller's locale, D-Bus or service-manager variables."""
    return {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/root")}


def tree_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The plain environment, with what makes a Python started in it import this source tree, and `more`.

    All other settings of the caller (a proxy, UNDERSTUDY_HOME, a fault to inject) reach a program only in `more`.
    """
    search = os.environ.get("PYTHONPATH")
    # Absolute, because a program on a lab host starts in the root directory.
    tree = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, search.split(os.pathsep)))} if search else {}
    return plain_environment() | tree | dict(more or {})


def run(command: Sequence[str], *, cwd: Path | None = None, timeout_s: float = 120, stdin: str | None = None) -> str:
    """Run a program to its end and return what it wrote to stdout.

    Raises CommandFailed with the program's stderr when it does not end with 0, LabTimeout when it does not end.
    """
    argv = [find_program(command[0]), *command[1:]]
    try:
        done = subprocess.run(
            argv,
            check=False,
            cwd=cwd,
            env=plain_environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as exc:
        raise LabTimeout(" ".join(command), f"did not end within {timeout_s:g} s") from exc
    return output_of(command, done.returncode, done.stdout, done.stderr)


def output_of(command: Sequence[str], status: int, stdout: str, stderr: str) -> str:
    """The stdout of a program that has ended; CommandFailed with its words when its status is not 0."""
    if status != 0:
        words = (stderr or stdout).strip()
        raise CommandFailed(" ".join(command), f"exit status {status}: {words or 'no output'}")
    return stdout
