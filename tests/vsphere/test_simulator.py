"""The simulated vCenter: it is built once, demands its password, and leaves nothing behind, however it ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

from tests.vsphere.simulator import Inventory, build, missing, simulator

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

USER, PASSWORD = "operator@vsphere.local", "of the simulator"


def connect(url: str, password: str) -> Any:
    address = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return SmartConnect(
        protocol=address.scheme, host=address.hostname, port=address.port, user=USER, pwd=password,
        sslContext=context if address.scheme == "https" else None,
    )  # fmt: skip


def names(service: Any, kind: type) -> list[str]:
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        collector = vmodl.query.PropertyCollector
        walk = collector.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        spec = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
            propSet=[collector.PropertySpec(type=kind, pathSet=["name"])],
        )
        found = content.propertyCollector.RetrievePropertiesEx([spec], collector.RetrieveOptions())
        return sorted(entry.propSet[0].val for entry in found.objects)
    finally:
        view.Destroy()


@pytest.mark.parametrize("tls", [False, True])
def test_the_inventory_has_the_numbers_that_were_asked_for(tls: bool) -> None:
    wanted = Inventory(datacenters=2, hosts=3, vms=4, datastores=2)
    with simulator(wanted, USER, PASSWORD, tls=tls) as running:
        service = connect(running.url, PASSWORD)
        try:
            assert len(names(service, vim.Datacenter)) == 2
            assert len(names(service, vim.HostSystem)) == 2 * 3
            assert len(names(service, vim.VirtualMachine)) == 2 * 4
            assert len(names(service, vim.Datastore)) == 2 * 2
        finally:
            Disconnect(service)
        assert sorted((store.datacenter, store.name) for store in running.datastores) == [
            ("DC0", "LocalDS_0"), ("DC0", "LocalDS_1"), ("DC1", "LocalDS_0"), ("DC1", "LocalDS_1")
        ]  # fmt: skip
        folders = [store.folder for store in running.datastores]
        assert all(folder.is_dir() for folder in folders)
        assert sum(len(list(folder.glob("*/disk1-flat.vmdk"))) for folder in folders) == 2 * 4
    assert not any(folder.exists() for folder in folders)


def test_only_the_user_with_the_right_password_logs_in() -> None:
    with simulator(Inventory(vms=1), USER, PASSWORD) as running, pytest.raises(vim.fault.InvalidLogin):
        connect(running.url, PASSWORD + ".")


def test_a_single_esxi_host_has_its_vms_and_datastore() -> None:
    with simulator(Inventory(vms=3, esx=True), USER, PASSWORD) as running:
        service = connect(running.url, PASSWORD)
        try:
            assert service.content.about.apiType == "HostAgent"
            assert len(names(service, vim.VirtualMachine)) == 3
        finally:
            Disconnect(service)
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


def test_two_builds_at_once_give_one_program() -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build(), range(2))
    assert first == second
    assert first.stat().st_mode & 0o111


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
