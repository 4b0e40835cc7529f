"""The first contact with a server of VMware vSphere: an administrator confirms its certificate, nobody else does."""

from __future__ import annotations

import sys

import click

from understudy.cli.app import App
from understudy.cli.output import printable
from understudy.errors import Refused
from understudy.model.access import ServerCertificate
from understudy.model.job import Host


def confirmed_thumbprint(app: App, host: Host) -> str:
    """The fingerprint that the server of a new host must have from now on; empty if this machine trusts it by itself.

    :raises HostUnreachable: if it does not answer.
    :raises Refused: if nobody can be asked, or the administrator does not confirm.
    """
    shown = app.services.server_certificate(host.uri)
    if shown.trusted:
        return ""
    what = f"add host {host.name!r}"
    todo = f"compare it with what the server itself shows, then add --thumbprint {shown.thumbprint}"
    if app.json or not sys.stdin.isatty():
        why = "this machine does not trust the certificate of its server, and nobody can confirm it here"
        raise Refused(what, why, todo)
    for line in _lines(host, shown):
        click.echo(printable(line), err=True)
    if not click.confirm("Is this the certificate of your server?", err=True):
        raise Refused(what, "its certificate was not confirmed", todo)
    return shown.thumbprint


def _lines(host: Host, shown: ServerCertificate) -> list[str]:
    return [
        f"The server of host {host.name} shows a certificate that this machine does not trust by itself:",
        f"  subject  {shown.subject}",
        f"  issuer   {shown.issuer}",
        f"  valid    {shown.not_before} to {shown.not_after}",
        f"  SHA-256  {shown.thumbprint}",
    ]
