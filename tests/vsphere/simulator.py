"""A simulated vCenter or ESXi host as a child process: builds the program in `simulator/`, runs it, ends it.

The program is Debian's govmomi simulator (`golang-go`, `golang-github-vmware-govmomi-dev`) with a main of our own. It
answers SOAP and REST, keeps an inventory, and has a folder for each datastore; it knows nothing of disk contents or
changed blocks, which the front adds (`front.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("simulator")
GO_PATH = Path("/usr/share/gocode")
LIBRARY = GO_PATH / "src/github.com/vmware/govmomi/simulator"
#: Ten thousand VMs take minutes on a busy machine.
START_TIMEOUT_S = 1200.0
#: And so does the removal of their files.
END_TIMEOUT_S = 300.0


class SimulatorError(Exception):
    """The simulator was not built, or did not start or end."""


@dataclass(frozen=True)
class Inventory:
    """What a simulator starts with; a single ESXi host has VMs and datastores only."""

    datacenters: int = 1
    hosts: int = 1
    vms: int = 2
    datastores: int = 1
    autostart: bool = True
    esx: bool = False


@dataclass(frozen=True)
class SimulatedDatastore:
    """A datastore and the local folder that holds its files."""

    datacenter: str
    name: str
    moref: str
    folder: Path


@dataclass(frozen=True)
class Simulator:
    """A running simulator."""

    url: str
    user: str
    password: str
    datastores: tuple[SimulatedDatastore, ...]
    pid: int


def missing() -> str:
    """Why no simulator can be built on this machine; empty if one can."""
    if shutil.which("go") is None:
        return "needs Go to build the vCenter simulator (Debian package golang-go)"
    if not LIBRARY.is_dir():
        return "needs the vCenter simulator's library (Debian package golang-github-vmware-govmomi-dev)"
    return ""


@cache
def build() -> Path:
    """The simulator's program, built if this source was not built with this Go before, once for all processes.

    :raises SimulatorError: if it cannot be built.
    """
    if reason := missing():
        raise SimulatorError(reason)
    version = subprocess.run(["go", "version"], capture_output=True, check=True, env=_go_environment()).stdout
    sources = sorted(SOURCE.glob("*.go"))
    digest = hashlib.sha256(b"\0".join([version, *(source.read_bytes() for source in sources)])).hexdigest()[:16]
    directory = _programs() / digest
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "vcenter-simulator"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            # Renamed when it is whole: an interrupted build leaves no program.
            unfinished = directory / "unfinished"
            command = ["go", "build", "-o", str(unfinished), *map(str, sources)]
            built = subprocess.run(command, capture_output=True, text=True, check=False, env=_go_environment())
            if built.returncode:
                raise SimulatorError(f"go build: {built.stderr}")
            unfinished.rename(program)
    return program


@contextmanager
def simulator(
    inventory: Inventory, user: str, password: str, *, tls: bool = False, listen: str = "127.0.0.1:0"
) -> Iterator[Simulator]:
    """A simulator that demands `user` and `password`; it and all of its files are gone at the end.

    :raises SimulatorError: if it is not ready in time, or does not end.
    """
    program = build()
    with tempfile.TemporaryDirectory(prefix="vcenter-simulator-") as directory:
        command = [str(program), "-listen", listen, "-user", user, "-password", password, *_flags(inventory, tls)]
        # Its standard input is the sign of our life: the kernel closes it even if we are killed.
        with (
            (Path(directory) / "log").open("w+b") as log,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env={**os.environ, "TMPDIR": directory},
            ) as child,
        ):  # fmt: skip
            try:
                yield _ready(child, Path(directory) / "log", user, password)
            finally:
                _end(child)


def _flags(inventory: Inventory, tls: bool) -> list[str]:
    return [
        f"-datacenters={inventory.datacenters}",
        f"-hosts={inventory.hosts}",
        f"-vms={inventory.vms}",
        f"-datastores={inventory.datastores}",
        f"-autostart={str(inventory.autostart).lower()}",
        f"-esx={str(inventory.esx).lower()}",
        f"-tls={str(tls).lower()}",
    ]


def _ready(child: subprocess.Popen[bytes], log: Path, user: str, password: str) -> Simulator:
    """Wait for the line that the program prints when it listens."""
    assert child.stdout is not None
    readable, _, _ = select.select([child.stdout], [], [], START_TIMEOUT_S)
    line = child.stdout.readline() if readable else b""
    if not line:
        raise SimulatorError(f"the simulator did not start: {log.read_text(errors='replace')}")
    ready = json.loads(line)
    stores = tuple(
        SimulatedDatastore(store["datacenter"], store["name"], store["moref"], Path(store["folder"]))
        for store in ready["datastores"]
    )
    return Simulator(ready["url"], user, password, stores, child.pid)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        raise SimulatorError("the simulator did not end on SIGTERM") from None


def _go_environment() -> dict[str, str]:
    """Debian's source tree only: no modules, no network, no C compiler."""
    cache = str(_cache() / "go-build")
    tree = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOFLAGS": "", "CGO_ENABLED": "0"}
    return {**os.environ, **tree, "GOCACHE": cache}


def _programs() -> Path:
    """Where the programs are, each in a directory of its source and its Go."""
    return _cache() / "programs"


def _cache() -> Path:
    """A directory outside the source tree that outlives a test run."""
    system = Path("/var/cache")
    if os.access(system, os.W_OK):
        return system / "understudy/vsphere"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "understudy/vsphere"
