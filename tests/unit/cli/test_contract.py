"""The contract of the command line: exit status, one line of error, one document of JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.unit.cli.command_line import CommandLine
from understudy.cli.app import COMMANDS, understudy
from understudy.cli.services import Services
from understudy.errors import Cancelled, DatastoreError, HostUnreachable, error_classes

GROUPS = {
    "host": {"add", "set", "list", "check", "vms", "certificate", "remove"},
    "datastore": {"add", "set", "list", "check", "remove"},
    "proxy": {"list", "add", "invite", "enrol", "serve", "set", "check", "remove"},
    "throttle": {"add", "list", "set", "remove"},
    "job": {"create", "set", "run", "list", "show", "enable", "disable", "delete",
            "guest", "check-guest", "estimate"},
    "credential": {"add", "list", "remove"},
    "guest": {"install-agent", "remove-agent"},
    "session": {"list", "show", "stop"},
    "replica": {"list", "show", "points", "verify", "adopt", "rebuild", "remove"},
    "failover": {"start", "undo"},
}


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "home")


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("UNDERSTUDY_")} | environment
    return subprocess.run([sys.executable, "-m", "understudy", *arguments], capture_output=True, text=True, env=env,
                          check=False)  # fmt: skip


def test_every_command_of_the_contract_exists() -> None:
    context = click.Context(understudy)
    assert understudy.list_commands(context) == [*GROUPS, "sweep", "demo", "version", "controller", "enrolment"]
    for name, commands in GROUPS.items():
        group = understudy.get_command(context, name)
        assert isinstance(group, click.Group)
        assert set(group.commands) == commands
    assert set(COMMANDS) == {*GROUPS, "sweep", "demo", "version", "controller", "enrolment"}


def test_job_create_has_the_options_of_the_contract() -> None:
    group = understudy.get_command(click.Context(understudy), "job")
    assert isinstance(group, click.Group)
    options = {parameter.opts[0] for parameter in group.commands["create"].params}
    assert options == {
        "name", "--source", "--vm", "--target", "--datastore", "--points", "--suffix", "--snapshot-mode",
        "--guest-processing", "--block-size", "--compression", "--source-proxy", "--target-proxy", "--exclude-disk",
        "--connections", "--patience", "--verify-every", "--verify-rate", "--exclude", "--swap", "--free-blocks",
    }  # fmt: skip


@pytest.mark.parametrize("name", [None, *GROUPS, "version", "demo"])
def test_help_is_on_stdout_with_status_0(cli: CommandLine, name: str | None) -> None:
    result = cli.ok(*([name] if name else []), "--help")
    assert result.out.startswith("Usage: understudy")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "understudy: missing command; see 'understudy --help'"),
        (("nonsense",), "understudy: no such command 'nonsense'; see 'understudy --help'"),
        (("--nonsense",), "understudy: no such option '--nonsense'; see 'understudy --help'"),
        (("job",), "job: missing command; see 'understudy job --help'"),
        (("job", "create"), "job create: missing argument 'NAME'; see 'understudy job create --help'"),
        (("job", "create", "x"), "job create: missing option '--source'; see 'understudy job create --help'"),
        (("session", "show", "x"), "session show: invalid value for 'ID': 'x' is not a valid integer; see "
                                   "'understudy session show --help'"),
        (("host", "add", "x"), "host add: missing argument 'URI'; see 'understudy host add --help'"),
        (("host", "list", "x"), "host list: got unexpected extra argument (x); see 'understudy host list --help'"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_status_2(cli: CommandLine, arguments: tuple[str, ...], line: str) -> None:
    assert cli.refused(*arguments) == line
    assert cli("--json", *arguments).out == ""


@pytest.mark.parametrize(
    "arguments",
    [("host", "check", "x"), ("job", "show", "x"), ("session", "show", "1"), ("replica", "show", "x"),
     ("failover", "start", "x"), ("job", "run", "x"), ("host", "remove", "x"), ("replica", "adopt", "x")],
)  # fmt: skip
def test_what_is_unknown_is_one_line_and_status_2(cli: CommandLine, arguments: tuple[str, ...]) -> None:
    cli.settings["error"] = error_classes()["not_found"]("host 'x'", "no such host", "see 'understudy host list'")
    assert re.fullmatch(r"[a-z]+.*: .*; see 'understudy .*'", cli.refused(*arguments))


OWN_ERRORS = sorted(code for code, cls in error_classes().items() if cls.__module__ == "understudy.errors")


@pytest.mark.parametrize("code", OWN_ERRORS)
def test_every_error_of_the_tree_has_its_status(cli: CommandLine, code: str) -> None:
    error = error_classes()[code]("check host 'x'", "no\nreason", "try again")
    cli.settings["error"] = error
    assert cli.refused("host", "check", "x", status=error.exit_status) == "check host 'x': no reason; try again"


def test_failure_is_status_1_and_cancellation_130(cli: CommandLine) -> None:
    cli.settings["error"] = HostUnreachable("check host 'x'", "no route", "check the network")
    assert cli.refused("host", "check", "x", status=1) == "check host 'x': no route; check the network"
    cli.settings["error"] = Cancelled("verify")
    assert cli.refused("host", "check", "x", status=130) == "verify: cancelled by the operator"
    cli.settings["error"] = KeyboardInterrupt()
    assert cli.refused("host", "check", "x", status=130) == "understudy: interrupted"


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(cli: CommandLine) -> None:
    cli.settings["error"] = ValueError("odd\nvalue")
    log = cli.home / "log" / "understudy.log"
    assert cli.refused("host", "check", "x", status=1) == (
        f"understudy: unexpected error, please report it (ValueError: odd value); the details are in {log}"
    )
    assert "Traceback (most recent call last)" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700


def test_an_unexpected_error_that_cannot_be_logged_is_still_one_line(cli: CommandLine) -> None:
    cli.ok("host", "list")
    (cli.home / "log").touch()
    assert "the details could not be written" in cli.refused("host", "check", "x", status=1)


def test_a_damaged_database_is_one_line_and_status_1(cli: CommandLine) -> None:
    cli.home.mkdir()
    (cli.home / "understudy.db").write_bytes(b"nonsense" * 1000)
    assert cli.refused("host", "list", status=1).startswith(f"open configuration database {cli.home}/understudy.db: ")


def test_services_are_closed_at_the_end_even_after_an_error(cli: CommandLine) -> None:
    cli("host", "check", "x")
    assert cli.calls[-1] == ("close",)
    cli.settings["error"] = DatastoreError("x", "y")
    cli("host", "check", "x")
    assert cli.calls[-1] == ("close",)


def test_an_error_leaves_no_json(cli: CommandLine) -> None:
    result = cli("--json", "job", "show", "x")
    assert (result.status, result.out) == (2, "")


def test_the_fake_fulfils_the_protocol(cli: CommandLine) -> None:
    cli.ok("host", "check", "x")
    services: Services | None = cli.services
    assert services is not None


# --- real processes ---------------------------------------------------------------------------------------------------


def test_a_process_answers_with_one_document(tmp_path: Path) -> None:
    done = process("--home", str(tmp_path), "--json", "host", "add", "kvm 1", "qemu:///system")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "kvm 1"


def test_the_home_comes_from_the_environment(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert process("host", "list", UNDERSTUDY_HOME=str(home)).returncode == 0
    assert (home / "understudy.db").exists()
    other = tmp_path / "other"
    assert process("--home", str(other), "host", "list", UNDERSTUDY_HOME=str(home)).returncode == 0
    assert (other / "understudy.db").exists()


def test_the_default_home_is_in_var_lib() -> None:
    assert "default: /var/lib/understudy" in " ".join(process("--help").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("job", "create"), 2), (("job", "show", "x"), 2), (("host", "add", "x", "qemu+ssh://a:geheim@b/system"), 2)],
)
def test_a_process_fails_with_one_line(tmp_path: Path, arguments: tuple[str, ...], status: int) -> None:
    done = process("--home", str(tmp_path), "--json", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(r"error: [^\n]+: [^\n]+\n", done.stderr)
    assert "geheim" not in done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"geheim" not in path.read_bytes()


def test_a_reader_that_goes_away_is_one_line(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "understudy", "version"], stdout=write, stderr=subprocess.PIPE,
                          text=True, check=False)  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "error: write output: its reader went away\n")


def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom understudy.cli import run\n"
        "def services(home, database):\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(run.run(sys.argv[1:], services))"
    )
    done = subprocess.run([sys.executable, "-c", code, "--home", str(tmp_path), "host", "check", "x"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is not None
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: understudy: interrupted\n")


def test_simple_commands_import_nothing_heavy() -> None:
    code = (
        "import sys; from understudy.main import main; sys.argv = ['understudy', 'version']; main();"
        "print([name for name in ('sqlalchemy', 'alembic', 'rich', 'libvirt', 'starlette') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
