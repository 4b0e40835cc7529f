"""A kit with the stand-in for the disk library, and everything that a test needs to use it with the real plugin."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from understudy.model.access import DiskLibrary, LibraryLogin

SOURCE = Path(__file__).with_name("disklib.c")
#: Where the plugin looks for it first; it takes the major version from the name.
LIBRARY = "lib64/libvixDiskLib.so.8"
PLUGIN_NAME = "nbdkit-vddk-plugin.so"
FETCHED = Path("/var/cache/understudy/vddk-plugin/root")
FETCH = "packaging/fetch-vddk-plugin"
FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")

USER, PASSWORD = "replicator@vsphere.local", "geheim: x%$'\"&\\ 9"
THUMBPRINT = ":".join(f"{number:02X}" for number in range(0x30, 0x44))


def missing() -> str:
    """Why the real plugin with the stand-in cannot be used here; empty if it can."""
    for program, package in (("nbdkit", "nbdkit"), ("gcc", "gcc")):
        if shutil.which(program) is None:
            return f"{program} is missing: install {package}"
    return "" if plugin() else f"nbdkit's vddk plugin is missing: run {FETCH}"


def plugin() -> str:
    """The plugin: its name where the distribution has it, else the path of the fetched file; empty if there is none."""
    for place in ("/usr/lib", "/usr/lib64"):
        if next(Path(place).glob(f"**/nbdkit/plugins/{PLUGIN_NAME}"), None):
            return "vddk"
    return str(next(FETCHED.glob(f"**/{PLUGIN_NAME}"), ""))


def build(directory: Path) -> Path:
    """The kit below ``directory``, built once for each content of its source."""
    digest = hashlib.blake2b(SOURCE.read_bytes() + repr(FLAGS).encode(), digest_size=8).hexdigest()
    kit = directory / f"understudy-stand-in-{digest}"
    if not (kit / LIBRARY).exists():
        with tempfile.TemporaryDirectory(dir=directory) as name:
            library = Path(name) / "kit" / LIBRARY
            library.parent.mkdir(parents=True)
            subprocess.run(["gcc", *FLAGS, "-o", str(library), str(SOURCE)], check=True)
            try:
                (Path(name) / "kit").rename(kit)
            except OSError:  # somebody else was faster
                if not (kit / LIBRARY).exists():
                    raise
    return kit


@dataclass(frozen=True)
class DiskFact:
    """One disk that the stand-in serves; ``snapshot`` is empty for the live disk."""

    vm: str
    path: str
    file: str
    snapshot: str = ""
    writable: bool = False


@dataclass(frozen=True)
class Call:
    """One call of the library, as its log has it."""

    name: str
    values: dict[str, str]

    def number(self, name: str) -> int:
        """A value that is a number."""
        return int(self.values[name])


class StandIn:
    """The stand-in as processes see it that inherit this one's environment.

    :ivar kit: the directory that looks like an unpacked kit.
    :ivar facts: the file that says what there is; a simulator may write it instead of :meth:`serve`.
    """

    def __init__(self, kit: Path, directory: Path) -> None:
        self.kit = kit
        self.facts = directory / "facts.json"
        self.log = directory / "library.log"
        self._faults = directory / "faults"

    @property
    def environment(self) -> dict[str, str]:
        """What tells the stand-in its files."""
        return {
            "UNDERSTUDY_DISKLIB_FACTS": str(self.facts),
            "UNDERSTUDY_DISKLIB_LOG": str(self.log),
            "UNDERSTUDY_DISKLIB_FAULTS": str(self._faults),
        }

    @property
    def library(self) -> DiskLibrary:
        """The stand-in with the real plugin."""
        return DiskLibrary(str(self.kit), plugin())

    @property
    def login(self) -> LibraryLogin:
        """The login that :meth:`serve` lets in."""
        return LibraryLogin("127.0.0.1", USER, PASSWORD, THUMBPRINT, self.library)

    def serve(self, disks: Sequence[DiskFact]) -> None:
        """From now on there are these disks."""
        listed = [asdict(disk) for disk in disks]
        facts = {"user": USER, "password": PASSWORD, "thumbprint": THUMBPRINT, "disks": listed}
        new = self.facts.with_suffix(".new")
        new.write_text(json.dumps(facts))
        new.replace(self.facts)

    def fail(self, **faults: int) -> None:
        """From now on there are these faults and no others; names are those in the source, with ``_`` for ``-``."""
        new = self._faults.with_suffix(".new")
        new.write_text("".join(f"{name.replace('_', '-')} {number}\n" for name, number in faults.items()))
        new.replace(self._faults)

    def calls(self, *names: str) -> list[Call]:
        """The calls so far, of these functions; of all if none is named."""
        if not self.log.exists():
            return []
        found = []
        for line in self.log.read_text().splitlines():
            name, *values = line.split("\t")
            if not names or name in names:
                found.append(Call(name, dict(value.split("=", 1) for value in values)))
        return found

    def counts(self) -> Counter[str]:
        """How often each function was called."""
        return Counter(call.name for call in self.calls())

    def forget(self) -> None:
        """Empty the log."""
        self.log.write_text("")


@contextmanager
def stand_in(kit: Path, directory: Path) -> Iterator[StandIn]:
    """The stand-in, for this process and those that it starts; its files are in ``directory``."""
    made = StandIn(kit, directory)
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)
    try:
        yield made
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
