"""A session of a soak: it begins while the guest stands still, and goes on while the guest writes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.installation import Installation

_REACHED_S = 180.0
_ENDED_S = 420.0


@dataclass(frozen=True)
class Outcome:
    """How a session ended.

    :ivar state: as it says itself, or ``killed`` if its controller was.
    """

    status: int
    state: str
    report: Any
    error: str


def run_session(
    installation: Installation, job: str, faults: list[str], options: list[str],
    held: Callable[[], None], go_on: Callable[[], None],
) -> Outcome:
    """Run a job with these fault points armed.

    :param held: called when the source snapshot is held, while the session waits.
    :param go_on: called in any case, before the session's end is waited for.
    """
    release = installation.place / f"release-{time.monotonic_ns()}"
    reached = release.with_name(release.name + ".reached")
    env = {**os.environ, "UNDERSTUDY_FAULT": ",".join(["snapshot.after=stall", *faults]),
           "UNDERSTUDY_FAULT_RELEASE": str(release)}
    process = subprocess.Popen(installation.command("--json", "job", "run", job, *options), env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        try:
            if _waited(process, reached):
                held()
        finally:
            go_on()
            release.touch()
        out, err = process.communicate(timeout=_ENDED_S)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    finally:
        release.unlink(missing_ok=True)
        reached.unlink(missing_ok=True)
    report = json.loads(out) if out.strip() else None
    state = "killed" if process.returncode < 0 else str(report["state"]) if report else "refused"
    return Outcome(process.returncode, state, report, err.strip())


def _waited(process: subprocess.Popen[str], reached: Path) -> bool:
    deadline = time.monotonic() + _REACHED_S
    while not reached.exists():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError("the session does not come to its snapshot")
        time.sleep(0.02)
    return True
