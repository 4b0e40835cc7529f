"""``understudy host``: hypervisor hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from understudy.cli.app import App, Group, pass_app
from understudy.cli.first_contact import confirmed_thumbprint
from understudy.cli.host_check import facts_shape, show_preflight
from understudy.cli.live_test import DEFAULT_REPORT, ReportWish, run_live_test
from understudy.cli.output import answer, answer_facts, answer_line, answer_table, table
from understudy.cli.shapes import Shape, host_shape, vm_shape
from understudy.controller import catalog
from understudy.controller.host_rules import MAX_SNAPSHOTS
from understudy.errors import Refused
from understudy.model.access import DiskLibrary
from understudy.model.job import DEFAULT_SNAPSHOTS, Host
from understudy.model.live_test import LiveTestWish
from understudy.units import format_size

SNAPSHOTS_HELP = "Source snapshots that may be open at the same time on each of its datastores."
CREDENTIAL_HELP = "Credential with which to log in to VMware vSphere: one of kind password."
THUMBPRINT_HELP = "SHA-256 fingerprint that the certificate of the vSphere server must have."
LIBRARY_HELP = "Directory of the vendor's disk library (VDDK) on the hosts of proxies; you download it yourself."
PLUGIN_HELP = "Plugin of nbdkit that loads it: its name, or the path of its file."
ADDRESS_HELP = "Name or address at which its emulators serve disks to proxies elsewhere; else the host of the URI."


@click.group(cls=Group)
def host() -> None:
    """Hypervisor hosts: where VMs run, and where replicas are kept."""


@host.command()
@click.argument("name")
@click.argument("uri")
@click.option("--scratch-dir", default=None,
              help="Directory on a libvirt host for what the guest overwrites while it is read.  [default: "
                   f"{catalog.DEFAULT_SCRATCH_DIR}]")  # fmt: skip
@click.option("--max-snapshots", type=click.IntRange(1, MAX_SNAPSHOTS), default=DEFAULT_SNAPSHOTS,
              show_default=True, help=SNAPSHOTS_HELP)  # fmt: skip
@click.option("--nbd-address", default="", help=ADDRESS_HELP)
@click.option("--credential", default="", help=CREDENTIAL_HELP)
@click.option("--thumbprint", default="", metavar="SHA256", help=THUMBPRINT_HELP)
@click.option("--library-dir", default="", metavar="DIR", help=LIBRARY_HELP)
@click.option("--library-plugin", default=DiskLibrary.plugin, show_default=True, metavar="NAME|PATH", help=PLUGIN_HELP)
@pass_app
def add(
    app: App, name: str, uri: str, scratch_dir: str | None, max_snapshots: int, nbd_address: str, credential: str,
    thumbprint: str, library_dir: str, library_plugin: str,
) -> None:
    """Add host NAME, reached by a libvirt URI, or by vpx://VCENTER/ or esx://HOST/ for one of VMware vSphere.

    A host of VMware vSphere needs --credential; its certificate is shown and must be confirmed, unless --thumbprint
    tells it or this machine trusts its authority. JSON: {name, uri, scratch_dir, max_snapshots, nbd_address,
    credential, thumbprint, library_dir, library_plugin}.
    """
    library = DiskLibrary(library_dir, library_plugin)
    new = Host(name, uri, scratch_dir or "", max_snapshots, nbd_address, credential, thumbprint, library)
    if not new.by_library and scratch_dir is None:
        new = replace(new, scratch_dir=catalog.DEFAULT_SCRATCH_DIR)
    if new.by_library and not thumbprint:
        catalog.check_new_host(app.database, new)
        new = replace(new, thumbprint=confirmed_thumbprint(app, new))
    added = catalog.add_host(app.database, new)
    answer_line(app, host_shape(added), f"Host {name} added.")


@host.command("set")
@click.argument("name")
@click.option("--max-snapshots", type=click.IntRange(1, MAX_SNAPSHOTS), default=None, help=SNAPSHOTS_HELP)
@click.option("--nbd-address", default=None, help=ADDRESS_HELP)
@click.option("--credential", default=None, help=CREDENTIAL_HELP)
@click.option("--thumbprint", default=None, metavar="SHA256",
              help=f"{THUMBPRINT_HELP} An empty text: its authority must be trusted.")  # fmt: skip
@click.option("--library-dir", default=None, metavar="DIR", help=LIBRARY_HELP)
@click.option("--library-plugin", default=None, metavar="NAME|PATH", help=PLUGIN_HELP)
@pass_app
def set_(
    app: App, name: str, max_snapshots: int | None, nbd_address: str | None, credential: str | None,
    thumbprint: str | None, library_dir: str | None, library_plugin: str | None,
) -> None:
    """Change host NAME; waiting tasks heed it.

    JSON: {name, uri, scratch_dir, max_snapshots, nbd_address, credential, thumbprint, library_dir, library_plugin}.
    """
    change = catalog.HostChange(max_snapshots, nbd_address, credential, thumbprint, library_dir, library_plugin)
    answer_line(app, host_shape(catalog.change_host(app.database, name, change)), f"Host {name} changed.")


@host.command("list")
@pass_app
def list_(app: App) -> None:
    """List hosts.

    JSON: [{name, uri, scratch_dir, max_snapshots, nbd_address, credential, thumbprint, library_dir, library_plugin}].
    """
    hosts = [host_shape(item) for item in catalog.list_hosts(app.database)]
    columns = {"Host": "name", "URI": "uri", "Scratch directory": "scratch_dir", "Snapshots": "max_snapshots",
               "NBD address": "nbd_address"}  # fmt: skip
    if any(item["credential"] for item in hosts):
        columns |= {"Credential": "credential", "Disk library": "library_dir"}
    answer_table(app, hosts, columns, "No hosts. Add one: understudy host add NAME URI")


@host.command()
@click.argument("name")
@click.option("--live-test", "vm", default="", metavar="VM",
              help="Make every call of a session on this VM of VMware vSphere: two snapshots, removed at the"
                   " end.")  # fmt: skip
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), default=Path(DEFAULT_REPORT),
              show_default=True, help="File for the report of the live test; it must not exist.")  # fmt: skip
@click.option("--hash-names", is_flag=True, help="The report has hashes for names of VMs, datastores and the server.")
@click.option("--proxy", default="", help="Proxy that reads in the live test; without it, the first that can.")
@click.option("--yes", is_flag=True, help="Make the live test without being asked.")
@pass_app
def check(app: App, name: str, vm: str, report: Path, hash_names: bool, proxy: str, yes: bool) -> None:
    """Connect to host NAME; one of VMware vSphere is looked at as a source, and fails only if it can be none at all.

    JSON: {name, hostname, platform_version, hypervisor_version, cpus, memory_bytes, emulator_uid, emulator_gid}. Of
    VMware vSphere: {name, kind, product, version, build, api_version, licences, read_only, usable, problems: [{gravity,
    subject, why, todo}], privileges: [{privilege, role, purpose, place, granted, asked, missing_on}], tracking: {on,
    off, unsupported}, vms: [{name, uuid, hardware, tracking, snapshots, deepest, unmerged, obstacle, disks: [{name,
    obstacle}]}], datastores: [{name, kind, capacity, free, problem}], proxies: [{name, nbdkit, plugin, library,
    problem}]}. Of a live test: {host, version, made_at, ok, report, steps: [{name, seconds, facts, error}]}, as in its
    report; status 1 if a step failed.
    """
    if vm:
        run_live_test(app, name, LiveTestWish(vm, proxy), ReportWish(report, hash_names), confirmed=yes)
        return
    checked = app.services.check_host(name)
    if checked.facts is not None:
        answer_facts(app, facts_shape(name, checked.facts))
    else:
        show_preflight(app, name, checked)


@host.command()
@click.argument("name")
@pass_app
def vms(app: App, name: str) -> None:
    """List the VMs of host NAME.

    JSON: [{name, uuid, state, firmware, memory_bytes, vcpus, has_agent_channel, agent_connected, obstacle, notes,
    disks, nics}].
    """
    documents = [vm_shape(vm) for vm in app.services.list_vms(name)]
    answer(app, documents, lambda: _show_vms(documents))


@host.command()
@click.argument("name")
@click.option("--directory", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Where to write the three files, with a new key each time.")  # fmt: skip
@pass_app
def certificate(app: App, name: str, directory: Path) -> None:
    """Make the certificate with which emulators of host NAME serve disks to proxies elsewhere.

    Put the files into /etc/pki/qemu of the host, readable for its emulators, and set backup_tls_x509_verify = 1 in its
    /etc/libvirt/qemu.conf. It is valid for a year. JSON: {name, address, directory, files}.
    """
    from understudy.controller.authority import HOST_FILES, Authorities

    found = catalog.get_host(app.database, name)
    if found.by_library:
        raise Refused(f"certificate of host {name!r}", "it is one of VMware vSphere", "it needs no certificate of ours")
    address = found.serve_address
    if not address:
        raise Refused(f"certificate of host {name!r}", "the host has no address of its own",
                      f"run 'understudy host set {name} --nbd-address ADDRESS' first")
    Authorities(app.home).issue_host(directory, address)
    document = {"name": name, "address": address, "directory": str(directory), "files": list(HOST_FILES)}
    answer_line(app, document, f"Certificate of host {name} for {address} written to {directory}: put it into "
                               "/etc/pki/qemu there, readable for its emulators.")  # fmt: skip


@host.command()
@click.argument("name")
@pass_app
def remove(app: App, name: str) -> None:
    """Forget host NAME. JSON: {name, removed}."""
    catalog.remove_host(app.database, name)
    answer_line(app, {"name": name, "removed": True}, f"Host {name} removed.")


def _show_vms(documents: list[Shape]) -> None:
    if not documents:
        click.echo("No VMs on this host.")
        return
    titles = ("VM", "State", "Memory", "vCPUs", "Disks", "Guest agent", "Obstacle")
    table(titles, [_vm_row(vm) for vm in documents])


def _vm_row(vm: Shape) -> tuple[str, ...]:
    disks = ", ".join(f"{disk['name']} {format_size(disk['size'])}" for disk in vm["disks"])
    obstacles = [vm["obstacle"], *(f"{disk['name']}: {disk['obstacle']}" for disk in vm["disks"] if disk["obstacle"]),
                 *(f"note: {note}" for note in vm["notes"])]  # fmt: skip
    agent = "answers" if vm["agent_connected"] else "silent" if vm["has_agent_channel"] else "no channel"
    return (vm["name"], vm["state"], format_size(vm["memory_bytes"]), str(vm["vcpus"]), disks, agent,
            "; ".join(filter(None, obstacles)) or "-")  # fmt: skip
