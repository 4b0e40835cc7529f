"""Hosts of VMware vSphere on the command line: who logs in, and whose certificate is believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.command_line import CERTIFICATE, CommandLine
from understudy.errors import HostUnreachable

SHA256 = CERTIFICATE.thumbprint
ADD = ("host", "add", "vc", "vpx://vc.example/", "--credential", "admin")


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    line = CommandLine(tmp_path / "home")
    line("credential", "add", "admin", "--user", "understudy@vsphere.local", "--password-stdin", terminal=True,
         typed="geheim\n")  # fmt: skip
    return line


def test_a_vsphere_host_is_added_listed_and_changed(cli: CommandLine) -> None:
    document = {
        "name": "vc", "uri": "vpx://vc.example/", "scratch_dir": "", "max_snapshots": 4, "nbd_address": "",
        "credential": "admin", "thumbprint": SHA256, "library_dir": "", "library_plugin": "vddk",
    }  # fmt: skip
    assert cli.json(*ADD, "--thumbprint", SHA256.replace(":", "").lower()) == document
    assert cli.services is None, "who tells the thumbprint has seen the server before"
    changed = cli.json("host", "set", "vc", "--library-dir", "/opt/vddk", "--library-plugin", "/usr/lib/p.so")
    assert changed == {**document, "library_dir": "/opt/vddk", "library_plugin": "/usr/lib/p.so"}
    other = SHA256.replace("AB", "EF")
    assert cli.json("host", "set", "vc", "--thumbprint", other) == {**changed, "thumbprint": other}
    assert cli.json("host", "set", "vc", "--thumbprint", "")["thumbprint"] == ""
    assert cli.json("host", "list") == [{**changed, "thumbprint": ""}]
    assert "/opt/vddk" in cli.ok("host", "list").out
    assert "host 'vc' uses it; change it: understudy host set 'vc' --credential" in cli.refused(
        "credential", "remove", "admin")


def test_a_certificate_that_this_machine_trusts_is_not_asked_about(cli: CommandLine) -> None:
    cli.settings["certificate"] = replace(CERTIFICATE, trusted=True)
    assert cli.json(*ADD)["thumbprint"] == ""
    assert cli.calls[0] == ("server_certificate", "vpx://vc.example/")


def test_without_a_terminal_the_fingerprint_to_pass_is_told(cli: CommandLine) -> None:
    for arguments in (ADD, ("--json", *ADD)):
        line = cli.refused(*arguments)
        assert line.endswith(f"then add --thumbprint {SHA256}"), line
    result = cli("--json", *ADD, terminal=True, typed="y\n")
    assert (result.status, result.out) == (2, "")
    assert cli.json("host", "list") == []


def test_on_a_terminal_the_certificate_is_shown_and_confirmed(cli: CommandLine) -> None:
    result = cli(*ADD, terminal=True, typed="y\n")
    assert result.status == 0, result
    for shown in ("CN=vc.example", "CN=own�[2J", "2026-01-01", "2028-01-01", SHA256):
        assert shown in result.err
    assert "\x1b" not in result.err
    assert cli.json("host", "list")[0]["thumbprint"] == SHA256


@pytest.mark.parametrize(("typed", "status"), [("n\n", 2), ("\n", 2), ("", 130)])
def test_what_nobody_confirms_is_not_added(cli: CommandLine, typed: str, status: int) -> None:
    result = cli(*ADD, terminal=True, typed=typed)
    assert (result.status, result.out) == (status, "")
    assert cli.json("host", "list") == []


def test_a_server_that_does_not_answer_is_not_added(cli: CommandLine) -> None:
    cli.settings["error"] = HostUnreachable("server vc.example", "no TLS connection", "check the name")
    assert cli.refused(*ADD, status=1) == "server vc.example: no TLS connection; check the name"
    assert cli.json("host", "list") == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("vpx://vc.example/",), "needs a credential; store one: understudy credential add CRED --user 'USER', then"),
        (("vpx://root@vc.example/",), "credential add CRED --user 'root'"),
        (("vpx://root@vc.example/", "--credential", "admin"), "the URI names user 'root', and credential 'admin'"),
        (("esx://h/", "--credential", "nobody"), "no such credential"),
        (("esx://h/ha-datacenter", "--credential", "admin"), "not the address of a vCenter or an ESXi host"),
        (("esx://h/?no_verify=1", "--credential", "admin"), "not the address of a vCenter or an ESXi host"),
        (("esx:///", "--credential", "admin"), "not the address of a vCenter or an ESXi host"),
        (("esx://h:0x1/", "--credential", "admin"), "the address cannot be understood"),
        (("esx://h/", "--credential", "admin", "--scratch-dir", "/x"), "mean nothing for a host of VMware vSphere"),
        (("esx://h/", "--credential", "admin", "--nbd-address", "h"), "mean nothing for a host of VMware vSphere"),
        (("esx://h/", "--credential", "admin", "--thumbprint", "AB:CD"), "this is no SHA-256 fingerprint"),
        (("esx://h/", "--credential", "admin", "--thumbprint", "AB" * 20), "a SHA-1 fingerprint, which can be forged"),
        (("esx://h/", "--credential", "admin", "--library-dir", "opt/vddk"), "is not an absolute path"),
        (("esx://h/", "--credential", "admin", "--library-plugin", "a b"), "'a b' is no plugin of nbdkit"),
        (("qemu:///system", "--credential", "admin"), "mean nothing for a libvirt host"),
        (("qemu:///system", "--thumbprint", SHA256), "mean nothing for a libvirt host"),
        (("qemu:///system", "--library-dir", "/opt/vddk"), "mean nothing for a libvirt host"),
        (("qemu:///system", "--library-plugin", "other"), "mean nothing for a libvirt host"),
    ],
)  # fmt: skip
def test_what_a_host_of_its_kind_cannot_have_is_refused_before_anybody_is_asked(
    cli: CommandLine, arguments: tuple[str, ...], why: str
) -> None:
    assert why in cli.refused("host", "add", "h", *arguments)
    assert cli.services is None
    assert cli.json("host", "list") == []


def test_a_change_is_checked_like_a_new_host(cli: CommandLine, tmp_path: Path) -> None:
    cli.ok(*ADD, "--thumbprint", SHA256)
    cli.ok("host", "add", "kvm", "qemu:///system")
    key = tmp_path / "key"
    key.write_text("a key")
    cli.ok("credential", "add", "key", "--key", str(key))
    before = cli.json("host", "list")
    for arguments, why in {
        ("vc", "--credential", "key"): "credential 'key' is a key, and VMware vSphere wants a password",
        ("vc", "--credential", "nobody"): "no such credential",
        ("vc", "--credential", ""): "needs a credential",
        ("vc", "--nbd-address", "h"): "mean nothing for a host of VMware vSphere",
        ("vc", "--thumbprint", "x"): "no SHA-256 fingerprint",
        ("kvm", "--credential", "admin"): "mean nothing for a libvirt host",
    }.items():
        assert why in cli.refused("host", "set", *arguments)
    assert cli.json("host", "list") == before


def test_a_vsphere_host_keeps_no_layers_and_has_no_emulators(cli: CommandLine, tmp_path: Path) -> None:
    cli.ok(*ADD, "--thumbprint", SHA256)
    add = ("datastore", "add", "ds", "--host", "vc", "--path", "/x")
    assert "keeps no datastore of kind 'qcow2'; give --kind vsphere" in cli.refused(*add)
    assert "the platform's datastore is not named" in cli.refused(*add, "--kind", "vsphere")
    assert cli.json(*add, "--kind", "vsphere", "--place", "fast")["place"] == "fast"
    assert "it is one of VMware vSphere" in cli.refused("host", "certificate", "vc", "--directory", str(tmp_path))
