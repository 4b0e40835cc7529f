"""Library probe: can this host reach disks through the vendor's disk library, and if not, why?"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from understudy.model.access import DiskLibrary
from understudy.mover.api import LibraryFacts, ProbeLibrary
from understudy.mover.library import PACKAGES
from understudy.mover.library_errors import reason_in

_TIMEOUT_S = 30.0
_LIBRARY = re.compile(r"libvixDiskLib\.so\.(\d+)$")


def probe_library(request: ProbeLibrary) -> LibraryFacts:
    """Ask nbdkit and its plugin; whatever goes wrong is the answer's problem, not an error."""
    try:
        version = _run("--version")
        # With a directory that is not there, the plugin would not even tell its version.
        directory = request.library.directory if Path(request.library.directory).is_dir() else "/"
        dumped = _run("--dump-plugin", request.library.plugin, f"libdir={directory}")
    except OSError as exc:
        return LibraryFacts(problem=f"nbdkit cannot be started ({exc.strerror}); install {PACKAGES}")
    except subprocess.TimeoutExpired:
        return LibraryFacts(problem=f"nbdkit does not answer within {_TIMEOUT_S:.0f} s; see what slows this host down")
    server = version.stdout.split()[-1] if version.stdout.split() else ""
    told = dict(line.split("=", 1) for line in dumped.stdout.splitlines() if "=" in line)
    plugin, library = told.get("version", ""), told.get("vddk_library_version", "")
    problem = "" if library and dumped.returncode == 0 else _problem(request.library, dumped.stderr, plugin)
    return LibraryFacts(server, plugin, library, problem)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["nbdkit", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          timeout=_TIMEOUT_S, env={**os.environ, "LC_ALL": "C"})


def _problem(library: DiskLibrary, said: str, plugin: str) -> str:
    if not library.directory:
        return "no directory of the disk library is set; unpack the kit on the proxy's host, and set its path"
    majors = _majors(Path(library.directory))
    reason = reason_in(said)
    if plugin and not majors:
        return f"there is no disk library in {library.directory}; unpack the kit there"
    if plugin and reason is None:
        there = " and ".join(majors)
        return (f"the plugin, version {plugin}, does not load the library of major version {there} in"
                f" {library.directory}; use a newer plugin, or a kit of another version")
    if reason is None:
        return f"nbdkit's plugin {library.plugin!r} says nothing; see 'nbdkit --dump-plugin {library.plugin}'"
    return f"{reason.why} ({reason.said}); {reason.todo}"


def _majors(directory: Path) -> list[str]:
    """The major versions of the libraries where the plugin looks."""
    places = [*directory.glob("lib64/libvixDiskLib.so.*"), *directory.glob("libvixDiskLib.so.*")]
    return sorted({match[1] for path in places if (match := _LIBRARY.search(path.name))}, key=int)
