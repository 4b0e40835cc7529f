"""Entry point of the ``understudy`` command, and the composition root: the one place that joins its parts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.cli.services import Services
    from understudy.controller.database import Database


def main() -> int:
    """Run the command line of this process; the exit status."""
    from understudy.cli.run import run

    return run(sys.argv[1:], _open_services)


def _open_services(home: Path, database: Database) -> Services:
    # Imported when a command needs it: it brings the platforms and the client of the proxies along.
    from understudy.controller.services import open_services

    return open_services(home, database)
