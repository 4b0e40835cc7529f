"""``understudy job``: what is replicated, where to, and running it."""

from __future__ import annotations

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.estimate import estimate
from understudy.cli.follow import run_to_end
from understudy.cli.guest import check_guest
from understudy.cli.guest_settings import guest
from understudy.cli.output import answer_facts, answer_line, answer_table
from understudy.cli.rates import parsed_rate
from understudy.cli.shapes import job_shape, session_shape
from understudy.cli.summary import raise_if_bad
from understudy.controller import jobs, journal
from understudy.controller.recovery import end_dead_sessions
from understudy.controller.reports import session_report
from understudy.errors import UnderstudyError, UsageError
from understudy.model.guest import GuestPolicy
from understudy.model.job import (
    BLOCK_SIZES,
    DEFAULT_CONNECTIONS,
    DEFAULT_POINTS,
    DEFAULT_SUFFIX,
    Compression,
    Job,
    SnapshotMode,
)
from understudy.units import parse_duration
from understudy.volumes.masks import drive_of

DEFAULT_BLOCK_SIZE_NAME = "1M"
DEFAULT_PATIENCE = "30m"
MAX_PATIENCE_S = 30 * 86400
OFF = "off"
EXCLUDE, KEEP = "exclude", "keep"
EXCLUDE_OR_KEEP = click.Choice([EXCLUDE, KEEP])
MASK_HELP = "Files that are left out, e.g. web:/var/cache/** or 'C:\\Temp\\**'; may be given again."
SWAP_HELP = "Whether what is in swap areas, swap files and page files is left out."
FREE_HELP = "Whether blocks that hold no file are left out, where that is proved."
CODEC = click.Choice([codec.value for codec in Compression])
CODEC_HELP = "Codec between two proxies."
READS_HELP = "Proxy that reads; without it, the best one is chosen for each task."
WRITES_HELP = "Proxy that writes; without it, the best one is chosen for each task."
CONNECTIONS = click.IntRange(1, 64)
CONNECTIONS_HELP = "Transfer connections for each disk between two proxies."
PATIENCE_HELP = "How long a transfer waits for a lost line or proxy, e.g. 90s, 30m, 2h."


@click.group(cls=Group)
def job() -> None:
    """Jobs: which VMs are replicated, where to, and how."""


job.add_command(guest)
job.add_command(check_guest)
job.add_command(estimate)


@job.command()
@click.argument("name")
@click.option("--source", "sources", multiple=True, required=True,
              help="Host where the VMs run; given again, a host to which they may migrate.")  # fmt: skip
@click.option("--vm", "vms", multiple=True, required=True, help="VM to replicate; may be given again.")
@click.option("--target", required=True, help="Host where the replicas are kept.")
@click.option("--datastore", required=True, help="Datastore of the target host.")
@click.option("--points", type=click.IntRange(1, jobs.MAX_POINTS), default=DEFAULT_POINTS, show_default=True,
              help="Restore points to keep.")  # fmt: skip
@click.option("--suffix", default=DEFAULT_SUFFIX, show_default=True, help="Ends the names of the replica VMs.")
@click.option("--snapshot-mode", type=click.Choice([mode.value for mode in SnapshotMode]),
              default=SnapshotMode.AUTO.value, show_default=True, help="How the source is held still.")  # fmt: skip
@click.option("--guest-processing", type=click.Choice([policy.value for policy in GuestPolicy]),
              default=GuestPolicy.TRY.value, show_default=True, help="Whether the guest is frozen.")  # fmt: skip
@click.option("--block-size", type=click.Choice(list(BLOCK_SIZES)), default=DEFAULT_BLOCK_SIZE_NAME, show_default=True,
              help="Bytes that one digest stands for.")  # fmt: skip
@click.option("--compression", type=CODEC, default=Compression.ZSTD.value, show_default=True, help=CODEC_HELP)
@click.option("--source-proxy", default="", help=READS_HELP)
@click.option("--target-proxy", default="", help=WRITES_HELP)
@click.option("--connections", type=CONNECTIONS, default=DEFAULT_CONNECTIONS, show_default=True, help=CONNECTIONS_HELP)
@click.option("--patience", default=DEFAULT_PATIENCE, show_default=True, metavar="DURATION", help=PATIENCE_HELP)
@click.option("--exclude-disk", "excluded", multiple=True, metavar="VM:DISK",
              help="Disk that is not replicated; may be given again.")  # fmt: skip
@click.option("--exclude", "masks", multiple=True, metavar="[VM:]MASK", help=MASK_HELP)
@click.option("--swap", type=EXCLUDE_OR_KEEP, default=EXCLUDE, show_default=True, help=SWAP_HELP)
@click.option("--free-blocks", type=EXCLUDE_OR_KEEP, default=KEEP, show_default=True, help=FREE_HELP)
@click.option("--verify-every", default=OFF, show_default=True, metavar="DURATION|off",
              help="How often 'replica verify --due' proves the newest restore point, e.g. 12h, 7d.")  # fmt: skip
@click.option("--verify-rate", default=OFF, show_default=True, metavar="RATE|off",
              help="What verifying may read in a second, e.g. 100MiB.")  # fmt: skip
@pass_app
def create(
    app: App,
    *,
    name: str,
    sources: tuple[str, ...],
    vms: tuple[str, ...],
    target: str,
    datastore: str,
    points: int,
    suffix: str,
    snapshot_mode: str,
    guest_processing: str,
    block_size: str,
    compression: str,
    source_proxy: str,
    target_proxy: str,
    connections: int,
    patience: str,
    excluded: tuple[str, ...],
    masks: tuple[str, ...],
    swap: str,
    free_blocks: str,
    verify_every: str,
    verify_rate: str,
) -> None:
    """Create job NAME. JSON: as of `job show`."""
    created = Job(
        id=jobs.new_job_id(),
        name=name,
        source=sources[0],
        target=target,
        datastore=datastore,
        vms=vms,
        points=points,
        suffix=suffix,
        snapshot_mode=SnapshotMode(snapshot_mode),
        guest_policy=GuestPolicy(guest_processing),
        block_size=BLOCK_SIZES[block_size],
        compression=Compression(compression),
        source_proxy=source_proxy,
        target_proxy=target_proxy,
        excluded_disks=tuple(_excluded_disk(name, text, vms) for text in excluded),
        connections=connections,
        patience_s=_patience_s(f"create job {name!r}", patience),
        other_sources=sources[1:],
        verify_every_s=_verify_every_s(f"create job {name!r}", verify_every),
        verify_rate=parsed_rate(f"create job {name!r}", verify_rate),
        masks=tuple(_mask(f"create job {name!r}", vms, text) for text in masks),
        exclude_swap=swap == EXCLUDE,
        exclude_free=free_blocks == EXCLUDE,
    )
    answer_line(app, job_shape(jobs.create_job(app.database, created)), f"Job {name} created.")


@job.command()
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Start it, and return at once.")
@click.option("--full-scan", is_flag=True, help="Read every disk whole and compare digests; trust no tracking.")
@pass_app
def run(app: App, name: str, no_wait: bool, full_scan: bool) -> None:
    """Run job NAME now, and show how it goes. JSON: as of `session show`."""
    # Opened before anything is queued: a session that nobody can run must not be left behind.
    services = app.services
    interrupted = services.interrupted_session(name)
    session_id = journal.insert_session(app.database, name, full_scan) if interrupted is None else interrupted
    if interrupted is not None and not app.json:
        click.echo(f"Session {interrupted} was interrupted while its disks were under way; it goes on.")
        if full_scan:
            click.echo("It began before --full-scan was wished for: run the job again after it.")
    if not no_wait:
        raise_if_bad(run_to_end(app, session_id))
        return
    try:
        services.start_background_controller()
    except UnderstudyError:
        if interrupted is None:
            journal.request_cancel(app.database, session_id)
        raise
    report = session_report(app.database, session_id)
    answer_line(app, session_shape(report), f"Session {session_id} of job {name} {report.state}.")


@job.command("list")
@pass_app
def list_(app: App) -> None:
    """List jobs. JSON: array of what `job show` gives."""
    columns = {"Job": "name", "Enabled": "enabled", "Source": "source", "VMs": "vms", "Target": "target",
               "Datastore": "datastore", "Points": "points"}  # fmt: skip
    documents = [job_shape(item) for item in jobs.list_jobs(app.database)]
    answer_table(app, documents, columns, "No jobs. Create one: understudy job create --help")


@job.command()
@click.argument("name")
@pass_app
def show(app: App, name: str) -> None:
    """Show the settings of job NAME.

    JSON: {name, id, enabled, source, other_sources, vms, target, datastore, points, suffix, snapshot_mode,
    guest_processing, block_size, compression, source_proxy, target_proxy, connections, patience_s,
    excluded_disks: [{vm, disk}], verify_every_s, verify_rate, masks: [{vm, mask}], exclude_swap, exclude_free,
    guests: [{vm, policy, transports, address, credential, pre_freeze, post_thaw, script_timeout_s, applications,
    freeze_deadline_s, applications_percent}]}; 0 is off; an empty `vm` stands for all, and null, 0 or empty in
    `guests` for the default.
    """
    answer_facts(app, job_shape(jobs.get_job(app.database, name)))


@job.command("set")
@click.argument("name")
@click.option("--points", type=click.IntRange(1, jobs.MAX_POINTS), default=None, help="Restore points to keep.")
@click.option("--verify-every", default=None, metavar="DURATION|off",
              help="How often 'replica verify --due' proves the newest restore point, e.g. 12h, 7d.")  # fmt: skip
@click.option("--verify-rate", default=None, metavar="RATE|off",
              help="What verifying may read in a second, e.g. 100MiB.")  # fmt: skip
@click.option("--exclude", "masks", multiple=True, metavar="[VM:]MASK", help=f"{MASK_HELP} Replaces all masks.")
@click.option("--no-excludes", is_flag=True, help="Remove all masks.")
@click.option("--swap", type=EXCLUDE_OR_KEEP, default=None, help=SWAP_HELP)
@click.option("--free-blocks", type=EXCLUDE_OR_KEEP, default=None, help=FREE_HELP)
@click.option("--compression", type=CODEC, default=None, help=CODEC_HELP)
@click.option("--source-proxy", default=None, metavar="NAME|''", help=READS_HELP)
@click.option("--target-proxy", default=None, metavar="NAME|''", help=WRITES_HELP)
@click.option("--connections", type=CONNECTIONS, default=None, help=CONNECTIONS_HELP)
@click.option("--patience", default=None, metavar="DURATION", help=PATIENCE_HELP)
@pass_app
def set_(
    app: App, *, name: str, points: int | None, verify_every: str | None, verify_rate: str | None,
    masks: tuple[str, ...], no_excludes: bool, swap: str | None, free_blocks: str | None, compression: str | None,
    source_proxy: str | None, target_proxy: str | None, connections: int | None, patience: str | None,
) -> None:
    """Change settings of job NAME, for what begins later; what is not named stays. JSON: as of `job show`."""
    what = f"set job {name!r}"
    change = jobs.JobChange(
        points,
        None if verify_every is None else _verify_every_s(what, verify_every),
        None if verify_rate is None else parsed_rate(what, verify_rate),
        _masks(app, what, name, masks, no_excludes),
        None if swap is None else swap == EXCLUDE,
        None if free_blocks is None else free_blocks == EXCLUDE,
        source_proxy=source_proxy,
        target_proxy=target_proxy,
        connections=connections,
        compression=None if compression is None else Compression(compression),
        patience_s=None if patience is None else _patience_s(what, patience),
    )
    if change == jobs.JobChange():
        raise UsageError(what, "nothing to change was named", "see 'understudy job set --help'")
    answer_line(app, job_shape(jobs.change_job(app.database, name, change)), f"Job {name} changed.")


@job.command()
@click.argument("name")
@pass_app
def enable(app: App, name: str) -> None:
    """Let job NAME run again. JSON: as of `job show`."""
    answer_line(app, job_shape(jobs.set_enabled(app.database, name, True)), f"Job {name} enabled.")


@job.command()
@click.argument("name")
@pass_app
def disable(app: App, name: str) -> None:
    """Keep job NAME from running; a running session goes on. JSON: as of `job show`."""
    answer_line(app, job_shape(jobs.set_enabled(app.database, name, False)), f"Job {name} disabled.")


@job.command()
@click.argument("name")
@pass_app
def delete(app: App, name: str) -> None:
    """Forget job NAME; its replicas stay. JSON: {name, removed}."""
    end_dead_sessions(app.database, lambda left: left.job.name != name)
    jobs.delete_job(app.database, name)
    answer_line(app, {"name": name, "removed": True}, f"Job {name} deleted.")


def _excluded_disk(job_name: str, text: str, vms: tuple[str, ...]) -> tuple[str, str]:
    """``VM:DISK``; both names may have colons themselves, so the VMs of the job tell."""
    named = [vm for vm in vms if text.startswith(f"{vm}:")]
    vm = max(named, key=len, default=text.rpartition(":")[0])
    disk = text[len(vm) + 1 :]
    if not vm or not disk:
        raise UsageError(f"create job {job_name!r}", f"{text!r} names no disk", "give --exclude-disk VM:DISK")
    return vm, disk


def _masks(
    app: App, what: str, job_name: str, texts: tuple[str, ...], none: bool
) -> tuple[tuple[str, str], ...] | None:
    """The masks that replace all others; None if they stay."""
    if texts and none:
        raise UsageError(what, "--exclude and --no-excludes exclude each other", "give one of them")
    if not texts and not none:
        return None
    vms = jobs.get_job(app.database, job_name).vms
    return tuple(_mask(what, vms, text) for text in texts)


def _mask(what: str, vms: tuple[str, ...], text: str) -> tuple[str, str]:
    """``[VM:]MASK`` as VM, or empty for all, and mask; names of VMs and drive letters have colons as well."""
    for vm in sorted(vms, key=len, reverse=True):
        if text.startswith(f"{vm}:") and drive_of(text)[0] == "":
            return vm, text[len(vm) + 1 :]
    if not text.startswith(("/", "\\")) and not drive_of(text)[0]:
        raise UsageError(what, f"{text!r} names no file of a VM of this job", "give e.g. web:/var/cache/** or /tmp/**")
    return "", text


def _patience_s(what: str, text: str) -> int:
    todo = "use 1s to 30d, e.g. 90s, 30m or 2h"
    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise UsageError(what, str(exc), todo) from exc
    if not 1 <= seconds <= MAX_PATIENCE_S:
        raise UsageError(what, f"a patience of {text} is not possible", todo)
    return seconds


def _verify_every_s(what: str, text: str) -> int:
    """Seconds; 0 for off."""
    if text.strip().lower() == OFF:
        return 0
    try:
        seconds = parse_duration(text)
    except ValueError as exc:
        raise UsageError(what, str(exc), "use e.g. 12h or 7d, or off") from exc
    if not seconds:
        raise UsageError(what, "a schedule without time between is not possible", "use e.g. 12h or 7d, or off")
    return seconds
