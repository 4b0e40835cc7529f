"""The replica VM's definition: one test per rule, on realistic definitions, all results valid by libvirt's schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt
import pytest

from understudy.platforms import ReplicaVmSpec
from understudy.platforms.libvirt.replica_vm import METADATA_NAMESPACE, replica_xml
from understudy.platforms.libvirt.target_facts import TargetFacts

SAMPLES = Path(__file__).parent / "samples"
BIOS = (SAMPLES / "bios.xml").read_text(encoding="utf-8")
UEFI = (SAMPLES / "uefi.xml").read_text(encoding="utf-8")
UUID = "11111111-2222-4333-8444-555555555555"
HEAD = "/srv/replicas/web/head"
SPEC = ReplicaVmSpec(
    name="wéb server 1 — Zürich_replica", uuid=UUID, replica_id="replica-id-1", definition=BIOS,
    disks={"vda": f"{HEAD}/vda.qcow2", "sda": f"{HEAD}/sda.qcow2"}, head_dir=HEAD, nvram="",
)  # fmt: skip
UEFI_SPEC = replace(
    SPEC, name="win_replica", definition=UEFI, disks={"sda": f"{HEAD}/sda.qcow2"}, nvram=f"{HEAD}/nvram.fd"
)
FACTS = TargetFacts(
    accelerated=True,
    machines=frozenset({"pc", "q35", "pc-i440fx-7.2", "pc-q35-7.2"}),
    networks=frozenset({"default", "storage lan"}),
    interfaces=frozenset({"br-prod", "eth7"}),
    disk_buses=frozenset({"virtio", "scsi", "sata", "ide", "fdc"}),
    tpm=True,
    uefi=True,
    secure_boot=True,
    cpu_problem="",
)
BARE_FACTS = TargetFacts(False, frozenset({"pc", "q35"}), frozenset(), frozenset({"lo"}), frozenset({"virtio"}), False,
                         False, False, "")  # fmt: skip


def made(spec: ReplicaVmSpec = SPEC, facts: TargetFacts = FACTS) -> tuple[ET.Element, str]:
    xml, warnings = replica_xml(spec, facts)
    return ET.fromstring(xml), "\n".join(warnings)


def with_devices(devices: str) -> ReplicaVmSpec:
    xml = (
        "<domain type='kvm'><name>x</name><uuid>6f7a7f2e-0e1b-4c3e-9d0b-1f3f3a1b2c3d</uuid><memory>65536</memory>"
        "<vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>"
        f"<devices>{devices}</devices></domain>"
    )
    return replace(SPEC, definition=xml, disks={})


def one(root: ET.Element, path: str) -> ET.Element:
    found = root.findall(path)
    assert len(found) == 1, f"{len(found)} x {path}"
    return found[0]


def disk(root: ET.Element, name: str) -> ET.Element:
    return next(item for item in root.iterfind("devices/disk") if one(item, "target").get("dev") == name)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_it_has_the_replicas_name_and_uuid_wherever_they_stand() -> None:
    root, _ = made()
    assert root.findtext("name") == SPEC.name
    assert root.findtext("uuid") == UUID
    assert root.findtext("sysinfo/system/entry[@name='uuid']") == UUID
    assert root.findtext("sysinfo/system/entry[@name='manufacturer']") == "ACME"
    assert "6f7a7f2e-0e1b-4c3e-9d0b-1f3f3a1b2c3d" not in replica_xml(SPEC, FACTS)[0]


def test_a_generation_id_is_left_for_libvirt_to_renew() -> None:
    root, _ = made()
    assert one(root, "genid").text is None
    assert made(UEFI_SPEC)[0].find("genid") is None


def test_security_labels_of_the_source_host_are_left_out() -> None:
    assert made()[0].findall("seclabel") == []


def test_it_carries_our_tag_once_beside_the_metadata_of_others() -> None:
    root, _ = made()
    assert one(root, f"metadata/{{{METADATA_NAMESPACE}}}replica").get("id") == "replica-id-1"
    assert root.find("metadata/{http://libosinfo.org/xmlns/libvirt/domain/1.0}libosinfo") is not None
    assert one(made(UEFI_SPEC)[0], f"metadata/{{{METADATA_NAMESPACE}}}replica").get("id") == "replica-id-1"


@pytest.mark.parametrize("facts", [FACTS, BARE_FACTS], ids=["rich host", "bare host"])
@pytest.mark.parametrize("spec", [SPEC, UEFI_SPEC], ids=["bios", "uefi"])
def test_applying_it_twice_changes_nothing_more(spec: ReplicaVmSpec, facts: TargetFacts) -> None:
    once, _ = replica_xml(spec, facts)
    twice, _ = replica_xml(replace(spec, definition=once), facts)
    assert twice == once


# --- disks ------------------------------------------------------------------------------------------------------------


def test_disks_lie_on_the_heads_whatever_they_lay_on_at_the_source() -> None:
    root, _ = made()
    for name in ("vda", "sda"):
        found = disk(root, name)
        assert (found.get("type"), found.get("device")) == ("file", "disk")
        assert one(found, "source").attrib == {"file": f"{HEAD}/{name}.qcow2"}
        driver = one(found, "driver").attrib
        assert (driver["name"], driver["type"]) == ("qemu", "qcow2")
        assert not {"cache", "io"} & set(driver)


def test_what_the_guest_sees_of_a_disk_stays() -> None:
    found = disk(made()[0], "vda")
    assert found.findtext("serial") == "WEB-0001"
    assert one(found, "address").get("slot") == "0x04"
    assert one(found, "driver").get("discard") == "unmap"
    assert one(disk(made()[0], "sda"), "target").get("bus") == "scsi"


def test_nothing_of_the_sources_chain_job_or_secrets_stays_with_a_disk() -> None:
    spec = replace(
        with_devices(
            "<disk type='network' device='lun'><driver name='qemu' type='raw' cache='none'/><source protocol='rbd'/>"
            "<auth username='u'/><encryption format='luks'/><backingStore type='file'/><mirror type='file'/>"
            "<target dev='vda' bus='virtio'/></disk><disk type='block'><source dev='/dev/x'/><target dev='vdb'/></disk>"
        ),
        disks={"vda": "/h/a", "vdb": "/h/b"},
    )
    root, _ = made(spec)
    assert [child.tag for child in disk(root, "vda")] == ["driver", "source", "target"]
    assert disk(root, "vda").get("device") == "disk"
    assert [child.tag for child in disk(root, "vdb")] == ["driver", "source", "target"]
    assert made(UEFI_SPEC)[0].find(".//backingStore") is None


def test_a_disk_that_is_not_replicated_is_left_out_and_said() -> None:
    root, warnings = made()
    assert [one(item, "target").get("dev") for item in root.iterfind("devices/disk")] == ["vda", "sda", "hdc", "fda"]
    assert "disk hdb is not replicated: the replica has no such disk" in warnings
    assert "disk vda" not in warnings


def test_media_are_ejected_and_the_drives_stay() -> None:
    root, warnings = made()
    for name in ("hdc", "fda"):
        assert disk(root, name).find("source") is None
        assert f"drive {name}: the medium was ejected" in warnings
    root, warnings = made(UEFI_SPEC)
    assert disk(root, "sdd").get("device") == "cdrom"
    assert "drive sdd" not in warnings


def test_an_unknown_bus_is_said_but_not_changed() -> None:
    root, warnings = made(facts=replace(FACTS, disk_buses=frozenset({"virtio"})))
    assert "disk sda: bus 'scsi' is unknown on the target host" in warnings
    assert "disk vda" not in warnings
    assert one(disk(root, "sda"), "target").get("bus") == "scsi"
    assert "bus" not in made(facts=replace(FACTS, disk_buses=frozenset()))[1]


# --- network ----------------------------------------------------------------------------------------------------------


def cards(root: ET.Element) -> dict[str, ET.Element]:
    return {one(nic, "mac").get("address", ""): nic for nic in root.iterfind("devices/interface")}


def disconnected(nic: ET.Element) -> bool:
    """A tap device in no bridge, its link down."""
    return nic.attrib == {"type": "ethernet"} and one(nic, "link").attrib == {"state": "down"}


def test_known_networks_stay_connected_under_the_same_addresses() -> None:
    root, warnings = made()
    found = cards(root)
    assert list(found) == [f"52:54:00:aa:bb:0{number}" for number in (1, 2, 3, 4)]
    assert [nic.get("type") for nic in found.values()] == ["network", "network", "bridge", "direct"]
    assert one(found["52:54:00:aa:bb:03"], "source").get("bridge") == "br-prod"
    assert "network card" not in warnings


def test_names_and_limits_that_belong_to_the_source_host_are_left_out_of_cards() -> None:
    for nic in cards(made()[0]).values():
        assert nic.find("target") is None
        assert nic.find("bandwidth") is None


def test_a_missing_network_leaves_a_card_that_is_connected_to_nothing() -> None:
    root, warnings = made(facts=replace(FACTS, networks=frozenset({"default"})))
    nic = cards(root)["52:54:00:aa:bb:02"]
    assert disconnected(nic)
    assert [child.tag for child in nic] == ["mac", "model", "address", "link"]
    assert ("network card 52:54:00:aa:bb:02: the target host has no network 'storage lan'; "
            "it is connected to nothing on the replica") in warnings  # fmt: skip
    assert cards(root)["52:54:00:aa:bb:01"].get("type") == "network"


@pytest.mark.parametrize(("mac", "name"), [("52:54:00:aa:bb:03", "br-prod"), ("52:54:00:aa:bb:04", "eth7")])
def test_a_missing_bridge_or_device_does_the_same(mac: str, name: str) -> None:
    root, warnings = made(facts=replace(FACTS, interfaces=frozenset({"lo"})))
    assert disconnected(cards(root)[mac])
    assert f"network card {mac}: the target host has no interface '{name}'" in warnings


def test_a_host_that_does_not_tell_its_interfaces_gets_the_benefit_of_the_doubt() -> None:
    root, warnings = made(facts=replace(FACTS, interfaces=None))
    assert cards(root)["52:54:00:aa:bb:03"].get("type") == "bridge"
    assert "no interface" not in warnings


def test_a_card_that_is_a_device_of_the_source_host_is_disconnected_and_user_mode_stays() -> None:
    root, warnings = made(UEFI_SPEC)
    found = cards(root)
    assert found["52:54:00:cc:dd:01"].get("type") == "user"
    assert disconnected(found["52:54:00:cc:dd:02"])
    assert "network card 52:54:00:cc:dd:02: a card of type 'hostdev' belongs to the source host" in warnings


# --- hypervisor and firmware ------------------------------------------------------------------------------------------


def test_the_emulator_is_left_for_libvirt_to_find() -> None:
    assert made()[0].find("devices/emulator") is None


def test_on_a_host_without_kvm_the_replica_is_emulated_and_that_is_said() -> None:
    root, warnings = made(facts=replace(FACTS, accelerated=False))
    assert root.get("type") == "qemu"
    assert root.find("cpu") is None
    assert "the target host has no KVM: the replica runs under emulation" in warnings
    root, warnings = made()
    assert root.get("type") == "kvm"
    assert root.findtext("cpu/model") == "Skylake-Server"
    assert "KVM" not in warnings


def test_an_emulated_source_stays_emulated_with_its_cpu() -> None:
    root, warnings = made(UEFI_SPEC, replace(FACTS, accelerated=False))
    assert root.get("type") == "qemu"
    assert root.find("cpu") is not None
    assert "emulation" not in warnings


def test_a_cpu_that_does_not_fit_is_said() -> None:
    _, warnings = made(facts=replace(FACTS, cpu_problem="the host lacks features of CPU model Skylake-Server"))
    assert "CPU: the host lacks features of CPU model Skylake-Server; the replica may not start" in warnings


@pytest.mark.parametrize(
    ("spec", "old", "new"), [(UEFI_SPEC, "pc-q35-99.0", "q35"), (SPEC, "pc-i440fx-7.2", "pc")], ids=["q35", "pc"]
)
def test_an_unknown_machine_type_becomes_the_newest_of_its_family(spec: ReplicaVmSpec, old: str, new: str) -> None:
    root, warnings = made(spec, replace(FACTS, machines=frozenset({"pc", "q35"})))
    assert one(root, "os/type").get("machine") == new
    assert f"machine type '{old}' is unknown on the target host: '{new}' is used" in warnings


def test_a_known_machine_type_stays_and_one_without_family_is_said() -> None:
    root, warnings = made()
    assert one(root, "os/type").get("machine") == "pc-i440fx-7.2"
    assert "machine type" not in warnings
    root, warnings = made(facts=replace(FACTS, machines=frozenset({"virt"})))
    assert one(root, "os/type").get("machine") == "pc-i440fx-7.2"
    assert "the replica will not start" in warnings


def test_uefi_variables_come_from_the_head() -> None:
    root, warnings = made(UEFI_SPEC)
    nvram = one(root, "os/nvram")
    assert (nvram.text, nvram.get("template")) == (f"{HEAD}/nvram.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
    assert "UEFI" not in warnings


def test_without_variables_at_the_point_the_replica_gets_fresh_ones_in_the_head() -> None:
    root, warnings = made(replace(UEFI_SPEC, nvram=""))
    assert root.findtext("os/nvram") == f"{HEAD}/nvram.fd"
    assert "fresh ones from the template" in warnings


def test_variables_named_in_the_newer_form_leave_nothing_of_the_sources_file() -> None:
    newer = UEFI.replace(
        "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/win-2022_VARS.fd</nvram>",
        "<nvram type='file'><source file='/var/lib/libvirt/qemu/nvram/win-2022_VARS.fd'/></nvram>",
    )
    assert "type='file'><source" in newer
    nvram = one(made(replace(UEFI_SPEC, definition=newer))[0], "os/nvram")
    assert (nvram.text, list(nvram), nvram.attrib) == (f"{HEAD}/nvram.fd", [], {})


def test_a_bios_vm_gets_no_variables() -> None:
    assert made()[0].find("os/nvram") is None


def test_a_host_without_uefi_firmware_is_said_for_uefi_vms_only() -> None:
    facts = replace(FACTS, uefi=False)
    assert "the target host has no UEFI firmware: the replica will not start" in made(UEFI_SPEC, facts)[1]
    assert "UEFI" not in made(SPEC, facts)[1]


# --- settings and devices of the source host --------------------------------------------------------------------------


def test_settings_bound_to_cpus_and_nodes_of_the_source_host_are_left_out_once_said() -> None:
    root, warnings = made()
    assert root.find("numatune") is None
    assert root.find("resource") is None
    assert one(root, "vcpu").attrib == {"placement": "static"}
    assert [child.tag for child in one(root, "cputune")] == ["shares"]
    assert ("settings bound to the source host were left out: "
            "numatune, resource, vcpu cpuset, vcpupin, emulatorpin, iothreadpin") in warnings  # fmt: skip
    assert "settings bound" not in made(UEFI_SPEC)[1]


def test_devices_of_the_source_host_are_left_out_and_counted() -> None:
    root, warnings = made(UEFI_SPEC)
    for tag in ("hostdev", "filesystem", "redirdev"):
        assert root.findall(f"devices/{tag}") == []
    assert "2 x host device left out: it belongs to the source host" in warnings
    assert "1 x shared directory left out" in warnings
    assert "1 x redirected USB device left out" in warnings
    assert "left out: it belongs" not in made()[1]


def test_an_emulated_tpm_stays_empty_where_the_host_has_it_and_goes_where_not() -> None:
    root, warnings = made(UEFI_SPEC)
    assert root.find("devices/tpm") is not None
    assert "the replica starts with an empty TPM" in warnings
    root, warnings = made(UEFI_SPEC, replace(FACTS, tpm=False))
    assert root.find("devices/tpm") is None
    assert "the TPM was left out" in warnings


def test_a_tpm_of_the_source_host_goes_always() -> None:
    spec = with_devices("<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>")
    root, warnings = made(spec)
    assert root.find("devices/tpm") is None
    assert "the TPM was left out" in warnings


def test_character_devices_lead_to_nothing_of_the_source_host() -> None:
    root, _ = made()
    for tag in ("serial", "console"):
        for element in root.iterfind(f"devices/{tag}"):
            assert element.get("type") == "pty"
            assert [child.tag for child in element] == ["target"]
    agent, spice = root.findall("devices/channel")
    assert agent.get("type") == "unix"
    assert [child.tag for child in agent] == ["target"]
    assert spice.get("type") == "spicevmc"


@pytest.mark.parametrize("kind", ["file", "dev", "pipe", "unix", "tcp", "udp"])
def test_a_port_that_leads_out_of_the_guest_becomes_one_that_always_starts(kind: str) -> None:
    port = f"<serial type='{kind}'><source path='/x'/><protocol type='raw'/><target port='0'/></serial>"
    element = one(made(with_devices(port))[0], "devices/serial")
    assert (element.get("type"), [child.tag for child in element]) == ("pty", ["target"])


def test_a_fixed_display_port_becomes_automatic() -> None:
    vnc, spice = made()[0].findall("devices/graphics")
    assert vnc.get("autoport") == "yes"
    assert "port" not in vnc.attrib
    assert spice.attrib == {"type": "spice", "autoport": "yes"}


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> Iterator[libvirt.virConnect]:
    """libvirt's built-in test driver, which validates against the schema that a real host uses."""
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def schema_problem(schema: libvirt.virConnect, xml: str) -> str:
    """What the schema says against ``xml``; what only the test driver cannot do does not count."""
    try:
        schema.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
            return str(exc)
    return ""


@pytest.mark.parametrize("facts", [FACTS, BARE_FACTS], ids=["rich host", "bare host"])
@pytest.mark.parametrize("spec", [SPEC, UEFI_SPEC, replace(UEFI_SPEC, nvram="")], ids=["bios", "uefi", "fresh nvram"])
def test_the_result_is_valid_by_libvirts_schema(
    schema: libvirt.virConnect, spec: ReplicaVmSpec, facts: TargetFacts
) -> None:
    assert schema_problem(schema, spec.definition) == ""
    assert schema_problem(schema, replica_xml(spec, facts)[0]) == ""
    assert schema_problem(schema, spec.definition.replace("<features>", "<nonsense>").replace(
        "</features>", "</nonsense>")) != ""  # fmt: skip


@pytest.mark.parametrize("spec", [SPEC, UEFI_SPEC], ids=["bios", "uefi"])
def test_no_path_or_name_of_the_source_host_is_left(spec: ReplicaVmSpec) -> None:
    xml, _ = replica_xml(spec, BARE_FACTS)
    for trace in ("/var/lib/libvirt", "/dev/", "/srv/scratch", "/images", "/isos", "/var/log", "/home", "br-prod",
                  "storage lan", "eth7", "selinux", "rbd", "mon1"):  # fmt: skip
        assert trace not in xml
