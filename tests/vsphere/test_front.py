"""The front as a server: facts for the disk library, locks, new VMs, files over HTTPS, and large inventories."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import http.client
import json
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

from tests.vsphere.client import Client, connected
from tests.vsphere.facts import DiskFact, read_facts
from tests.vsphere.front import Front, front
from tests.vsphere.simulator import Inventory, missing
from tests.vsphere.steps import (
    OTHER,
    SIZE,
    VM,
    backing_names,
    device,
    facts_of,
    folder,
    power_off,
    power_on,
    remove,
    revert,
    take,
)

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
MANY = 10_000


def live_fact(vcenter: Front, vm: Any) -> DiskFact:
    (found,) = [disk for disk in facts_of(vcenter, vm) if not disk.snapshot]
    return found


def request(
    vcenter: Front, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(vcenter.directory / "vcenter.pem"))
    connection = http.client.HTTPSConnection("127.0.0.1", vcenter.port, context=context)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def authorization(vcenter: Front) -> dict[str, str]:
    pair = base64.b64encode(f"{vcenter.user}:{vcenter.password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def test_the_facts_name_who_may_connect_and_every_disk(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    facts = read_facts(vcenter.directory)
    assert (facts.user, facts.password) == (vcenter.user, vcenter.password)
    shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", vcenter.port)))
    assert facts.thumbprint.replace(":", "") == hashlib.sha1(shown).hexdigest().upper()
    assert facts.thumbprint.count(":") == 19
    path, file = f"[LocalDS_0] {VM}/disk1.vmdk", str(folder(vcenter) / "disk1-flat.vmdk")
    assert facts_of(vcenter, vm) == [DiskFact(vm._moId, path, file, "", writable=False)]
    assert Path(file).stat().st_size == SIZE
    assert len(facts.disks) == 2


def test_the_facts_follow_power_snapshots_and_reverts(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    power_off(client, vm)
    assert live_fact(vcenter, vm).writable
    snapshot = take(client, vm)
    base, delta = (str(folder(vcenter) / name) for name in ("disk1-flat.vmdk", "disk1-000001-flat.vmdk"))
    assert facts_of(vcenter, vm) == [
        DiskFact(vm._moId, f"[LocalDS_0] {VM}/disk1-000001.vmdk", delta, "", writable=True),
        DiskFact(vm._moId, f"[LocalDS_0] {VM}/disk1.vmdk", base, snapshot._moId, writable=False),
    ]
    power_on(client, vm)
    assert not live_fact(vcenter, vm).writable
    revert(client, snapshot)
    assert live_fact(vcenter, vm).writable
    assert live_fact(vcenter, vm).path != f"[LocalDS_0] {VM}/disk1.vmdk"
    remove(client, snapshot)
    (fact,) = facts_of(vcenter, vm)
    assert (fact.path, fact.file) == (f"[LocalDS_0] {VM}/disk1.vmdk", base)


def test_a_disk_of_two_vms_is_not_written_while_one_runs(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    other = client.named(vim.VirtualMachine, OTHER)
    power_off(client, other)
    disk = device(client, vm, key)
    disk.key, disk.unitNumber = -1, 5
    disk.controllerKey = device(client, other, vcenter.disks(OTHER)[0].key).controllerKey
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
    client.wait(other.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    shared = [fact for fact in facts_of(vcenter, other) if fact.path == f"[LocalDS_0] {VM}/disk1.vmdk"]
    assert [fact.writable for fact in shared] == [False]
    power_off(client, vm)
    assert live_fact(vcenter, vm).writable


def test_a_vm_whose_disk_is_open_neither_starts_nor_is_snapshotted(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    snapshot = take(client, vm)
    power_off(client, vm)
    with Path(live_fact(vcenter, vm).file).open("rb") as library:
        fcntl.flock(library, fcntl.LOCK_SH)
        with pytest.raises(vim.fault.FileLocked):
            power_on(client, vm)
        with pytest.raises(vim.fault.FileLocked):
            take(client, vm)
        with pytest.raises(vim.fault.FileLocked):
            revert(client, snapshot)
        with pytest.raises(vim.fault.FileLocked):
            client.wait(vm.Destroy_Task())
    power_on(client, vm)


def test_a_new_vm_has_empty_disks_of_the_wanted_size_and_leaves_with_its_facts(
    vcenter: Front, client: Client, vm: Any
) -> None:
    found = client.properties(vm, "parent", "resourcePool")
    controller = vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing")
    disk = vim.vm.device.VirtualDisk(
        key=2000, controllerKey=1000, unitNumber=0, capacityInKB=SIZE // 1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="", diskMode="persistent", thinProvisioned=True),
    )  # fmt: skip
    spec = vim.vm.ConfigSpec(
        name="replica", guestId="otherGuest", numCPUs=1, memoryMB=64, files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"),
        deviceChange=[
            vim.vm.device.VirtualDeviceSpec(operation="add", device=controller),
            vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk),
        ],
    )  # fmt: skip
    replica = client.wait(found["parent"].CreateVM_Task(spec, found["resourcePool"], None))
    fact = live_fact(vcenter, replica)
    assert fact.writable
    assert fact.path == "[LocalDS_0] replica/replica.vmdk"
    assert Path(fact.file).read_bytes() == bytes(SIZE)
    client.wait(replica.Destroy_Task())
    assert facts_of(vcenter, replica) == []
    assert not Path(fact.file).exists()


def test_a_disk_that_is_detached_and_attached_again_keeps_its_bytes_and_its_size(
    vcenter: Front, client: Client, vm: Any, key: int
) -> None:
    power_off(client, vm)
    disk, content = device(client, vm, key), vcenter.disks(VM)[0].file.read_bytes()
    out = vim.vm.device.VirtualDeviceSpec(operation="remove", device=disk)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[out])))
    assert facts_of(vcenter, vm) == []
    again = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=disk.controllerKey, unitNumber=0, capacityInKB=0,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=disk.backing.fileName, diskMode="persistent"),
    )  # fmt: skip
    back = vim.vm.device.VirtualDeviceSpec(operation="add", device=again)
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[back])))
    (found,) = vcenter.disks(VM)
    assert device(client, vm, found.key).capacityInBytes == SIZE
    assert Path(live_fact(vcenter, vm).file).read_bytes() == content


def test_a_virtual_disk_of_its_own_has_its_size(vcenter: Front, client: Client) -> None:
    center = client.named(vim.Datacenter, "DC0")
    spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(capacityKb=2048, diskType="thin", adapterType="busLogic")
    manager = client.content.virtualDiskManager
    client.wait(manager.CreateVirtualDisk_Task("[LocalDS_0] alone.vmdk", center, spec))
    assert (vcenter.datastores["LocalDS_0"] / "alone-flat.vmdk").stat().st_size == 2048 * 1024


def test_a_vm_that_does_not_exist_is_not_found(client: Client) -> None:
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.VirtualMachine("vm-99999", client.stub).PowerOffVM_Task()


def test_files_are_given_to_who_may_have_them_only(vcenter: Front, client: Client, key: int) -> None:
    path = f"/folder/{VM}/disk1-flat.vmdk?dcPath=DC0&dsName=LocalDS_0"
    assert request(vcenter, "GET", path)[0] == 401
    status, content = request(vcenter, "GET", path, headers=authorization(vcenter))
    assert (status, content) == (200, vcenter.disks(VM)[0].file.read_bytes())
    cookie = {"Cookie": client.stub.cookie.split(";")[0]}
    assert request(vcenter, "GET", path, headers=cookie) == (200, content)
    part = request(vcenter, "GET", path, headers={**cookie, "Range": "bytes=2-6"})
    assert part == (206, content[2:7])


def test_files_are_put_into_a_datastore(vcenter: Front) -> None:
    content = bytes(range(256)) * 20_000
    path = "/folder/upload.bin?dcPath=DC0&dsName=LocalDS_0"
    assert request(vcenter, "PUT", path, content)[0] == 401
    assert request(vcenter, "PUT", path, content, authorization(vcenter))[0] == 200
    assert (vcenter.datastores["LocalDS_0"] / "upload.bin").read_bytes() == content


def test_tags_answer_through_the_front(vcenter: Front) -> None:
    status, answer = request(vcenter, "POST", "/rest/com/vmware/cis/session", headers=authorization(vcenter))
    assert status == 200
    session = {"vmware-api-session-id": json.loads(answer)["value"]}
    category = {"name": "replica", "description": "", "cardinality": "SINGLE", "associable_types": []}
    spec = json.dumps({"create_spec": category}).encode()
    status, answer = request(vcenter, "POST", "/rest/com/vmware/cis/tagging/category", spec, session)
    made = json.loads(answer)["value"]
    status, answer = request(vcenter, "GET", "/rest/com/vmware/cis/tagging/category", headers=session)
    assert (status, json.loads(answer)["value"]) == (200, [made])


def test_pyvmomi_finds_the_version_and_pins_the_certificate(vcenter: Front) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    place = {"host": "127.0.0.1", "port": vcenter.port, "user": vcenter.user, "pwd": vcenter.password}
    service = SmartConnect(**place, thumbprint=vcenter.thumbprint, sslContext=context)
    try:
        assert service.content.about.apiType == "VirtualCenter"
    finally:
        Disconnect(service)
        service._stub.DropConnections()


def test_the_front_ends_while_a_client_waits_for_updates(tmp_path: Path) -> None:
    waiting, ended = threading.Event(), threading.Event()

    def wait(vcenter: Front) -> None:
        # What pyVmomi raises depends on where its connection is cut.
        with (
            suppress(OSError, http.client.HTTPException),
            connected(vcenter.url, vcenter.user, vcenter.password) as client,
        ):
            query = vmodl.query.PropertyCollector
            spec = query.FilterSpec(
                objectSet=[query.ObjectSpec(obj=client.content.rootFolder)],
                propSet=[query.PropertySpec(type=vim.Folder, pathSet=["name"])],
            )
            client.content.propertyCollector.CreateFilter(spec, True)
            version = client.content.propertyCollector.WaitForUpdatesEx(None, None).version
            waiting.set()
            client.content.propertyCollector.WaitForUpdatesEx(version, None)
        ended.set()

    with front(Inventory(vms=1), tmp_path) as vcenter:
        client = threading.Thread(target=wait, args=(vcenter,))
        client.start()
        assert waiting.wait(60)
        time.sleep(0.2)
        assert not ended.is_set()
    client.join(60)
    assert ended.is_set()


def test_two_clients_take_snapshots_of_two_vms_at_once(vcenter: Front, client: Client, vm: Any, key: int) -> None:
    with connected(vcenter.url, vcenter.user, vcenter.password) as second:
        other = second.named(vim.VirtualMachine, OTHER)
        tasks = [(client, vm.CreateSnapshot_Task("a", "", False, False))]
        tasks.append((second, other.CreateSnapshot_Task("b", "", False, False)))
        for session, task in tasks:
            session.wait(task)
    assert backing_names(client, vm, key)[1:] == ["disk1.vmdk"]


def test_an_esxi_host_tracks_and_keeps_as_well(tmp_path: Path) -> None:
    with (
        front(Inventory(vms=1, esx=True), tmp_path) as host,
        connected(host.url, host.user, host.password) as client,
    ):
        ((moref, _),) = client.inventory(vim.VirtualMachine, "name").items()
        vm = vim.VirtualMachine(moref, client.stub)
        client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        key = host.disks(moref)[0].key
        first = take(client, vm, "first")
        host.write(moref, key, 0, b"x")
        second = take(client, vm, "second")
        since = device(client, first, key).backing.changeId
        answer = vm.QueryChangedDiskAreas(second, key, 0, since)
        assert [(area.start, area.length) for area in answer.changedArea] == [(0, 64 * 1024)]
        host.faults.fail_task("CreateVM_Task", vim.fault.DuplicateName(name="copy", object=vm))
        found = client.properties(vm, "parent", "resourcePool")
        with pytest.raises(vim.fault.DuplicateName):
            client.wait(found["parent"].CreateVM_Task(vim.vm.ConfigSpec(name="copy"), found["resourcePool"], None))


def test_datastores_of_one_name_in_two_datacenters_are_two(tmp_path: Path) -> None:
    with (
        front(Inventory(datacenters=2, vms=1), tmp_path) as vcenter,
        connected(vcenter.url, vcenter.user, vcenter.password) as client,
    ):
        files = [vcenter.disks(f"DC{number}_C0_RP0_VM0")[0].file for number in range(2)]
        assert files[0].parent.parent != files[1].parent.parent
        take(client, client.named(vim.VirtualMachine, "DC1_C0_RP0_VM0"))
        assert len(list(files[0].parent.glob("*-flat.vmdk"))) == 1
        assert len(list(files[1].parent.glob("*-flat.vmdk"))) == 2


@pytest.mark.timeout(1800)
def test_ten_thousand_vms_are_listed_in_pages_and_one_of_them_is_tracked(tmp_path: Path) -> None:
    with (
        front(Inventory(hosts=10, vms=MANY, autostart=False), tmp_path) as vcenter,
        connected(vcenter.url, vcenter.user, vcenter.password) as client,
    ):
        found = client.inventory(vim.VirtualMachine, "name", "runtime.powerState", page=700)
        assert len(found) == MANY
        names = sorted(properties["name"] for properties in found.values())
        assert names == sorted(f"DC0_C0_RP0_VM{number}" for number in range(MANY))
        assert read_facts(vcenter.directory).disks == ()
        moref = next(moref for moref, properties in found.items() if properties["name"].endswith("_VM7777"))
        vm = vim.VirtualMachine(moref, client.stub)
        client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        take(client, vm)
        (disk,) = vcenter.disks("DC0_C0_RP0_VM7777")
        assert device(client, vm, disk.key).backing.changeId
        assert {fact.vm for fact in read_facts(vcenter.directory).disks} == {vm._moId}
