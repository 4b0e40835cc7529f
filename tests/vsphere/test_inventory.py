"""VMs, hosts, datastores and networks of a vCenter or an ESXi host, as the platform reports them."""

from __future__ import annotations

import base64
import http.client
import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest
from pyVmomi import vim

from tests.vsphere.client import Client, connected
from tests.vsphere.front import Front, front
from tests.vsphere.paging import Pages, page_answers
from tests.vsphere.simulator import Inventory, missing, simulator
from understudy.errors import GuestError, HostUnreachable, NotFound, PlatformError, Refused, UsageError
from understudy.model.access import HostAccess
from understudy.model.inventory import VmState
from understudy.platforms import open_platform, server_certificate
from understudy.platforms.vsphere.definition import DiskController, hardware_of
from understudy.platforms.vsphere.host import VsphereHost
from understudy.platforms.vsphere.lookup import Lookup
from understudy.platforms.vsphere.networks import networks
from understudy.platforms.vsphere.stub import Stub
from understudy.platforms.vsphere.surroundings import datastores, hosts
from understudy.platforms.vsphere.tags import vm_tags

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

VM, OTHER = "DC0_C0_RP0_VM0", "DC0_C0_RP0_VM1"
GIB = 1 << 30


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Front]:
    with front(Inventory(datacenters=2, hosts=2, vms=2), tmp_path) as running:
        page_answers(running)
        yield running


@pytest.fixture
def client(vcenter: Front) -> Iterator[Client]:
    """An administrator who changes things meanwhile."""
    with connected(vcenter.url, vcenter.user, vcenter.password) as session:
        yield session


def opened(server: Front, scheme: str = "vpx") -> VsphereHost:
    uri = f"{scheme}://127.0.0.1:{server.port}/"
    platform = open_platform(HostAccess(uri, server.user, server.password, server_certificate(uri).thumbprint))
    assert isinstance(platform, VsphereHost)
    return platform


@pytest.fixture
def host(vcenter: Front) -> Iterator[VsphereHost]:
    with closing(opened(vcenter)) as platform:
        yield platform


def reconfigure(client: Client, name: str, *devices: Any, **settings: Any) -> None:
    vm = client.named(vim.VirtualMachine, name)
    changes = [
        vim.vm.device.VirtualDeviceSpec(
            operation="add", device=device, fileOperation="create" if hasattr(device, "capacityInKB") else None
        )
        for device in devices
    ]
    client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=changes, **settings)))


def disk(key: int, controller: int, unit: int, size: int = GIB, **backing: Any) -> Any:
    file = f"[LocalDS_0] {VM}/more{-key}.vmdk"
    settings = {"fileName": file, "diskMode": "persistent", "thinProvisioned": True, **backing}
    info = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(**settings)
    return vim.vm.device.VirtualDisk(
        key=key, controllerKey=controller, unitNumber=unit, capacityInKB=size >> 10, capacityInBytes=size, backing=info
    )


def make_vm(client: Client, folder: Any, name: str, **settings: Any) -> Any:
    """A VM without devices, in that folder."""
    files = vim.vm.FileInfo(vmPathName=f"[LocalDS_0] {folder._moId}-{name}/")
    spec = vim.vm.ConfigSpec(name=name, numCPUs=2, memoryMB=512, guestId="debian11_64Guest", files=files, **settings)
    pool = vim.ResourcePool(next(iter(client.inventory(vim.ResourcePool, "name"))), client.stub)
    return client.wait(folder.CreateVM_Task(config=spec, pool=pool))


def vm_folder(client: Client, datacenter: str) -> Any:
    center = client.named(vim.Datacenter, datacenter)
    return client.properties(center, "vmFolder")["vmFolder"]


# --- VMs --------------------------------------------------------------------------------------------------------------


def test_a_list_has_every_vm_with_its_disks(host: VsphereHost) -> None:
    listed = host.list_vms()
    assert [vm.name for vm in listed] == ["DC0_C0_RP0_VM0", "DC0_C0_RP0_VM1", "DC1_C0_RP0_VM0", "DC1_C0_RP0_VM1"]
    vm = listed[0]
    assert (vm.state, vm.vcpus, vm.memory_bytes, vm.firmware) == (VmState.RUNNING, 1, 32 << 20, "bios")
    (found,) = vm.disks
    assert (found.name, found.path) == ("scsi0:0", f"[LocalDS_0] {VM}/disk1.vmdk")
    assert found.tracked
    assert (found.obstacle, vm.obstacle, vm.notes) == ("", "", ())
    (nic,) = vm.nics
    assert (nic.kind, nic.source, nic.model) == ("dvportgroup", "DC0_DVPG0", "e1000")
    assert len({vm.uuid for vm in listed}) == 4


def test_a_description_tells_what_the_list_tells_and_the_definition(host: VsphereHost, client: Client) -> None:
    reconfigure(client, VM, annotation="The first.", firmware="efi")
    listed, described = host.list_vms()[0], host.describe_vm(VM)
    assert described.definition
    assert not listed.definition
    assert (described.uuid, described.disks, described.nics) == (listed.uuid, listed.disks, listed.nics)
    assert described.firmware == "uefi"
    root = ET.fromstring(described.definition)
    assert (root.findtext("name"), root.findtext("uuid")) == (VM, described.uuid)
    hardware = hardware_of(described.definition)
    assert hardware is not None
    assert [(item.name, item.controller, item.capacity) for item in hardware.disks] == [
        ("scsi0:0", DiskController.PVSCSI, described.disks[0].size)
    ]
    assert (hardware.annotation, hardware.firmware.value) == ("The first.", "efi")
    assert f'"path": "DC0/vm/{VM}"' in hardware.facts


def test_disks_of_every_controller_have_their_names_and_obstacles(host: VsphereHost, client: Client) -> None:
    shared = vim.vm.device.VirtualLsiLogicSASController(key=-5, busNumber=1, sharedBus="physicalSharing")
    sata = vim.vm.device.VirtualAHCIController(key=-6, busNumber=0)
    reconfigure(client, VM, shared, disk(-15, -5, 0), sata, disk(-16, -6, 3, size=3 * GIB),
                disk(-17, 202, 2, diskMode="independent_persistent"),
                disk(-18, 202, 3, sharing="sharingMultiWriter"))  # fmt: skip
    found = {item.name: item for item in host.describe_vm(VM).disks}
    assert sorted(found) == ["sata0:3", "scsi0:0", "scsi0:2", "scsi0:3", "scsi1:0"]
    assert {name: item.tracked for name, item in found.items() if not item.obstacle} == {
        "sata0:3": True, "scsi0:0": True,
    }  # fmt: skip
    assert "shares the bus" in found["scsi1:0"].obstacle
    assert "independent" in found["scsi0:2"].obstacle
    assert "multi-writer" in found["scsi0:3"].obstacle
    assert not any(item.tracked for item in found.values() if item.obstacle)
    assert found["sata0:3"].size == 3 * GIB


def test_the_path_of_a_disk_is_the_same_while_the_vm_has_snapshots(
    host: VsphereHost, client: Client, vcenter: Front
) -> None:
    before = host.describe_vm(VM).disks
    vm = client.named(vim.VirtualMachine, VM)
    for name in ("one", "two"):
        client.wait(vm.CreateSnapshot_Task(name, "", False, False))
    devices: list[Any] = client.properties(vm, "config.hardware.device")["config.hardware.device"]
    live: Any
    (live,) = [item.backing for item in devices if type(item) is vim.vm.device.VirtualDisk]
    assert live.fileName == f"[LocalDS_0] {VM}/disk1-000002.vmdk"
    assert host.describe_vm(VM).disks == before
    assert host.replica_disks(host.describe_vm(VM).uuid) == {
        f"[LocalDS_0] {VM}/disk1-000002.vmdk", f"[LocalDS_0] {VM}/disk1.vmdk",
    }  # fmt: skip


def test_power_states_are_told(host: VsphereHost, client: Client) -> None:
    client.wait(client.named(vim.VirtualMachine, VM).PowerOffVM_Task())
    client.wait(client.named(vim.VirtualMachine, OTHER).SuspendVM_Task())
    off, suspended = host.describe_vm(VM), host.describe_vm(OTHER)
    assert (off.state, off.run) == (VmState.SHUT_OFF, "")
    assert suspended.state is VmState.PAUSED
    assert suspended.run
    assert host.replica_state(off.uuid) is VmState.SHUT_OFF
    assert host.replica_state("00000000-0000-0000-0000-000000000000") is None


def test_a_template_and_a_vm_that_needs_consolidation(
    host: VsphereHost, client: Client, vcenter: Front
) -> None:
    vm = client.named(vim.VirtualMachine, VM)
    client.wait(vm.PowerOffVM_Task())
    vm.MarkAsTemplate()
    assert host.describe_vm(VM).obstacle == "it is a template"
    vcenter.faults.leave_delta()
    snapshot = client.wait(client.named(vim.VirtualMachine, OTHER).CreateSnapshot_Task("s", "", False, False))
    client.wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    other = host.describe_vm(OTHER)
    assert (other.obstacle, other.notes) == ("", ("its disks need consolidation",))


def test_a_vm_that_the_server_cannot_reach_is_listed_with_its_obstacle(host: VsphereHost, client: Client) -> None:
    settings = [vim.option.OptionValue(key="SET.runtime.connectionState", value="inaccessible")]
    reconfigure(client, VM, extraConfig=settings)
    assert host.list_vms()[0].obstacle == "the server cannot reach it: it is inaccessible"


# --- names ------------------------------------------------------------------------------------------------------------


def test_an_ambiguous_name_is_refused_and_the_path_is_good(host: VsphereHost, client: Client) -> None:
    inner = vm_folder(client, "DC0").CreateFolder("web")
    first, second = make_vm(client, inner, "www"), make_vm(client, vm_folder(client, "DC1"), "www")
    with pytest.raises(Refused, match="2 VMs have this name: DC0/vm/web/www, DC1/vm/www; name it by its path"):
        host.describe_vm("www")
    with pytest.raises(Refused):
        host.sighting("www", "")
    uuids = [client.properties(vm, "config.instanceUuid")["config.instanceUuid"] for vm in (first, second)]
    found = [host.describe_vm(path) for path in ("DC0/vm/web/www", "DC1/vm/www")]
    assert [vm.uuid for vm in found] == uuids
    assert [vm.name for vm in found] == ["DC0/vm/web/www", "DC1/vm/www"]
    listed = {vm.uuid: vm.name for vm in host.list_vms()}
    assert [listed[uuid] for uuid in uuids] == ["DC0/vm/web/www", "DC1/vm/www"]
    seen = host.sighting("another", uuids[0])
    assert seen is not None
    assert (seen.name, seen.uuid) == ("DC0/vm/web/www", uuids[0])


def test_a_vm_that_is_renamed_removed_or_new_is_found_at_once(host: VsphereHost, client: Client) -> None:
    uuid = host.describe_vm(VM).uuid
    vm = client.named(vim.VirtualMachine, VM)
    client.wait(vm.Rename_Task("renamed"))
    with pytest.raises(NotFound, match="has no VM of that name"):
        host.describe_vm(VM)
    assert host.describe_vm("renamed").uuid == uuid
    seen = host.sighting(VM, uuid)
    assert seen is not None
    assert (seen.name, seen.state) == ("renamed", VmState.RUNNING)
    make_vm(client, vm_folder(client, "DC0"), "new")
    assert host.describe_vm("new").memory_bytes == 512 << 20
    client.wait(vm.PowerOffVM_Task())
    client.wait(vm.Destroy_Task())
    with pytest.raises(NotFound):
        host.describe_vm("renamed")
    assert host.sighting("renamed", uuid) is None
    assert host.replica_state(uuid) is None
    assert host.replica_disks(uuid) == set()


def test_a_name_is_looked_for_once_and_the_vm_is_read_each_time(
    host: VsphereHost, client: Client, vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.describe_vm(VM)
    read = Lookup.directory
    asked: list[Lookup] = []
    monkeypatch.setattr(Lookup, "directory", lambda self: asked.append(self) or read(self))  # type: ignore[func-returns-value]
    reconfigure(client, VM, annotation="changed")
    hardware = hardware_of(host.describe_vm(VM).definition)
    assert hardware is not None
    assert hardware.annotation == "changed"
    assert asked == []


def test_a_vm_is_seen_by_its_uuid_and_else_by_its_name(host: VsphereHost) -> None:
    vm = host.describe_vm(VM)
    by_uuid, by_name = host.sighting("", vm.uuid), host.sighting(VM, "00000000-0000-0000-0000-000000000000")
    assert by_uuid == by_name
    assert by_uuid is not None
    assert (by_uuid.name, by_uuid.uuid, by_uuid.state) == (VM, vm.uuid, VmState.RUNNING)
    assert host.sighting("nobody", "") is None
    assert host.sighting("", "") is None


# --- surroundings -----------------------------------------------------------------------------------------------------


def test_hosts_datastores_and_networks(host: VsphereHost, vcenter: Front) -> None:
    found = hosts(host._connection)
    assert [item.name for item in found] == ["DC0_C0_H0", "DC0_C0_H1", "DC1_C0_H0", "DC1_C0_H1"]
    assert all(item.usable and item.cpus and item.memory_bytes for item in found)
    vcenter.faults.fill_datastore("LocalDS_0")
    stores = datastores(host._connection)
    assert {store.name for store in stores} == {"LocalDS_0"}
    assert all(store.accessible and store.capacity and store.free == 0 for store in stores)
    names = {network.name: network.kind for network in networks(host._connection).values()}
    assert names["VM Network"] == "network"
    assert names["DC0_DVPG0"] == "dvportgroup"


def test_the_facts_of_a_vcenter_and_of_a_single_host(host: VsphereHost, tmp_path: Path) -> None:
    facts = host.facts()
    assert facts.platform_version == "6.5.0 build 5973321, API 6.5"
    assert facts.hypervisor_version == "6.5.0"
    assert (facts.emulator_user, facts.notes) == (None, ())
    assert facts.cpus == 4 * hosts(host._connection)[0].cpus
    (tmp_path / "esx").mkdir()
    with front(Inventory(vms=2, esx=True), tmp_path / "esx") as server, closing(opened(server, "esx")) as single:
        assert single.facts().cpus == hosts(single._connection)[0].cpus
        names = [vm.name for vm in single.list_vms()]
        assert len(names) == 2
        assert single.describe_vm(f"ha-datacenter/vm/{names[0]}").uuid == single.describe_vm(names[0]).uuid
        assert single.describe_vm(names[0]).nics[0].source == "VM Network"


def rest(vcenter: Front, verb: str, path: str, body: Any = None, session: str = "") -> Any:
    """A call of the REST interface; the session's key, if there is none yet."""
    server = http.client.HTTPConnection(urlsplit(vcenter._gateway.simulator.url).netloc)
    pair = base64.b64encode(f"{vcenter.user}:{vcenter.password}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {pair}", "vmware-api-session-id": session}
    with closing(server):
        server.request(verb, f"/rest/com/vmware/cis/{path}", json.dumps(body) if body else None, headers)
        text = server.getresponse().read()
    return json.loads(text)["value"] if text else None


def test_tags_are_read_where_there_are_any(host: VsphereHost, client: Client, vcenter: Front, tmp_path: Path) -> None:
    assert vm_tags(host._connection) == {}
    key = rest(vcenter, "POST", "session")
    spec = {"name": "tier", "cardinality": "SINGLE", "associable_types": [], "description": ""}
    category = rest(vcenter, "POST", "tagging/category", {"create_spec": spec}, key)
    made = {"name": "gold", "category_id": category, "description": ""}
    tag = rest(vcenter, "POST", "tagging/tag", {"create_spec": made}, key)
    moref = client.named(vim.VirtualMachine, VM)._moId
    attached = {"object_id": {"type": "VirtualMachine", "id": moref}}
    rest(vcenter, "POST", f"tagging/tag-association/id:{tag}?~action=attach", attached, key)
    assert vm_tags(host._connection) == {moref: ("tier/gold",)}
    (tmp_path / "esx").mkdir()
    with front(Inventory(vms=1, esx=True), tmp_path / "esx") as server, closing(opened(server, "esx")) as single:
        assert vm_tags(single._connection) == {}


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_session_that_ends_between_the_pages_of_a_list_leaves_nobody_out(host: VsphereHost, vcenter: Front) -> None:
    for calls in range(1, 9):
        vcenter.faults.expire_sessions(after=calls)
        assert len(host.list_vms()) == 4


def test_a_refused_list_names_the_privilege(host: VsphereHost, vcenter: Front) -> None:
    lacking = vim.fault.NoPermission(object=vim.Folder("group-d1"), privilegeId="System.View")
    vcenter.faults.fail("RetrievePropertiesEx", lacking)
    with pytest.raises(PlatformError, match=r"lacks System.View on Folder group-d1 \(Datacenters\)"):
        host.list_vms()


def test_a_list_leaves_no_view_at_the_server(
    host: VsphereHost, vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    admitted = vcenter._gateway.admitted

    def counted(request: Any, session: str) -> bool:
        made.append(request.method)
        return admitted(request, session)

    monkeypatch.setattr(vcenter._gateway, "admitted", counted)
    host.list_vms()
    lacking = vim.fault.NoPermission(object=vim.Folder("group-d1"), privilegeId="System.View")
    vcenter.faults.fail("RetrievePropertiesEx", lacking)
    with pytest.raises(PlatformError):
        host.list_vms()
    assert made.count("CreateContainerView") == made.count("DestroyView") > 3


def test_threads_share_one_host(host: VsphereHost) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(host.list_vms()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4] * 4


def test_a_guest_agent_is_never_pretended(host: VsphereHost) -> None:
    vm = host.describe_vm(VM)
    assert not vm.has_agent_channel
    with pytest.raises(GuestError, match="on vSphere no QEMU guest agent can be reached"):
        host.freeze(vm.uuid, 1)


def test_a_wrong_thumbprint_and_a_libvirt_address_have_no_certificate_to_trust(vcenter: Front) -> None:
    uri = f"vpx://127.0.0.1:{vcenter.port}/"
    with pytest.raises(HostUnreachable, match=r"its certificate is .*, and AB:AB:.* was confirmed"):
        open_platform(HostAccess(uri, vcenter.user, vcenter.password, ":".join(["AB"] * 32)))
    with pytest.raises(UsageError):
        server_certificate("qemu:///system")


def test_ten_thousand_vms_are_listed_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the front, which would parse everything once more, in this very process; so answers are paged here."""
    pages, ask = Pages(), Stub.answer

    def answer(self: Stub, item: Any, info: Any, arguments: Any) -> bytes:
        if info.wsdlName == "ContinueRetrievePropertiesEx":
            return pages.next(arguments[0]) or b""
        whole = ask(self, item, info, arguments)
        return pages.first(whole, arguments[1].maxObjects) if info.wsdlName == "RetrievePropertiesEx" else whole

    monkeypatch.setattr(Stub, "answer", answer)
    with simulator(Inventory(vms=10_000, autostart=False), "user", "password", tls=True) as server:
        uri = f"vpx://{urlsplit(server.url).netloc}/"
        access = HostAccess(uri, server.user, server.password, server_certificate(uri).thumbprint)
        with closing(open_platform(access)) as platform:
            started, cpu, memory = time.monotonic(), time.process_time(), most_memory()
            listed = platform.list_vms()
            print(f"list: {time.monotonic() - started:.1f} s, of the processor {time.process_time() - cpu:.1f} s, "
                  f"memory grew by {most_memory() - memory} MiB")
            assert len({vm.uuid for vm in listed}) == 10_000
            assert all(vm.disks and vm.nics for vm in listed)
            started, cpu = time.monotonic(), time.process_time()
            assert platform.describe_vm(listed[7777].name).uuid == listed[7777].uuid
            print(f"one by its name: {time.monotonic() - started:.1f} s, of the processor "
                  f"{time.process_time() - cpu:.1f} s")


def most_memory() -> int:
    """The most memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
