"""``understudy credential``: who logs in to guests, and to hosts of VMware vSphere."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.output import answer_line, answer_table
from understudy.controller import credentials
from understudy.controller.credentials import Credential, CredentialKind
from understudy.errors import UsageError


@click.group(cls=Group)
def credential() -> None:
    """Credentials: users of guests, for guest processing over SSH, and of VMware vSphere.

    Secrets are stored encrypted and never shown.
    """


@credential.command()
@click.argument("name")
@click.option("--user", default="root", show_default=True,
              help="User in the guest: root, or one that may use sudo; or user of a vCenter, e.g."
                   " understudy@vsphere.local.")  # fmt: skip
@click.option("--key", "key_file", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="Private key without a passphrase; without it, a password is asked for.")  # fmt: skip
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@pass_app
def add(app: App, name: str, user: str, key_file: Path | None, password_stdin: bool) -> None:
    """Store credential NAME. JSON: {name, user, kind}; `kind` is `password` or `key`."""
    what = f"add credential {name!r}"
    if key_file is not None and password_stdin:
        raise UsageError(what, "--key and --password-stdin exclude each other", "give one of them")
    if key_file is not None:
        kind, secret = CredentialKind.KEY, _key(what, key_file)
    elif password_stdin:
        kind, secret = CredentialKind.PASSWORD, sys.stdin.readline().rstrip("\n")
    else:
        kind, secret = CredentialKind.PASSWORD, click.prompt("Password", hide_input=True, err=True)
    credentials.add_credential(app.database, Credential(name, user, kind, secret))
    answer_line(app, {"name": name, "user": user, "kind": kind.value}, f"Credential {name} added.")


@credential.command("list")
@pass_app
def list_(app: App) -> None:
    """List credentials. JSON: [{name, user, kind}]."""
    found = [{"name": name, "user": user, "kind": kind.value}
             for name, user, kind in credentials.list_credentials(app.database)]
    columns = {"Credential": "name", "User": "user", "Kind": "kind"}
    answer_table(app, found, columns, "No credentials. Store one: understudy credential add --help")


@credential.command()
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Forget credential NAME. JSON: {name, removed}."""
    credentials.remove_credential(app.database, name)
    answer_line(app, {"name": name, "removed": True}, f"Credential {name} removed.")


def _key(what: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else "it is no text"
        raise UsageError(what, f"{path}: {why}", "name a private key in OpenSSH's or PEM format") from exc
