"""The ``understudy`` command: its global options, its groups, and what every command gets."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from understudy.cli.services import OpenServices, Services
    from understudy.controller.database import Database

HOME_VARIABLE = "UNDERSTUDY_HOME"
DEFAULT_HOME = Path("/var/lib/understudy")

# Where each command lives. They are imported when called: SQLAlchemy alone costs 0.3 s.
COMMANDS = {
    "host": "understudy.cli.host:host",
    "datastore": "understudy.cli.datastore:datastore",
    "proxy": "understudy.cli.proxy:proxy",
    "throttle": "understudy.cli.throttle:throttle",
    "job": "understudy.cli.job:job",
    "credential": "understudy.cli.credential:credential",
    "guest": "understudy.cli.guest:guest",
    "session": "understudy.cli.session:session",
    "replica": "understudy.cli.replica:replica",
    "failover": "understudy.cli.failover:failover",
    "sweep": "understudy.cli.sweep:sweep",
    "demo": "understudy.cli.single:demo",
    "version": "understudy.cli.single:version",
    "controller": "understudy.cli.single:controller",
    "enrolment": "understudy.cli.single:enrolment",
}


@dataclass
class App:
    """What every command gets: the global options, and the controller's parts, opened at first use.

    :ivar json: one JSON document on stdout, nothing else there.
    """

    home: Path
    json: bool
    open_services: OpenServices
    _resources: ExitStack = field(default_factory=ExitStack)
    _database: Database | None = None
    _services: Services | None = None

    @property
    def database(self) -> Database:
        """The configuration database, open."""
        if self._database is None:
            from understudy.controller.database import open_database

            self._database = open_database(self.home)
            self._resources.callback(self._database.close)
        return self._database

    @property
    def services(self) -> Services:
        """The controller's acts, ready."""
        if self._services is None:
            from understudy.cli.logfile import log_to_file

            log_to_file(self.home)
            self._services = self.open_services(self.home, self.database)
            self._resources.callback(self._services.close)
        return self._services

    def close(self) -> None:
        """Close what was opened."""
        self._resources.close()


class Group(click.Group):
    """A group that complains on one line, like everything else, when its command is missing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.no_args_is_help = False


class LazyGroup(Group):
    """The top group: its commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of the manual."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the command, or None if there is no such one."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group("understudy", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", type=click.Path(path_type=Path), envvar=HOME_VARIABLE, default=DEFAULT_HOME, show_default=True,
              help=f"Directory of the controller; also {HOME_VARIABLE}.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")
@click.pass_context
def understudy(ctx: click.Context, home: Path, as_json: bool) -> None:
    """Keep ready-to-start replicas of running virtual machines, and start them when the original is lost."""
    open_services: OpenServices = ctx.obj
    app = App(home.absolute(), as_json, open_services)
    ctx.obj = app
    ctx.call_on_close(app.close)


pass_app = click.make_pass_decorator(App)
