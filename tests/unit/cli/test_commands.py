"""What each command says, in JSON and in text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.command_line import DISK, REPLICA, VM, CommandLine
from tests.unit.replication.ends import HELD
from understudy.cli.shapes import session_shape
from understudy.controller import journal, lock, reports
from understudy.controller.records import CheckedHost, ProxyLibrary, ProxyWish
from understudy.errors import MoverError
from understudy.lab.demo import DemoOutcome
from understudy.model.exclusion import Exclusion
from understudy.model.preflight import (
    DatastoreSpace,
    Finding,
    Gravity,
    Preflight,
    PrivilegeCheck,
    Role,
    Tracking,
    VmCheck,
)
from understudy.model.replica import ConversionWish
from understudy.model.session import SessionReport, SessionState, TaskReport
from understudy.mover.api import LibraryFacts
from understudy.storage.values import DatastoreFacts
from understudy.units import GIB, MIB


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "home")


@pytest.fixture
def full(cli: CommandLine) -> CommandLine:
    return cli.with_job()


JOB = {
    "name": "nightly", "enabled": True, "source": "prod", "other_sources": [], "vms": ["web", "db"],
    "target": "dr", "datastore": "vault",
    "points": 7, "suffix": "_replica", "snapshot_mode": "auto", "guest_processing": "try", "block_size": MIB,
    "compression": "zstd", "source_proxy": "", "target_proxy": "", "connections": 4, "patience_s": 1800,
    "excluded_disks": [], "verify_every_s": 0, "verify_rate": 0,
    "masks": [], "exclude_swap": True, "exclude_free": False, "guests": [],
}  # fmt: skip
REPLICA_DOCUMENT = {
    "name": "web_replica", "id": "rid-1", "datastore": "vault", "host": "dr", "job": None, "source_vm": "web",
    "domain_uuid": "dom-uuid", "state": "ready", "points": 2, "newest_point": "p2",
    "newest_created_at": "2026-01-02T00:00:00+00:00", "point": "p2",
}  # fmt: skip

DEMO_TASK = TaskReport("web", SessionState.SUCCESS, "p1", "filesystem", 97.0, disks=(DISK,))


def test_hosts(cli: CommandLine) -> None:
    assert cli.json("host", "list") == []
    assert "No hosts" in cli.ok("host", "list").out
    host = {"name": "kvm", "uri": "qemu:///system", "scratch_dir": "/var/lib/libvirt/understudy",
            "max_snapshots": 4, "nbd_address": "", "credential": "", "thumbprint": "", "library_dir": "",
            "library_plugin": ""}  # fmt: skip
    assert cli.json("host", "add", "kvm", "qemu:///system") == host
    other = cli.json("host", "add", "b", "qemu+ssh://b/system", "--scratch-dir", "/fast/scratch")
    assert other["scratch_dir"] == "/fast/scratch"
    assert cli.json("host", "list") == [other, host]
    changed = cli.json("host", "set", "b", "--max-snapshots", "2", "--nbd-address", "b.lan")
    assert changed == {**other, "max_snapshots": 2, "nbd_address": "b.lan"}
    assert cli.json("host", "set", "b", "--max-snapshots", "3")["nbd_address"] == "b.lan"
    assert "b.lan" in cli.ok("host", "list").out
    assert "is no network name" in cli.refused("host", "set", "b", "--nbd-address", "b.lan:10809")
    assert "0 is not in the range" in cli.refused("host", "set", "b", "--max-snapshots", "0")
    assert "qemu+ssh://b/system" in cli.ok("host", "list").out
    assert cli.json("host", "remove", "b") == {"name": "b", "removed": True}
    assert cli.ok("host", "remove", "kvm").out == "Host kvm removed.\n"
    assert cli.json("host", "list") == []


def test_a_host_gets_a_certificate_for_the_address_that_proxies_use(cli: CommandLine, tmp_path: Path) -> None:
    cli.ok("host", "add", "kvm", "qemu+ssh://root@kvm.lan/system")
    cli.ok("host", "add", "here", "qemu:///system")
    files = ["ca-cert.pem", "server-cert.pem", "server-key.pem"]
    pki = tmp_path / "pki"
    assert cli.json("host", "certificate", "kvm", "--directory", str(pki)) == {
        "name": "kvm", "address": "kvm.lan", "directory": str(pki), "files": files,
    }  # fmt: skip
    assert sorted(path.name for path in pki.iterdir()) == files
    cli.ok("host", "set", "kvm", "--nbd-address", "10.0.0.7")
    assert "for 10.0.0.7 written to" in cli.ok("host", "certificate", "kvm", "--directory", str(pki)).out
    assert "has no address of its own" in cli.refused("host", "certificate", "here", "--directory", str(pki))


def test_host_check(cli: CommandLine) -> None:
    assert cli.json("host", "check", "kvm") == {
        "name": "kvm", "hostname": "kvm1.example", "platform_version": "9.0.0", "hypervisor_version": "7.2.22",
        "cpus": 16, "memory_bytes": 64 * GIB, "emulator_uid": 64055, "emulator_gid": 64055,
    }  # fmt: skip
    assert cli.calls[0] == ("check_host", "kvm")
    assert "kvm1.example" in cli.ok("host", "check", "kvm").out


PREFLIGHT = Preflight(
    "VMware vCenter Server", "8.0.3", "24022515", "8.0.3.0", "vcenter", ("vSphere 8",), False,
    (PrivilegeCheck("Global.Licenses", Role.SOURCE, "see licences", "the whole server", 1, ("root",)),),
    (VmCheck("web\x1b", "u-1", "vmx-19", Tracking.ON, 2, 1, True, "", (("scsi0:1", "shared"),)),),
    (DatastoreSpace("ds", "VMFS", 10 * GIB, GIB),), (),
)  # fmt: skip
LIBRARIES = (
    ProxyLibrary("local", LibraryFacts("1.42.3", "1.42.3", "8.0.2"), ""),
    ProxyLibrary("far", LibraryFacts("1.32.5"), "the plugin is missing"),
    ProxyLibrary("gone", None, "it does not answer"),
)


def test_host_check_of_a_vcenter(cli: CommandLine) -> None:
    warning = Finding(Gravity.WARNING, "VM web\x1b", "needs consolidation", "consolidate it")
    cli.settings["checked"] = CheckedHost(None, PREFLIGHT, LIBRARIES, (warning,))
    found = cli.json("host", "check", "vc")
    assert list(found) == [
        "name", "kind", "product", "version", "build", "api_version", "licences", "read_only", "usable", "problems",
        "privileges", "tracking", "vms", "datastores", "proxies",
    ]  # fmt: skip
    assert (found["kind"], found["usable"]) == ("vcenter", True)
    assert found["tracking"] == {"on": 1, "off": 0, "unsupported": 0}
    assert found["problems"] == [{"gravity": "warning", "subject": "VM web\x1b", "why": "needs consolidation",
                                  "todo": "consolidate it"}]  # fmt: skip
    assert found["privileges"] == [{
        "privilege": "Global.Licenses", "role": "source", "purpose": "see licences", "place": "the whole server",
        "granted": False, "asked": 1, "missing_on": ["root"],
    }]  # fmt: skip
    assert found["vms"] == [{
        "name": "web\x1b", "uuid": "u-1", "hardware": "vmx-19", "tracking": "on", "snapshots": 2, "deepest": 1,
        "unmerged": True, "obstacle": "", "disks": [{"name": "scsi0:1", "obstacle": "shared"}],
    }]  # fmt: skip
    assert found["datastores"] == [{"name": "ds", "kind": "VMFS", "capacity": 10 * GIB, "free": GIB, "problem": ""}]
    assert found["proxies"] == [
        {"name": "local", "nbdkit": "1.42.3", "plugin": "1.42.3", "library": "8.0.2", "problem": ""},
        {"name": "far", "nbdkit": "1.32.5", "plugin": "", "library": "", "problem": "the plugin is missing"},
        {"name": "gone", "nbdkit": "", "plugin": "", "library": "", "problem": "it does not answer"},
    ]
    text = cli.ok("host", "check", "vc").out
    assert "\x1b" not in text
    assert "warning: VM web�: needs consolidation; consolidate it" in text
    assert "Privileges as a source: 0 of 1 granted" in text


def test_host_check_of_a_server_that_can_be_no_source_fails_after_its_answer(cli: CommandLine) -> None:
    blocking = Finding(Gravity.BLOCKING, "server", "it has the free licence", "give it another")
    cli.settings["checked"] = CheckedHost(None, PREFLIGHT, LIBRARIES, (blocking,))
    result = cli("--json", "host", "check", "vc")
    assert (result.status, json.loads(result.out)["usable"]) == (1, False)
    assert result.err == "error: check host 'vc': server: it has the free licence; give it another\n"


def test_host_vms_without_the_definition(cli: CommandLine) -> None:
    result = cli.ok("--json", "host", "vms", "kvm")
    assert "SECRET" not in result.out
    (vm,) = result.document
    assert vm["name"] == VM.name
    assert (vm["state"], vm["memory_bytes"], vm["disks"][0]["size"]) == ("running", 2 * GIB, 10 * GIB)
    text = cli.ok("host", "vms", "kvm").out
    assert "web [red]1[/red]" in text, "a name is not markup"
    assert "vda: shared" in text


def test_datastores(cli: CommandLine) -> None:
    cli.ok("host", "add", "dr", "qemu:///system")
    document = {"name": "vault", "host": "dr", "kind": "qcow2", "path": "/srv", "max_transfers": 0, "marker": "",
                "place": ""}  # fmt: skip
    assert cli.json("datastore", "add", "vault", "--host", "dr", "--path", "/srv/") == document
    assert cli.json("datastore", "list") == [document]
    document["max_transfers"] = 3
    assert cli.json("datastore", "set", "vault", "--max-transfers", "3") == document
    assert cli.json("datastore", "list") == [document]
    assert cli.json("datastore", "check", "vault") == {
        "name": "vault", "path": "/srv", "exists": True, "writable": True, "total_bytes": 100 * GIB,
        "free_bytes": 40 * GIB, "marker": "",
    }  # fmt: skip
    assert "it is used by datastore 'vault'" in cli.refused("host", "remove", "dr")
    assert cli.json("datastore", "remove", "vault") == {"name": "vault", "removed": True}


def test_a_datastore_gets_its_marker_when_it_is_added_or_says_why_not(cli: CommandLine) -> None:
    cli.ok("host", "add", "dr", "qemu:///system")
    cli.settings["datastore"] = DatastoreFacts("/srv", True, True, 1, 1, "m-1")
    assert cli.json("datastore", "add", "vault", "--host", "dr", "--path", "/srv")["marker"] == "m-1"
    cli.settings["unmarked"] = MoverError("proxy 'far'", "it does not answer")
    added = cli("--json", "datastore", "add", "late", "--host", "dr", "--path", "/late")
    assert json.loads(added.out)["marker"] == ""
    assert "warning: the datastore gets its marker file at first use: proxy 'far': it does not answer" in added.err


def test_a_datastore_that_lies_elsewhere_is_followed_and_another_one_fails_the_check(cli: CommandLine) -> None:
    cli.settings["datastore"] = DatastoreFacts("/srv", True, True, 1, 1, "m-1")
    cli.ok("host", "add", "dr", "qemu:///system")
    cli.ok("datastore", "add", "vault", "--host", "dr", "--path", "/srv")
    assert "nothing to change" in cli.refused("datastore", "set", "vault")
    moved = cli.json("datastore", "set", "vault", "--path", "/mnt/srv", "--max-transfers", "2")
    assert (moved["path"], moved["marker"], moved["max_transfers"]) == ("/mnt/srv", "m-2", 2)
    cli.json("datastore", "set", "vault", "--accept")
    assert ("move_datastore", "vault", "", True) in cli.calls
    said = cli.refused("datastore", "check", "vault", status=1)
    assert "this is not the datastore that was added: is it mounted? (/srv has another marker file)" in said


def test_a_replica_without_a_record_is_rebuilt(cli: CommandLine) -> None:
    said = cli.ok("replica", "rebuild", "vault/web_replica").out
    assert "Record of replica vault/web_replica rebuilt, proved restore points: p1, p2." in said
    assert "Left out: restore point p0: disk vda: [b]bad[/b]" in said
    assert "Stays where it is: layers/vda-p0.qcow2" in said
    assert cli.json("replica", "rebuild", "vault/web_replica", "--dry-run") == {
        "replica": "web_replica", "datastore": "vault", "dry_run": True, "points": ["p1", "p2"],
        "left_out": {"p0": "disk vda: [b]bad[/b]"}, "files": ["layers/vda-p0.qcow2"], "notes": ["in failover"],
    }  # fmt: skip
    assert ("rebuild_replica", "vault", "web_replica", True) in cli.calls
    assert "this is not DATASTORE/REPLICA" in cli.refused("replica", "rebuild", "web_replica")


@pytest.mark.parametrize(
    ("exists", "writable", "why"), [(False, False, "/srv does not exist"), (True, False, "/srv cannot be written")]
)
def test_a_datastore_that_cannot_be_used_fails_the_check(
    cli: CommandLine, exists: bool, writable: bool, why: str
) -> None:
    cli.settings["datastore"] = DatastoreFacts("/srv", exists, writable, 0, 0)
    assert f"check datastore 'vault': {why}; " in cli.refused("--json", "datastore", "check", "vault", status=1)
    assert '"exists"' in cli("--json", "datastore", "check", "vault").out


def test_proxies(cli: CommandLine) -> None:
    rest = {"kind": "child", "identity": "", "control_address": "", "data_address": "", "certificate_expires": ""}
    local = {"name": "local", "host": "", "slots": os.cpu_count(), **rest}
    assert cli.json("proxy", "list") == [local]
    added = cli.json("proxy", "add", "fast", "--slots", "8")
    assert added == {"name": "fast", "host": "", "slots": 8, **rest}
    assert cli.json("proxy", "list") == [added, local]
    checked = {
        "name": "fast", "pid": 4711, "versions": {"qemu": "7.2", "python": "3.11"}, "kind": "child",
        "identity": "proxy-1.understudy.internal", "cores": 2, "certificate_expires": "", "clock_skew_s": -75.3,
        "warnings": ["its clock is 75 s behind the controller's: certificates may be refused"],
    }  # fmt: skip
    assert cli.json("proxy", "check", "fast") == checked
    assert "qemu 7.2, python 3.11" in cli.ok("proxy", "check", "fast").out
    changed = cli.json("proxy", "set", "fast", "--slots", "3", "--data-address", "[::1]:7343")
    assert changed == added | {"slots": 3, "data_address": "[::1]:7343"}
    assert cli.json("proxy", "list") == [changed, local]
    assert cli.refused("proxy", "set", "fast").startswith("proxy set: nothing to change; ")
    assert "child process" in cli.refused("proxy", "set", "fast", "--control-address", "h:1")
    assert cli.json("proxy", "remove", "fast") == {"name": "fast", "removed": True, "told": None}
    assert cli.refused("proxy", "remove", "local").startswith("remove proxy 'local': it is built in; ")
    assert cli.refused("proxy", "add", "x", "--host", "mars").startswith("host 'mars': no such host; ")


def test_a_proxy_is_invited_with_a_token_for_its_host(cli: CommandLine) -> None:
    invited = cli.json("proxy", "invite", "far", "--valid", "2d", "--controller", "ctl:9000")
    assert invited == {"name": "far", "token": "ust1.x", "expires_at": "2027-01-01T00:00:00.000+00:00",
                       "controller": "ctl:9000"}  # fmt: skip
    assert cli.calls[0] == ("invite_proxy", ProxyWish("far", "", 0, 2 * 86400, "ctl:9000"))
    assert "\nunderstudy proxy enrol ust1.x\n" in cli.ok("proxy", "invite", "far").out
    assert cli.calls[0] == ("invite_proxy", ProxyWish("far", "", 0, 3600, ""))
    assert "not a duration: 'soon'" in cli.refused("proxy", "invite", "far", "--valid", "soon")


def test_a_service_that_could_not_be_told_of_its_end_is_said_so(cli: CommandLine) -> None:
    cli.ok("proxy", "add", "far")
    cli.settings["told"] = False
    assert "could not be told; the revocation holds" in cli.ok("proxy", "remove", "far").out


def test_jobs(full: CommandLine) -> None:
    (shown,) = full.json("job", "list")
    assert len(shown.pop("id")) == 32
    assert shown == JOB
    assert full.json("job", "show", "nightly") == JOB | {"id": full.json("job", "show", "nightly")["id"]}
    assert "guest processing  try" in full.ok("job", "show", "nightly").out
    assert full.json("job", "disable", "nightly")["enabled"] is False
    assert full.refused("job", "run", "nightly") == (
        "run job 'nightly': the job is disabled; enable it: understudy job enable 'nightly'"
    )
    assert full.json("job", "enable", "nightly")["enabled"] is True
    assert full.json("job", "delete", "nightly") == {"name": "nightly", "removed": True}
    assert full.json("job", "list") == []


def test_job_set_changes_what_is_named_and_nothing_else(full: CommandLine) -> None:
    before = full.json("job", "show", "nightly")
    changed = full.json("job", "set", "nightly", "--verify-every", "12h", "--verify-rate", "80Mbit")
    assert changed == before | {"verify_every_s": 43200, "verify_rate": 10_000_000}
    assert full.json("job", "set", "nightly", "--points", "3") == changed | {"points": 3}
    full.ok("job", "set", "nightly", "--verify-every", "off", "--verify-rate", "off")
    assert full.json("job", "show", "nightly") == before | {"points": 3}
    how = {"source_proxy": "local", "target_proxy": "local", "connections": 9, "compression": "lz4", "patience_s": 90}
    assert full.json("job", "set", "nightly", "--source-proxy", "local", "--target-proxy", "local", "--connections",
                     "9", "--compression", "lz4", "--patience", "90s") == before | {"points": 3} | how  # fmt: skip
    travel = ("--connections", "4", "--compression", "zstd", "--patience", "30m")
    full.ok("job", "set", "nightly", "--source-proxy", "", "--target-proxy", "", *travel)
    assert full.refused("job", "set", "nightly", "--source-proxy", "mars").startswith("proxy 'mars': no such proxy")
    assert "a patience of 31d is not possible" in full.refused("job", "set", "nightly", "--patience", "31d")
    assert "nothing to change was named" in full.refused("job", "set", "nightly")
    assert "not a duration: 'often'" in full.refused("job", "set", "nightly", "--verify-every", "often")
    assert "without time between" in full.refused("job", "set", "nightly", "--verify-every", "0s")
    assert "not a rate: 'fast'" in full.refused("job", "set", "nightly", "--verify-rate", "fast")
    assert "too few to verify with" in full.refused("job", "set", "nightly", "--verify-rate", "1K")
    assert "so seldom" in full.refused("job", "set", "nightly", "--verify-every", "9999d")
    assert full.refused("job", "set", "x", "--points", "3").startswith("job 'x': no such job")
    assert full.json("job", "show", "nightly") == before | {"points": 3}


def test_job_create_with_every_option(full: CommandLine) -> None:
    created = full.json(
        "job", "create", "special", "--source", "prod", "--vm", "a:b", "--target", "dr", "--datastore", "vault",
        "--points", "1000", "--suffix", ".dr", "--snapshot-mode", "external", "--guest-processing", "require",
        "--block-size", "256K", "--compression", "zstd-high", "--source-proxy", "local", "--target-proxy", "local",
        "--exclude-disk", "a:b:vdb", "--connections", "64", "--patience", "2h",
        "--verify-every", "7d", "--verify-rate", "100MiB", "--exclude", "a:b:/x/**", "--swap", "keep",
        "--free-blocks", "exclude",
    )  # fmt: skip
    created.pop("id")
    assert created == {
        "name": "special", "enabled": True, "source": "prod", "other_sources": [], "vms": ["a:b"],
        "target": "dr", "datastore": "vault",
        "points": 1000, "suffix": ".dr", "snapshot_mode": "external", "guest_processing": "require",
        "block_size": 256 * 1024, "compression": "zstd-high", "source_proxy": "local", "target_proxy": "local",
        "connections": 64, "patience_s": 7200, "excluded_disks": [{"vm": "a:b", "disk": "vdb"}],
        "verify_every_s": 7 * 86400, "verify_rate": 100 * MIB, "masks": [{"vm": "a:b", "mask": "/x/**"}],
        "exclude_swap": False, "exclude_free": True, "guests": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [("--points", "0"), ("--points", "1001"), ("--snapshot-mode", "x"), ("--guest-processing", "x"),
     ("--block-size", "3K"), ("--compression", "x"), ("--exclude-disk", "x"), ("--exclude-disk", "web:"),
     ("--suffix", ""), ("--source-proxy", "mars"), ("--target-proxy", "mars"), ("--vm", "web"),
     ("--connections", "0"), ("--connections", "65"), ("--patience", "0s"), ("--patience", "31d"),
     ("--patience", "soon")],
)  # fmt: skip
def test_job_create_refuses_wrong_values(full: CommandLine, option: str, value: str) -> None:
    full.refused("job", "create", "x", "--source", "prod", "--vm", "web", "--target", "dr", "--datastore", "vault",
                 option, value)  # fmt: skip
    assert len(full.json("job", "list")) == 1


def test_sessions(full: CommandLine) -> None:
    assert full.json("session", "list") == []
    first = full.json("job", "run", "nightly")["id"]
    second = full.json("job", "run", "nightly", "--no-wait")["id"]
    listed = full.json("session", "list")
    assert [item["id"] for item in listed] == [second, first]
    assert set(listed[0]) == {"id", "job", "state", "started_at", "ended_at", "kind"}
    assert full.json("session", "list", "--job", "nightly") == listed
    assert full.refused("session", "list", "--job", "mars").startswith("job 'mars': no such job")
    assert full.json("session", "stop", str(second)) == {"id": second, "state": "cancelled"}
    assert "it has ended (success)" in full.refused("session", "stop", str(first))
    assert "Session 1 of job nightly: success" in full.ok("session", "show", str(first)).out


def test_a_running_session_is_asked_to_stop(full: CommandLine) -> None:
    session = full.json("job", "run", "nightly", "--no-wait")["id"]
    database = full.opened()
    journal.claim_session(database)
    controller = lock.try_acquire(database.home)
    assert controller is not None
    with controller:
        assert full.json("session", "stop", str(session)) == {"id": session, "state": "running"}
    assert journal.is_cancel_requested(database, session)
    database.close()


def test_a_session_of_a_dead_controller_stands_in_nobodys_way(full: CommandLine) -> None:
    session = full.json("job", "run", "nightly", "--no-wait")["id"]
    database = full.opened()
    journal.claim_session(database)
    database.close()
    assert full.json("job", "run", "nightly", "--no-wait")["id"] == session + 1
    assert full.json("session", "show", str(session))["state"] == "failed"


def left_held(cli: CommandLine, job: str = "nightly") -> int:
    """A session that a dead controller left while the disks of its first VM were under way."""
    session: int = cli.json("job", "run", job, "--no-wait")["id"]
    database = cli.opened()
    claimed = journal.claim_session(database)
    assert claimed is not None
    journal.store_held(database, journal.start_task(database, session, claimed.job.vms[0]), HELD)
    database.close()
    return session


@pytest.mark.parametrize("options", [(), ("--no-wait",)])
def test_an_interrupted_session_goes_on_and_the_next_run_is_a_new_one(
    full: CommandLine, options: tuple[str, ...]
) -> None:
    session = left_held(full)
    full.settings |= {"held": True}
    text = full("job", "run", "nightly", *options).out
    assert text.startswith(f"Session {session} was interrupted while its disks were under way; it goes on.\n")
    assert full.calls[0] == (("start_background_controller",) if options else ("run_session", session))
    if options:
        assert text.endswith(f"Session {session} of job nightly running.\n")
        full.json("session", "stop", str(session))
    assert full.json("job", "run", "nightly", "--no-wait")["id"] == session + 1


def test_an_interrupted_session_is_one_document_in_json(full: CommandLine) -> None:
    session = left_held(full)
    full.settings |= {"held": True}
    assert full.json("job", "run", "nightly")["id"] == session


def test_a_full_scan_that_is_wished_for_too_late_is_not_promised(full: CommandLine) -> None:
    left_held(full)
    full.settings |= {"held": True}
    assert "It began before --full-scan was wished for" in full.ok("job", "run", "nightly", "--full-scan").out


def test_an_interrupted_session_outlives_a_controller_that_does_not_start(full: CommandLine) -> None:
    session = left_held(full)
    full.settings |= {"held": True, "error": MoverError("start controller", "no memory")}
    full.refused("job", "run", "nightly", "--no-wait", status=1)
    database = full.opened()
    assert not journal.is_cancel_requested(database, session)
    database.close()


def test_a_session_that_nobody_can_go_on_with_is_failed_and_a_new_one_starts(full: CommandLine) -> None:
    session = left_held(full)
    assert full.json("job", "run", "nightly", "--no-wait")["id"] == session + 1
    assert full.json("session", "show", str(session))["state"] == "failed"


def with_second_job(cli: CommandLine) -> int:
    """Another job, and its session that waits to be gone on with."""
    cli.ok("job", "create", "other", "--source", "prod", "--vm", "web", "--target", "dr", "--datastore", "vault")
    cli.settings["held"] = True
    return left_held(cli, "other")


def test_a_held_session_of_a_dead_controller_is_stopped_and_others_are_left_alone(full: CommandLine) -> None:
    session, other = left_held(full), with_second_job(full)
    assert full.json("session", "stop", str(session)) == {"id": session, "state": "failed"}
    assert full.json("session", "show", str(session))["state"] == "failed"
    assert full.json("session", "show", str(other))["state"] == "running"
    assert full.ok("session", "stop", str(other)).out == (
        f"Session {other} had been left by a controller that died; it is ended.\n"
    )


def test_a_job_with_a_held_session_of_a_dead_controller_can_be_deleted(full: CommandLine) -> None:
    session, other = left_held(full), with_second_job(full)
    assert full.json("job", "delete", "nightly") == {"name": "nightly", "removed": True}
    assert full.json("session", "show", str(session))["state"] == "failed"
    assert full.json("session", "show", str(other))["state"] == "running"


def test_job_run_no_wait_starts_a_controller_and_returns(full: CommandLine) -> None:
    document = full.json("job", "run", "nightly", "--no-wait")
    assert document["state"] == "queued"
    assert full.calls == [("start_background_controller",), ("close",)]
    assert "has not ended" in full.refused("job", "run", "nightly")


def test_a_controller_that_does_not_start_leaves_nothing_queued(full: CommandLine) -> None:
    full.settings["error"] = MoverError("start controller", "no memory")
    full.refused("job", "run", "nightly", "--no-wait", status=1)
    assert [item["state"] for item in full.json("session", "list")] == ["cancelled"]


def test_full_scan_is_passed_on(full: CommandLine) -> None:
    full.ok("job", "run", "nightly", "--no-wait", "--full-scan")
    database = full.opened()
    claimed = journal.claim_session(database)
    assert claimed is not None
    assert claimed.full_scan
    assert reports.session_report(database, claimed.id).state is SessionState.RUNNING
    database.close()


def test_replicas(full: CommandLine) -> None:
    assert full.json("replica", "list") == [REPLICA_DOCUMENT]
    assert full.json("replica", "show", "web_replica") == {
        **REPLICA_DOCUMENT, "head_empty": True, "conversion": "none", "damage": {"p1": ["vda-1.qcow2 is missing"]},
        "verified_at": {"p1": None, "p2": None}, "bad_blocks": {}, "health_problems": {},
    }  # fmt: skip
    assert "web_replica" in full.ok("replica", "list").out
    assert "vda-1.qcow2 is missing" in full.ok("replica", "points", "vault/web_replica").out
    assert full.json("replica", "remove", "web_replica") == {
        "name": "web_replica", "datastore": "vault", "removed": True, "files_deleted": False,
    }  # fmt: skip
    assert full.json("replica", "list") == []
    assert full.refused("replica", "show", "web_replica") == (
        "replica 'web_replica': no such replica; see 'understudy replica list'"
    )


def test_replica_points_tell_what_they_leave_out(full: CommandLine) -> None:
    full.settings["left_out_by"] = {"p1": (Exclusion("vda", "", {"swap": 64 * MIB, "mask": MIB}),), "p2": None}
    points = full.json("replica", "points", "web_replica")
    assert [point["disks"][0]["excluded"] for point in points] == [{"swap": 64 * MIB, "mask": MIB}, None]
    text = full.ok("replica", "points", "web_replica").out
    assert "vda swap 64.0 MiB + mask 1.0 MiB" in text
    assert "vda (lost)" in text
    full.settings["left_out_by"] = {}
    assert full.ok("replica", "points", "web_replica").out.count("nothing") == 2


def test_replica_points_are_as_in_the_contract(full: CommandLine) -> None:
    points = full.json("replica", "points", "web_replica")
    assert points == [
        {
            "id": f"p{number}",
            "created_at": f"2026-01-0{number}T00:00:00+00:00",
            "consistency": "crash",
            "session": number,
            "damage": ["vda-1.qcow2 is missing"] if number == 1 else [],
            "verified_at": None,
            "bad_blocks": 0,
            "applications": [],
            "disks": [
                {
                    "name": "vda",
                    "size": 10 * GIB,
                    "image": f"/srv/web_replica/layers/vda-{number}.qcow2",
                    "digest": f"/srv/web_replica/digests/vda-p{number}.digest",
                    "verified_at": None,
                    "bad_blocks": 0,
                    "excluded": {},
                }
            ],
        }
        for number in (1, 2)
    ]


def test_replica_adopt_and_delete(full: CommandLine) -> None:
    full.ok("replica", "remove", "web_replica", "--delete-files")
    assert full.calls[0] == ("delete_replica", "web_replica")
    assert full.json("replica", "adopt", "vault/web_replica") == REPLICA_DOCUMENT
    assert full.calls[0] == ("adopt_replica", "vault", "web_replica")
    for place in ("web_replica", "vault/", "/x"):
        assert "this is not DATASTORE/REPLICA" in full.refused("replica", "adopt", place)


def test_failover(full: CommandLine) -> None:
    started = full.json("failover", "start", "web_replica")
    warned = ["a card is connected to nothing"]
    assert started == REPLICA_DOCUMENT | {"state": "failover", "point": "p2", "warnings": warned, "note": ""}
    assert "warning: a card is connected to nothing\n" in full("failover", "start", "web_replica").out
    assert full.json("failover", "start", "web_replica", "--point", "p1")["point"] == "p1"
    assert full.refused("failover", "start", "web_replica", "--point", "p9").startswith("restore point 'p9'")
    for said, wish in (([], ConversionWish.AUTO), (["--convert", "never"], ConversionWish.NEVER),
                       (["--convert", "always"], ConversionWish.ALWAYS)):
        full.ok("failover", "start", "web_replica", *said)
        assert ("start_failover", REPLICA.identity.name, "p2", wish) in full.calls
    full.settings["failover_note"] = "the guest was converted"
    assert full.ok("failover", "start", "web_replica").out.splitlines()[1:] == [
        "the guest was converted", "warning: a card is connected to nothing"]
    assert full.json("failover", "start", "web_replica")["note"] == "the guest was converted"
    assert full.json("failover", "undo", "vault/web_replica")["state"] == "ready"
    assert full.calls[0] == ("undo_failover", REPLICA.identity.name)


def test_demo(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    full_report = session_shape(SessionReport(1, "nightly", SessionState.SUCCESS, "t", "t", (DEMO_TASK,)))

    def play(say: Callable[[str], None], quiet: bool, two_hosts: bool) -> DemoOutcome:
        say("making two hosts, linked" if two_hosts else "making two hosts")
        return DemoOutcome((full_report,), True)

    monkeypatch.setattr("understudy.lab.demo.run_demo", play)
    assert cli.json("demo") == {"sessions": [full_report], "change_in_replica": True}
    text = cli.ok("demo").out
    assert text.startswith("making two hosts\n")
    assert "incremental" in text


def test_version(cli: CommandLine) -> None:
    document = cli.json("version")
    assert document == {"name": "understudy", "version": "0.1.0", "python": sys.version.split()[0]}
    assert cli.ok("version").out == "understudy 0.1.0\n"
    assert not cli.home.exists(), "asking for the version makes no home"


def test_controller_is_hidden_and_runs_sessions(cli: CommandLine) -> None:
    assert "controller" not in cli.ok("--help").out.split()
    cli.ok("controller")
    assert cli.calls[0] == ("run_controller",)


def test_names_cannot_steer_the_terminal(cli: CommandLine) -> None:
    cli.refused("host", "add", "a\x1b[2J", "qemu:///system")
    cli.ok("host", "add", "a", "qemu:///system", "--scratch-dir", "/[bold]x")
    assert "/[bold]x" in cli.ok("host", "list").out
