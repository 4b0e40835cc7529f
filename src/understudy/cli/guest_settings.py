"""``understudy job guest``: how the guests of a job are processed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from understudy.cli.app import App, pass_app
from understudy.cli.output import answer_line
from understudy.cli.shapes import job_shape
from understudy.controller import jobs
from understudy.errors import UsageError
from understudy.model.guest import GuestPolicy, GuestSettings, GuestTransport

DEFAULT = "default"


@click.command("guest")
@click.argument("name")
@click.option("--vm", default="", help="Only for this VM of the job; without it, for all that have nothing else set.")
@click.option("--policy", type=click.Choice([*(policy.value for policy in GuestPolicy), DEFAULT]), default=None,
              help="Whether a task may go on without guest processing, or fails.")  # fmt: skip
@click.option("--transport", "transports", multiple=True, type=click.Choice([item.value for item in GuestTransport]),
              help="How the guest is reached; given again, what is tried next.")  # fmt: skip
@click.option("--address", default=None, metavar="HOST[:PORT]", help="Where SSH finds the guest of --vm.")
@click.option("--credential", default=None,
              help="Who logs in to the guest, by SSH or VMware Tools; see 'understudy credential'.")  # fmt: skip
@click.option("--pre-freeze", "pre_freeze", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Script that runs in the guest before the freeze; given again, one after the other.")  # fmt: skip
@click.option("--post-thaw", "post_thaw", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Script that runs in the guest after the thaw; given again, one after the other.")  # fmt: skip
@click.option("--script-timeout", type=click.IntRange(1, jobs.MAX_SCRIPT_TIMEOUT_S), default=None, metavar="SECONDS",
              help="How long one script may take.")  # fmt: skip
@click.option("--freeze-deadline", type=click.IntRange(jobs.MIN_FREEZE_DEADLINE_S, jobs.MAX_FREEZE_DEADLINE_S),
              default=None, metavar="SECONDS", help="How long a guest may be frozen.")  # fmt: skip
@click.option("--applications-share", type=click.IntRange(jobs.MIN_APPLICATIONS_PERCENT, jobs.MAX_APPLICATIONS_PERCENT),
              default=None, metavar="PERCENT", help="The share of that in which applications must come to rest.")
@click.option("--applications/--no-applications", default=None, help="Whether applications are quiesced.")
@click.option("--reset", is_flag=True, help="Forget the former settings first.")
@pass_app
def guest(
    app: App, *, name: str, vm: str, policy: str | None, transports: tuple[str, ...], address: str | None,
    credential: str | None, pre_freeze: tuple[Path, ...], post_thaw: tuple[Path, ...], script_timeout: int | None,
    freeze_deadline: int | None, applications_share: int | None, applications: bool | None, reset: bool,
) -> None:
    """Set how the guests of job NAME are processed; what is not named stays. JSON: as of `job show`."""
    what = f"set guest processing of job {name!r}"
    job = jobs.get_job(app.database, name)
    before = next((item for item in job.guests if item.vm == vm and not reset), GuestSettings(vm))
    after = replace(
        before,
        policy=before.policy if policy is None else None if policy == DEFAULT else GuestPolicy(policy),
        transports=tuple(GuestTransport(item) for item in transports) or before.transports,
        address=before.address if address is None else address,
        credential=before.credential if credential is None else credential,
        pre_freeze=tuple(str(path.absolute()) for path in pre_freeze) or before.pre_freeze,
        post_thaw=tuple(str(path.absolute()) for path in post_thaw) or before.post_thaw,
        script_timeout_s=before.script_timeout_s if script_timeout is None else script_timeout,
        applications=before.applications if applications is None else applications,
        freeze_deadline_s=before.freeze_deadline_s if freeze_deadline is None else freeze_deadline,
        applications_percent=before.applications_percent if applications_share is None else applications_share,
    )
    if after == before and not reset:
        raise UsageError(what, "nothing to change was named", "see 'understudy job guest --help'")
    others = tuple(item for item in job.guests if item.vm != vm)
    kept = (*others, after) if after != GuestSettings(vm) else others
    changed = jobs.change_job(app.database, name, jobs.JobChange(guests=kept))
    answer_line(app, job_shape(changed), f"Job {name} changed.")
