"""``understudy job check-guest`` and ``understudy guest``: what is in a guest, and the program installed there."""

from __future__ import annotations

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.output import answer, answer_line, printable
from understudy.cli.shapes import checked_guest_shape
from understudy.controller.records import CheckedGuest
from understudy.errors import GuestError


@click.command("check-guest")
@click.argument("name")
@click.option("--vm", default="", help="Only this VM of the job.")
@click.option("--accept-host-key", is_flag=True, help="The SSH host keys that the guests show now are theirs.")
@pass_app
def check_guest(app: App, name: str, vm: str, accept_host_key: bool) -> None:
    """Look at the guests of job NAME as a session would; nothing is frozen, and nothing stays there.

    JSON: [{vm, transport, problems: {TRANSPORT: WHY}, component, version, applications: [{kind, name, detail}],
    can_freeze, accepted_host_key}]; status 1 if a guest can be reached in no way.
    """
    found = app.services.check_guests(name, vm, accept_host_key)

    def text() -> None:
        for item in found:
            for line in _lines(item):
                click.echo(printable(line))

    answer(app, [checked_guest_shape(item) for item in found], text)
    bad = [item.vm for item in found if item.check.transport is None and not item.check.can_freeze]
    if bad:
        why = f"{', '.join(bad)}: neither a program nor a freeze is possible"
        raise GuestError(f"check guests of job {name!r}", why,
                         "install qemu-guest-agent there, or set up SSH: understudy job guest --help")


@click.group(cls=Group)
def guest() -> None:
    """The program for guest processing, installed in guests for good."""


@guest.command("install-agent")
@click.argument("job")
@click.argument("vm")
@pass_app
def install(app: App, job: str, vm: str) -> None:
    """Install the program in the guest of VM of JOB; sessions use it from then on. JSON: {vm, transport, installed}."""
    _change(app, job, vm, install=True)


@guest.command("remove-agent")
@click.argument("job")
@click.argument("vm")
@pass_app
def remove(app: App, job: str, vm: str) -> None:
    """Remove the installed program from the guest of VM of JOB. JSON: {vm, transport, installed}."""
    _change(app, job, vm, install=False)


def _change(app: App, job: str, vm: str, *, install: bool) -> None:
    transport = app.services.change_agent(job, vm, install=install).value
    done = "installed in" if install else "removed from"
    answer_line(app, {"vm": vm, "transport": transport, "installed": install},
                f"The program is {done} the guest of {vm} (by {transport}).")


def _lines(item: CheckedGuest) -> list[str]:
    check = item.check
    how = f"by {check.transport.value}, {check.component.value} {check.version}" if check.transport else "no program"
    freeze = "file systems can be frozen" if check.can_freeze else "file systems cannot be frozen"
    lines = [f"{item.vm}: {how}; {freeze}"]
    lines += [f"{item.vm}: {kind} {name}" + (f" ({detail})" if detail else "")
              for kind, name, detail in check.applications]
    lines += [f"{item.vm}: {transport.value}: {why}" for transport, why in check.problems.items()]
    return lines + ([f"{item.vm}: accepted host key {item.accepted}"] if item.accepted else [])
