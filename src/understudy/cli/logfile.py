"""The controller's log file: ``<home>/log/understudy.log``."""

from __future__ import annotations

import logging
import time
import traceback
from pathlib import Path


def log_path(home: Path) -> Path:
    """Where the log of a home is."""
    return home / "log" / "understudy.log"


def log_to_file(home: Path) -> None:
    """Send this process's log events, from INFO on, to the log file: one event a line, UTC."""
    handler = logging.FileHandler(_prepared(home), encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(process)d %(levelname)s %(name)s %(message)s",
                                  "%Y-%m-%dT%H:%M:%S")  # fmt: skip
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("understudy")
    for old in [old for old in logger.handlers if isinstance(old, logging.FileHandler)]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Without this the last resort handler of logging would put events on stderr, which belongs to errors.
    logger.propagate = False


def record_traceback(home: Path, exc: BaseException) -> Path:
    """Append the traceback of ``exc`` to the log file, and return the file's path.

    :raises OSError: if the file cannot be written.
    """
    path = _prepared(home)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{stamp} unexpected error\n{''.join(traceback.format_exception(exc))}")
    return path


def _prepared(home: Path) -> Path:
    path = log_path(home)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600)
    return path
