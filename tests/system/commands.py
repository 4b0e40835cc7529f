"""The real command line for one home, and what it said.

Commands run in forks of a process that has the program imported, unless they are told to start each anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.forked import ForkedCommand, forks

RUN_TIMEOUT_S = 400
#: Something that comes in a moment, on a busy machine.
WAIT_S = 90


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@dataclass
class StalledRun:
    """A ``job run`` under way, which may stand at a fault point; ``answer`` is there when the block is left."""

    process: ForkedCommand | subprocess.Popen[str]
    answer: Answer | None = None

    @property
    def ended(self) -> Answer:
        """What it said."""
        assert self.answer is not None
        return self.answer


class Commands:
    """Commands for a home.

    :ivar anew: start an interpreter for each, as a shell does.
    """

    home: Path
    anew: bool = False

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """What starts a program where the commands run, if that is not here."""
        return ()

    @property
    def environment(self) -> Mapping[str, str]:
        """What all commands have besides the environment of the tests."""
        return {}

    def command(self, *arguments: str) -> list[str]:
        """The argument vector of a command."""
        return [*self.elsewhere, *self._plain_command(*arguments)]

    def run(self, *arguments: str, said: str = "", env: Mapping[str, str] | None = None) -> Answer:
        """Run a command to its end; ``said`` goes to its standard input."""
        process = self._start(arguments, env or {}, said)
        try:
            out, err = process.communicate(timeout=RUN_TIMEOUT_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Answer(process.wait(), out, err)

    def ok(self, *arguments: str, said: str = "") -> Answer:
        """Run a command that must succeed."""
        answer = self.run(*arguments, said=said)
        assert answer.status == 0, (arguments, answer)
        return answer

    def json(self, *arguments: str) -> Any:
        """Run a command that must succeed, with ``--json``."""
        return self.ok("--json", *arguments).json

    @contextmanager
    def stalled(self, job: str, point: str, *options: str, verb: str = "run") -> Iterator[StalledRun]:
        """Run a job, or estimate it, and stop at a fault point; inside the block it stands there, then it goes on.

        The block may kill or interrupt it. It is waited for at the end.
        """
        release = self.home / f"release-{time.monotonic_ns()}"
        reached = release.with_name(release.name + ".reached")
        fault = {"UNDERSTUDY_FAULT": f"{point}=stall", "UNDERSTUDY_FAULT_RELEASE": str(release)}
        with self.under_way(job, *options, verb=verb, env=fault) as run:
            try:
                await_while(run, reached.exists, f"{point} was not reached")
                yield run
            finally:
                release.touch()

    @contextmanager
    def killed(self, job: str, point: str) -> Iterator[None]:
        """Run a job and kill its controller at a fault point; the block runs after that."""
        with self.stalled(job, point) as run:
            run.process.kill()
        yield

    @contextmanager
    def under_way(
        self, job: str, *options: str, verb: str = "run", env: Mapping[str, str] | None = None
    ) -> Iterator[StalledRun]:
        """Run a job, or estimate it; the block sees it run, and it is waited for afterwards."""
        process = self._start(("--json", "job", verb, job, *options), env or {})
        run = StalledRun(process)
        try:
            yield run
            out, err = process.communicate(timeout=RUN_TIMEOUT_S)
            run.answer = Answer(process.wait(), out, err)
        finally:
            if run.answer is None:
                process.kill()
                process.communicate()

    def _start(
        self, arguments: Sequence[str], env: Mapping[str, str], said: str = ""
    ) -> ForkedCommand | subprocess.Popen[str]:
        environment = {**os.environ, **self.environment, **env}
        if not self.anew:
            return forks(self.elsewhere).start(self._plain_command(*arguments), environment, said)
        process = subprocess.Popen(self.command(*arguments), env=environment, text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(said)
        process.stdin.close()
        process.stdin = None
        return process

    def _plain_command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "understudy", "--home", str(self.home), *arguments]


def await_while(run: StalledRun, true: Callable[[], bool], what: str) -> None:
    """Wait until something is true, which it must become while the command runs."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
