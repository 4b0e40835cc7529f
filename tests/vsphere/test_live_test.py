"""A vCenter as an operator meets it: added, checked and tried by the command line, with a real proxy and nbdkit.

The vCenter is the simulated one with its front; the disk library is the stand-in under the real plugin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.unit.cli.command_line import Result
from tests.vsphere.client import connected
from tests.vsphere.front import Front, front
from tests.vsphere.library.kit import StandIn, stand_in
from tests.vsphere.operator import Operator
from tests.vsphere.simulator import Inventory, missing
from understudy.platforms import server_certificate
from understudy.units import MIB

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

VM = "DC0_C0_RP0_VM0"
SIZE = 24 * MIB


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Front]:
    with front(Inventory(vms=2), tmp_path) as running:
        raw = tmp_path / "raw"
        with raw.open("wb") as file:
            file.write(b"begin" * 1000)
            file.truncate(SIZE)
        running.place_disk(VM, raw)
        yield running


@pytest.fixture
def library(library_kit: Path, tmp_path: Path) -> Iterator[StandIn]:
    with stand_in(library_kit, tmp_path) as made:
        yield made


@pytest.fixture
def operator(vcenter: Front, library: StandIn, tmp_path: Path) -> Operator:
    made = Operator(tmp_path / "home")
    made.ok("credential", "add", "admin", "--user", vcenter.user, "--password-stdin", typed=f"{vcenter.password}\n")
    uri = f"vpx://127.0.0.1:{vcenter.port}/"
    made.ok("host", "add", "vc", uri, "--credential", "admin", "--thumbprint", server_certificate(uri).thumbprint,
            "--library-dir", library.library.directory, "--library-plugin", library.library.plugin)  # fmt: skip
    return made


def try_live(operator: Operator, tmp_path: Path, *more: str) -> tuple[Result, dict[str, Any]]:
    path = tmp_path / "report.json"
    result = operator("--json", "host", "check", "vc", "--live-test", VM, "--yes", "--report", str(path), *more)
    assert json.loads(result.out) == {**json.loads(path.read_text()), "report": str(path)}
    return result, json.loads(path.read_text())


def snapshots(vcenter: Front) -> list[str]:
    with connected(vcenter.url, vcenter.user, vcenter.password) as client:
        found = client.properties(client.named(vim.VirtualMachine, VM), "snapshot")
    return [tree.name for tree in found["snapshot"].rootSnapshotList] if "snapshot" in found else []


def test_a_vcenter_is_checked_with_its_proxies(operator: Operator) -> None:
    found = operator.json("host", "check", "vc")
    assert (found["kind"], found["usable"]) == ("vcenter", True)
    assert found["tracking"] == {"on": 0, "off": 2, "unsupported": 0}
    (proxy,) = found["proxies"]
    assert (proxy["name"], proxy["problem"]) == ("local", "")
    assert proxy["nbdkit"]
    assert proxy["plugin"]
    assert proxy["library"]


def test_without_a_library_no_proxy_can_read_and_the_check_says_so(operator: Operator) -> None:
    operator.ok("host", "set", "vc", "--library-dir", "/nowhere")
    result = operator("--json", "host", "check", "vc")
    assert (result.status, json.loads(result.out)["usable"]) == (1, False)
    assert "none of them can read the disks of this host" in result.err


def test_the_live_test_makes_every_call_and_leaves_nothing(
    operator: Operator, vcenter: Front, library: StandIn, tmp_path: Path
) -> None:
    result, report = try_live(operator, tmp_path)
    assert result.status == 0, result.err
    steps = {step["name"]: step["facts"] for step in report["steps"]}
    (name,) = {name.split("disk ")[1].split(": ")[0] for name in steps if ": read" in name}
    assert steps[f"first snapshot, disk {name}: areas that changed"] == {"asked": False}
    second = steps[f"second snapshot, disk {name}: areas that changed"]
    assert second["asked"] is True
    read = steps[f"second snapshot, disk {name}: read"]
    assert (read["size"], read["read_bytes"], read["zero_bytes"]) == (SIZE, 16 * MIB, 15 * MIB)
    assert snapshots(vcenter) == []
    assert len(library.calls("Close")) == len(library.calls("Open")) > 0
    assert vcenter.password not in (tmp_path / "report.json").read_text()


def test_names_in_the_report_are_hashed_on_demand(operator: Operator, vcenter: Front, tmp_path: Path) -> None:
    _, report = try_live(operator, tmp_path, "--hash-names")
    text = json.dumps(report)
    for name in (VM, "LocalDS_0", "127.0.0.1", vcenter.user):
        assert name not in text


def test_a_library_that_fails_is_told_and_the_snapshot_removed(
    operator: Operator, vcenter: Front, library: StandIn, tmp_path: Path
) -> None:
    library.fail(open=13)  # no access
    result, report = try_live(operator, tmp_path)
    assert result.status == 1
    assert report["ok"] is False
    failed = [step["name"] for step in report["steps"] if step["error"]]
    assert len(failed) == 1
    assert failed[0].startswith("first snapshot, disk ")
    assert failed[0].endswith("opened by the disk library")
    assert snapshots(vcenter) == []


def test_a_certificate_that_changed_is_refused_with_both_fingerprints(operator: Operator, vcenter: Front) -> None:
    shown = operator.json("host", "list")[0]["thumbprint"]
    operator.ok("host", "set", "vc", "--thumbprint", "00" * 32)
    result = operator("host", "check", "vc")
    assert result.status == 1
    assert f"its certificate is {shown}, and {':'.join(['00'] * 32)} was confirmed" in result.err
    assert f"understudy host set HOST --thumbprint {shown}" in result.err
    operator.ok("host", "set", "vc", "--thumbprint", shown)
    operator.ok("host", "check", "vc")


def test_on_first_contact_the_certificate_is_confirmed(vcenter: Front, tmp_path: Path) -> None:
    operator = Operator(tmp_path / "other")
    operator.ok("credential", "add", "admin", "--user", vcenter.user, "--password-stdin", typed="x\n")
    command = ("host", "add", "vc", f"vpx://127.0.0.1:{vcenter.port}/", "--credential", "admin")
    thumbprint = server_certificate(command[3]).thumbprint
    refused = operator(*command)
    assert (refused.status, refused.err.rstrip().endswith(f"then add --thumbprint {thumbprint}")) == (2, True)
    result = operator(*command, typed="y\n", terminal=True)
    assert result.status == 0, result
    assert thumbprint in result.err
    assert operator.json("host", "list")[0]["thumbprint"] == thumbprint
    wrong = operator("host", "check", "vc")
    assert wrong.status == 1
    assert "user and password are refused" in wrong.err


