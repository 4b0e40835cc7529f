"""A PostgreSQL server for tests: own directory, Unix socket only, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The directory of the server's programs (Debian keeps them out of PATH); None if it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def running_server(bin_dir: Path) -> Iterator[str]:
    """A server for the duration of the block; its URL without a database."""
    # PostgreSQL refuses to run as root, and pytest's directories are closed to other users.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    memory = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(prefix="understudy-pg-", dir=memory if os.access(memory, os.W_OK) else None))
    shutil.chown(home, user)
    data = home / "data"
    who = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    init = [bin_dir / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale"]
    server: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(init, check=True, capture_output=True, cwd=home, **who)  # type: ignore[call-overload]
        arguments = [bin_dir / "postgres", "-D", data, "-k", home, "-c", "listen_addresses=", "-c", "fsync=off"]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=home, **who)  # type: ignore[call-overload]
        _wait_until_ready(bin_dir, home)
        yield f"postgresql://postgres@/{{}}?host={home}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)  # at once: nothing in it is worth writing
            server.wait(timeout=20)
        shutil.rmtree(home)


def _wait_until_ready(bin_dir: Path, home: Path) -> None:
    end = time.monotonic() + 20
    while subprocess.run([bin_dir / "pg_isready", "-q", "-h", home], check=False).returncode != 0:
        if time.monotonic() > end:
            raise TimeoutError((home / "log").read_text())
        time.sleep(0.05)
