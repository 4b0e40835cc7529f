"""The simulated vCenter: it is built once, demands its password, and leaves nothing behind, however it ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pyVmomi import vim

from tests.vsphere import simulator as program
from tests.vsphere.client import connected
from tests.vsphere.simulator import Inventory, build, missing, simulator

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

USER, PASSWORD = "operator@vsphere.local", "of the simulator"


@pytest.mark.parametrize("tls", [False, True])
def test_the_inventory_has_the_numbers_that_were_asked_for(tls: bool) -> None:
    wanted = Inventory(datacenters=2, hosts=3, vms=4, datastores=2)
    with simulator(wanted, USER, PASSWORD, tls=tls) as running:
        with connected(running.url, USER, PASSWORD) as client:
            assert len(client.inventory(vim.Datacenter, "name")) == 2
            assert len(client.inventory(vim.HostSystem, "name")) == 2 * 3
            assert len(client.inventory(vim.VirtualMachine, "name")) == 2 * 4
            assert len(client.inventory(vim.Datastore, "name")) == 2 * 2
        assert sorted((store.datacenter, store.name) for store in running.datastores) == [
            ("DC0", "LocalDS_0"), ("DC0", "LocalDS_1"), ("DC1", "LocalDS_0"), ("DC1", "LocalDS_1")
        ]  # fmt: skip
        folders = [store.folder for store in running.datastores]
        assert all(folder.is_dir() for folder in folders)
        assert sum(len(list(folder.glob("*/disk1-flat.vmdk"))) for folder in folders) == 2 * 4
    assert not any(folder.exists() for folder in folders)


def test_only_the_user_with_the_right_password_logs_in() -> None:
    with simulator(Inventory(vms=1), USER, PASSWORD) as running:
        client = connected(running.url, USER, PASSWORD + ".")
        with pytest.raises(vim.fault.InvalidLogin):
            client.__enter__()


def test_a_single_esxi_host_has_its_vms_and_datastore() -> None:
    with simulator(Inventory(vms=3, esx=True), USER, PASSWORD) as running:
        with connected(running.url, USER, PASSWORD) as client:
            assert client.content.about.apiType == "HostAgent"
            assert len(client.inventory(vim.VirtualMachine, "name")) == 3
        assert [store.name for store in running.datastores] == ["LocalDS_0"]


def test_the_rest_endpoint_answers_for_tags() -> None:
    with simulator(Inventory(vms=0), USER, PASSWORD) as running:
        address = urlsplit(running.url)
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(
            f"http://{address.netloc}/rest/com/vmware/cis/session", method="POST",
            headers={"Authorization": f"Basic {pair}"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["value"]


def test_what_changed_block_tracking_needs_is_set_in_every_vm() -> None:
    with simulator(Inventory(vms=1), USER, PASSWORD) as running, connected(running.url, USER, PASSWORD) as client:
        asked = ("capability.changeTrackingSupported", "runtime.consolidationNeeded")
        (found,) = client.inventory(vim.VirtualMachine, *asked).values()
    assert [found[name] for name in asked] == [True, False]


def test_two_builds_at_once_build_once_and_give_one_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_programs", lambda: tmp_path)
    run, builds = subprocess.run, []

    def counted(command: list[str], **options: Any) -> Any:
        builds.extend(command[1:2])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: program.build.__wrapped__(), range(2))
    assert first == second
    assert first.stat().st_mode & 0o111
    assert builds.count("build") == 1


def test_without_go_the_reason_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "golang-go" in missing()


def test_without_the_library_the_reason_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "LIBRARY", Path("/nowhere"))
    assert "golang-github-vmware-govmomi-dev" in missing()


HOLDER = """
import sys, time
from tests.vsphere.simulator import Inventory, simulator
with simulator(Inventory(vms=1), "u", "p") as running:
    print(running.pid, flush=True)
    time.sleep(600)
"""


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    build()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        assert list(tmp_path.glob("*/govcsim-*"))
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    for _ in range(600):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the simulator outlived its parent")
    assert not list(tmp_path.glob("*/govcsim-*")), "its datastores were left behind"
