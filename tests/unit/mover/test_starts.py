"""What the processes of a session load when they start: every session pays for it, however little it copies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.controller.service_lab import enrolled, running
from understudy.controller.authority import Authorities
from understudy.mover import api
from understudy.mover.api import SurveyDisks
from understudy.mover.operations import HANDLERS
from understudy.mover.process import MoverProcess
from understudy.mover.protocol import encode

#: What takes long to load, or belongs to the controller.
HEAVY = {"alembic", "click", "cryptography", "httpx", "libvirt", "pydantic", "pyVmomi", "rich", "sqlalchemy",
         "starlette", "uvicorn"}  # fmt: skip


def imported(said: str) -> set[str]:
    """The modules that a process has imported, of what it says with ``-v``."""
    return set(re.findall(r"^import '([\w.]+)' # ", said, re.MULTILINE))


def below(modules: set[str], package: str) -> set[str]:
    """Their names in the package."""
    return {name.removeprefix(f"{package}.").partition(".")[0] for name in modules if name.startswith(f"{package}.")}


def heavy(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} & HEAVY


def wanted_modules() -> set[str]:
    """Those of every operation and of every value of the protocol."""
    modules = {f"understudy.mover.{where.partition(':')[0]}" for where in HANDLERS.values()}
    return modules | {getattr(api, name).__module__ for name in HANDLERS}


# With -v, the lines of several threads run into each other.
_TELLS_ITS_MODULES = """
import sys, threading, time
from understudy.mover import __main__ as mover

def tell():
    while True:
        print(*sys.modules.copy(), flush=True)
        time.sleep(0.1)

threading.Thread(target=tell, daemon=True).start()
mover.LOAD_ALL_AFTER_S = 0.0
mover.main()
"""


def test_a_mover_loads_no_operation_before_it_is_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    log = tmp_path / "log"
    with MoverProcess("m", tmp_path / "run", tmp_path / "state", log) as mover:
        assert mover.info.name == "m"
    modules = imported(log.read_text())
    # The package of uvicorn imports click, whatever one needs of it.
    assert heavy(modules) == {"click", "pydantic", "starlette", "uvicorn"}
    assert below(modules, "understudy.mover.api") == {"common", "work"}
    ours = below(modules, "understudy.mover")
    assert {name for name in ours if name.startswith("operations_")} == {"operations_identity"}
    assert not ours & {"client", "conversion", "estimate", "survey_process", "verify"}
    assert not below(modules, "understudy") & {"cli", "controller", "guests", "platforms", "replication", "volumes"}


def test_a_mover_that_lives_on_loads_all_of_one_version(tmp_path: Path) -> None:
    """Else an upgrade of the program could give it the other half of another one."""
    command = [sys.executable, "-c", _TELLS_ITS_MODULES, "--socket", str(tmp_path / "run" / "socket"), "--name", "m",
               "--state-dir", str(tmp_path / "state")]  # fmt: skip
    (tmp_path / "run").mkdir()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as mover:
        assert mover.stdout is not None
        try:
            assert any(wanted_modules() <= set(line.split()) for line in mover.stdout)
        finally:
            mover.kill()


def test_a_service_loads_all_before_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    service = enrolled(tmp_path / "state", Authorities(tmp_path / "home"))
    with running(service):
        before, listens, _after = service.said().partition("listens on")
    assert listens
    assert wanted_modules() <= imported(before)


def test_the_process_that_looks_into_volumes_loads_its_readers_and_little_else() -> None:
    request = SurveyDisks((), swap=True, masks=(), free=True, quiesced=True, former=())
    done = subprocess.run([sys.executable, "-v", "-m", "understudy.mover.survey_child"],
                          input=encode(request), capture_output=True, check=True)  # fmt: skip
    assert done.stdout == b'{"surveys": []}'
    modules = imported(done.stderr.decode())
    assert heavy(modules) == set()
    assert below(modules, "understudy.mover.api") == {"export", "survey"}
    assert below(modules, "understudy") == {
        "certificates", "context", "errors", "model", "mover", "nbd", "units", "volumes",
    }  # fmt: skip
