"""An operator: commands in this process with the real services of a controller."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.unit.cli.command_line import Result, Terminal
from understudy.cli.run import run
from understudy.controller.services import open_services


@dataclass
class Operator:
    """Runs commands in a home of its own."""

    home: Path

    def __call__(self, *arguments: str, typed: str = "", terminal: bool = False) -> Result:
        """Run a command; ``typed`` is on its standard input, which may be a terminal."""
        kind = Terminal if terminal else io.StringIO
        out, err = kind(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", kind(typed)):
            status = run(["--home", str(self.home), *arguments], open_services)
        return Result(status, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str, typed: str = "") -> Result:
        """Run a command that must succeed."""
        result = self(*arguments, typed=typed)
        assert (result.status, result.err) == (0, ""), result
        return result

    def json(self, *arguments: str) -> Any:
        """The document of a command that must succeed."""
        return self.ok("--json", *arguments).document
