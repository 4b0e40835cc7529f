"""``host check --live-test``: asks first, shows each step, and writes a report that can be sent to others."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from understudy.cli.app import App
from understudy.cli.output import answer, printable
from understudy.cli.shapes import Shape
from understudy.errors import PlatformError, Refused, UsageError
from understudy.model.live_test import LiveStep, LiveTestReport, LiveTestWish
from understudy.mover.about import package_version

DEFAULT_REPORT = "understudy-live-test.json"
# Shorter ones are parts of ordinary words.
_SHORTEST_NAME = 2


@dataclass(frozen=True)
class ReportWish:
    """Where the report goes, and whether names in it are hashed."""

    path: Path
    hash_names: bool


def run_live_test(app: App, host: str, wish: LiveTestWish, report: ReportWish, *, confirmed: bool) -> None:
    """Make the live test and write its report.

    :raises Refused: if nobody confirms it.
    :raises UsageError: if the report's file exists, or cannot be written.
    :raises PlatformError: after that, if a step failed.
    """
    what = f"live test of host {host!r}"
    if report.path.exists():
        raise UsageError(what, f"{report.path} exists", "name another file: --report FILE")
    if not confirmed:
        _confirm(app, what, wish.vm)
    found = app.services.live_test(host, wish, lambda step: None if app.json else click.echo(printable(_line(step))))
    document = report_shape(host, found)
    if report.hash_names:
        document = hashed(document, found.names, secrets.token_hex(8))
    _write(what, report.path, document)
    document["report"] = str(report.path)
    answer(app, document, lambda: click.echo(f"The report is in {report.path}: read it before you send it anywhere."))
    failed = [step for step in found.steps if step.error]
    if failed:
        raise PlatformError(what, f"{failed[0].name}: {failed[0].error}")


def report_shape(host: str, found: LiveTestReport) -> Shape:
    """The report of a live test."""
    return {
        "host": host,
        "version": package_version(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ok": found.ok,
        "steps": [
            {"name": step.name, "seconds": step.seconds, "facts": dict(step.facts), "error": step.error}
            for step in found.steps
        ],
    }


def hashed(document: Shape, names: Sequence[str], salt: str) -> Shape:
    """The document with a hash for each of ``names``, wherever it stands in a text; the same name, the same hash.

    Without ``salt``, which is kept nowhere, nobody can tell a name by trying.
    """
    marks = {name: f"name-{hashlib.sha256(f'{salt}{name}'.encode()).hexdigest()[:8]}" for name in names}
    # The longest first: one name may be part of another.
    ordered = sorted((name for name in names if len(name) >= _SHORTEST_NAME), key=len, reverse=True)

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str):
            for name in ordered:
                value = value.replace(name, marks[name])
        return value

    # The words of the report itself are no names.
    steps = [{**step, "facts": {key: clean(item) for key, item in step["facts"].items()}, "error": clean(step["error"])}
             for step in document["steps"]]  # fmt: skip
    return {**document, "host": clean(document["host"]), "steps": steps}


def _confirm(app: App, what: str, vm: str) -> None:
    if app.json or not sys.stdin.isatty():
        raise Refused(what, "nobody can be asked here", "give --yes if two snapshots of the VM may be made and removed")
    click.echo(printable(
        f"Changed block tracking of VM {vm} will be switched on if it is off, and stay on. Two snapshots of it will be "
        "made and removed, the second one quiesced; some MiB of each disk are read, and kept nowhere. Choose a VM that "
        "does not matter."
    ), err=True)  # fmt: skip
    if not click.confirm("Go on?", err=True):
        raise Refused(what, "it was not confirmed")


def _line(step: LiveStep) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in step.facts.items() if value not in ("", None))
    outcome = f"FAILED: {step.error}" if step.error else facts or "done"
    return f"{step.seconds:8.3f} s  {step.name}: {outcome}"


def _write(what: str, path: Path, document: Shape) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
    except OSError as exc:
        raise UsageError(what, f"{path}: {exc.strerror}", "name another file: --report FILE") from exc
