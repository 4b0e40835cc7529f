"""``understudy sweep``: what dead sessions left, everywhere."""

from __future__ import annotations

import click

from understudy.cli.app import App, pass_app
from understudy.cli.output import answer, cell, printable, table
from understudy.cli.shapes import Shape, swept_shape
from understudy.errors import UnderstudyError

_LEFT_ALONE = ("keep", "skip", "not_ours")


@click.command()
@click.option("--dry-run", is_flag=True, help="List only; works while sessions run, too.")
@click.option("--host", "hosts", multiple=True, help="Only this host; may be given again. Without it, all.")
@pass_app
def sweep(app: App, dry_run: bool, hosts: tuple[str, ...]) -> None:
    """Find what dead sessions left on hosts, datastores and proxies, and remove it.

    \b
    JSON: [{kind, place, owner, name, session, action, why, done, problem, commands}].

    Fails if something could not be removed; `commands` are what an administrator types instead. `action` is one
    of thaw, end, commit, finish, remove; or keep, skip, not_ours for what stays. Refused while a controller runs.
    """
    documents = [swept_shape(item, dry_run) for item in app.services.sweep(hosts, dry_run)]
    answer(app, documents, lambda: _show(documents, dry_run))
    problems = [document for document in documents if document["problem"]]
    if problems:
        shown = "; ".join(f"{_object(document)}: {document['problem']}" for document in problems)
        commands = [command for document in problems for command in document["commands"]]
        raise UnderstudyError("sweep", shown, f"by hand: {'; '.join(f'`{line}`' for line in commands)}"
                              if commands else "sweep again")  # fmt: skip


def _show(documents: list[Shape], dry_run: bool) -> None:
    if not documents:
        click.echo("Nothing was left.")
        return
    titles = ("What", "Where", "Of", "Name", "Session", "To do" if dry_run else "Done", "Why")
    table(titles, [_row(document, dry_run) for document in documents])
    by_hand = [document for document in documents if document["commands"] and
               (document["problem"] or document["action"] == "not_ours")]  # fmt: skip
    for document in by_hand:
        click.echo(printable(f"\nBy hand, {_object(document)}:".lstrip()))
        for command in document["commands"]:
            click.echo(f"  {printable(command)}")


def _row(document: Shape, dry_run: bool) -> tuple[str, ...]:
    done = document["action"]
    if document["problem"]:
        done = "failed"
    elif not dry_run and done not in _LEFT_ALONE:
        done = f"{done}: done"
    return (document["kind"], cell(document["place"]), cell(document["owner"]), cell(document["name"]),
            cell(document["session"]), done, document["problem"] or document["why"])  # fmt: skip


def _object(document: Shape) -> str:
    words = [document["kind"], document["name"], "of", document["owner"] or document["place"]]
    return " ".join(word for word in words if word)
