"""``understudy proxy``: data movers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.output import answer, answer_facts, answer_line, answer_table, printable
from understudy.controller import catalog
from understudy.controller.records import InvitedProxy, ProxyWish
from understudy.errors import MoverError, UsageError
from understudy.model.job import Proxy
from understudy.mover.settings import DEFAULT_STATE_DIR, ServiceSettings
from understudy.units import parse_duration

UNIT = "understudy-proxy.service"
UNIT_DIR = Path("/etc/systemd/system")
#: There only while systemd is what started this machine.
SYSTEMD = Path("/run/systemd/system")

SLOTS = click.IntRange(1, 1000)
COLUMNS = {
    "Proxy": "name", "Kind": "kind", "Host": "host", "Task slots": "slots", "Control address": "control_address",
    "Data address": "data_address", "Certificate until": "certificate_expires",
}  # fmt: skip


@click.group(cls=Group)
def proxy() -> None:
    """Proxies: processes that read and write disk data.

    Those of kind "child" run on the controller's machine, started when needed. Those of kind "service" run on other
    hosts: "invite" one on the controller, then "enrol" it on its host with the token.
    """


@proxy.command()
@click.argument("name")
@click.option("--host", default="", help="The host whose disks it moves; without it, those of every host.")
@click.option("--slots", type=SLOTS, default=None,
              help="Disks that it moves at the same time; without it, one for each core.")  # fmt: skip
@pass_app
def add(app: App, name: str, host: str, slots: int | None) -> None:
    """Add proxy NAME on the controller's machine.

    JSON: {name, host, slots, kind, identity, control_address, data_address, certificate_expires}.
    """
    added = catalog.add_proxy(app.database, Proxy(name, host, slots or 0))
    answer_line(app, asdict(added), f"Proxy {name} added.")


@proxy.command()
@click.argument("name")
@click.option("--host", default="", help="The host whose disks it will move; without it, those of every host.")
@click.option("--slots", type=SLOTS, default=None,
              help="Disks that it moves at the same time; without it, one for each core.")  # fmt: skip
@click.option("--valid", default="1h", show_default=True, help="How long the token can be used, e.g. 30m, 1h, 2d.")
@click.option("--controller", default="", metavar="ADDRESS[:PORT]",
              help="Where the host reaches this controller; without it, the address of the default route, port"
                   " 7341.")  # fmt: skip
@pass_app
def invite(app: App, name: str, host: str, slots: int | None, valid: str, controller: str) -> None:
    """Invite a host to become proxy NAME, and show the one-time token for 'proxy enrol' there.

    JSON: {name, token, expires_at, controller}.
    """
    try:
        valid_s = parse_duration(valid)
    except ValueError as exc:
        raise UsageError("proxy invite", str(exc), "use e.g. 30m, 1h or 2d") from exc
    invited = app.services.invite_proxy(ProxyWish(name, host, slots or 0, valid_s, controller))
    answer(app, asdict(invited), lambda: _show_invited(invited))


@proxy.command()
@click.argument("token")
@click.option("--state-dir", type=click.Path(path_type=Path), default=DEFAULT_STATE_DIR, show_default=True,
              help="Directory for the key and the settings of the proxy.")  # fmt: skip
@click.option("--control-address", default="", metavar="ADDRESS[:PORT]",
              help="Where the controller reaches this host; without it, where it sees this host come from, port"
                   " 7342.")  # fmt: skip
@click.option("--data-address", default="", metavar="ADDRESS[:PORT]",
              help="Where other proxies reach this host; without it, the same, port 7343.")  # fmt: skip
@click.option("--no-start", is_flag=True, help="Do not start the service.")
@pass_app
def enrol(app: App, token: str, state_dir: Path, control_address: str, data_address: str, no_start: bool) -> None:
    """Make this host a proxy of the controller that made TOKEN, and start the service.

    The private key is made here and stays here. JSON: {name, identity, state_dir, started}.
    """
    from understudy.mover.enrol import Place, enrol
    from understudy.mover.token import parse_token

    settings = enrol(parse_token(token), Place(state_dir.absolute(), control_address, data_address))
    started = not no_start and SYSTEMD.exists()
    if started:
        start_service(state_dir.absolute())
    document = {"name": settings.name, "identity": settings.identity, "state_dir": str(state_dir.absolute()),
                "started": started}
    answer(app, document, lambda: _show_enrolled(settings, state_dir.absolute(), started))


@proxy.command()
@click.option("--state-dir", type=click.Path(path_type=Path), default=DEFAULT_STATE_DIR, show_default=True,
              help="Directory that 'proxy enrol' filled.")  # fmt: skip
@pass_app
def serve(app: App, state_dir: Path) -> None:
    """Be the proxy that this host was enrolled as, until SIGTERM. JSON: {done}."""
    from understudy.mover.service import serve

    serve(state_dir.absolute())
    answer_line(app, {"done": True}, "The proxy has ended.")


@proxy.command("set")
@click.argument("name")
@click.option("--slots", type=SLOTS, default=None, help="Disks that it moves at the same time.")
@click.option("--host", default=None, help="The host whose disks it moves; an empty text for those of every host.")
@click.option("--control-address", default=None, metavar="HOST:PORT", help="Where the controller reaches a service.")
@click.option("--data-address", default=None, metavar="HOST:PORT",
              help="Where other proxies reach it; an empty text for nowhere.")  # fmt: skip
@pass_app
def set_(
    app: App, name: str, slots: int | None, host: str | None, control_address: str | None, data_address: str | None
) -> None:
    """Change settings of proxy NAME, for sessions that begin later.

    JSON: {name, host, slots, kind, identity, control_address, data_address, certificate_expires}.
    """
    from understudy.controller.proxies import ProxyChange, change_proxy

    change = ProxyChange(slots, host, control_address, data_address)
    if change == ProxyChange():
        raise UsageError("proxy set", "nothing to change", "see 'understudy proxy set --help'")
    answer_line(app, asdict(change_proxy(app.database, name, change)), f"Proxy {name} changed.")


@proxy.command("list")
@pass_app
def list_(app: App) -> None:
    """List proxies.

    JSON: [{name, host, slots, kind, identity, control_address, data_address, certificate_expires}].
    """
    answer_table(app, [asdict(item) for item in catalog.list_proxies(app.database)], COLUMNS, "No proxies.")


@proxy.command()
@click.argument("name")
@pass_app
def check(app: App, name: str) -> None:
    """Start proxy NAME, or connect to it, and ask who it is.

    JSON: {name, pid, versions, kind, identity, cores, certificate_expires, clock_skew_s, warnings}.
    """
    checked = app.services.check_proxy(name)
    info = checked.info
    answer_facts(app, {
        "name": name, "pid": info.pid, "versions": dict(info.versions), "kind": checked.proxy.kind.value,
        "identity": info.identity, "cores": info.cores, "certificate_expires": checked.proxy.certificate_expires,
        "clock_skew_s": round(checked.clock_skew_s, 1), "warnings": list(checked.warnings),
    })  # fmt: skip


@proxy.command()
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Forget proxy NAME, and revoke its identity. JSON: {name, removed, told}.

    "told" says whether a service destroyed its credentials; the revocation holds without that: the controller does not
    talk to this identity any more, and lets nobody else do so.
    """
    removed = app.services.remove_proxy(name)
    line = f"Proxy {name} removed."
    if removed.told is False:
        line += " Its service could not be told; the revocation holds without that. End it there by hand."
    answer_line(app, {"name": name, "removed": True, "told": removed.told}, line)


def unit_for(state_dir: Path) -> str:
    """The unit that we ship, for this program and ``state_dir``."""
    unit = Path(__file__).with_name(UNIT).read_text()
    shipped = f"/usr/local/bin/understudy proxy serve --state-dir {DEFAULT_STATE_DIR}"
    # In a unit's command line "%" and "$" begin something, and quotes keep blanks together.
    program, place = (str(path).replace("%", "%%") for path in (sys.executable, state_dir))
    command = f'"{program}" -m understudy proxy serve --state-dir "{place.replace("$", "$$")}"'
    return unit.replace(shipped, command).replace(f"Exists={DEFAULT_STATE_DIR}", f"Exists={place}")


def start_service(state_dir: Path) -> None:
    """Install the unit, and start it now and with the machine.

    :raises MoverError: if systemd does not start it.
    """
    try:
        (UNIT_DIR / UNIT).write_text(unit_for(state_dir))
        for command in (["daemon-reload"], ["enable", UNIT], ["restart", UNIT]):
            subprocess.run(["systemctl", *command], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        why = exc.stderr.strip() if isinstance(exc, subprocess.CalledProcessError) else str(exc)
        raise MoverError("start the proxy", f"this host is enrolled, but systemd did not start the service: {why}",
                         f"run 'understudy proxy serve --state-dir {state_dir}'") from exc


def _show_invited(invited: InvitedProxy) -> None:
    click.echo(f"Run this on the host, once, before {invited.expires_at}:")
    click.echo(f"understudy proxy enrol {invited.token}")


def _show_enrolled(settings: ServiceSettings, state_dir: Path, started: bool) -> None:
    click.echo(printable(f"This host is now proxy {settings.name}."))
    if started:
        click.echo(f"Its service runs: systemctl status {UNIT}")
    else:
        click.echo(f"Start it: understudy proxy serve --state-dir {state_dir}")
