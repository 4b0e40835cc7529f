"""Running a command line: every outcome becomes an exit status, every error one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.app import DEFAULT_HOME, HOME_VARIABLE, understudy
from understudy.cli.logfile import record_traceback
from understudy.errors import Cancelled, UnderstudyError, UsageError

if TYPE_CHECKING:
    from understudy.cli.services import OpenServices

SUCCESS, FAILED, USAGE, CANCELLED = 0, 1, 2, 130


def run(arguments: Sequence[str], open_services: OpenServices) -> int:
    """Run one command line; the exit status.

    :param open_services: makes the controller's acts when a command needs them.
    """
    try:
        # Not understudy.main(): it writes an empty line of its own when it is interrupted.
        with understudy.make_context("understudy", list(arguments), obj=open_services) as context:
            understudy.invoke(context)
        sys.stdout.flush()
    except UnderstudyError as exc:
        return _say(str(exc), exc.exit_status)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.UsageError as exc:
        return _say(str(_usage(exc)), USAGE)
    except click.ClickException as exc:
        return _say(f"understudy: {exc.format_message()}", FAILED)
    except (KeyboardInterrupt, click.Abort):
        return _say(str(Cancelled("understudy", "interrupted")), CANCELLED)
    except BrokenPipeError:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _say("write output: its reader went away", FAILED)
    except Exception as exc:  # noqa: BLE001 - the last border: an operator gets a line, the log file the traceback
        return _say(_unexpected(exc, arguments), FAILED)
    return SUCCESS


def _say(line: str, status: int) -> int:
    click.echo(f"error: {' '.join(line.split())}", err=True)
    return status


def _usage(exc: click.UsageError) -> UsageError:
    """Click's complaint in our form: ``job create: missing option '--source'; see 'understudy job create --help'``."""
    path = exc.ctx.command_path if exc.ctx else "understudy"
    what = path.partition(" ")[2] or path
    why = " ".join(exc.format_message().split()).rstrip(".")
    return UsageError(what, why[:1].lower() + why[1:], f"see '{path} --help'")


def _unexpected(exc: Exception, arguments: Sequence[str]) -> str:
    summary = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    try:
        todo = f"the details are in {record_traceback(_home(arguments), exc)}"
    except OSError as log_error:
        todo = f"the details could not be written: {log_error}"
    return str(UnderstudyError("understudy", f"unexpected error, please report it ({summary})", todo))


def _home(arguments: Sequence[str]) -> Path:
    """The home of a command line that failed, maybe before it was known."""
    parsed = understudy.make_context("understudy", list(arguments), resilient_parsing=True)
    return Path(parsed.params.get("home") or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).absolute()
