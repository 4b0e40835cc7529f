"""Guest processing by VMware Tools: real pyVmomi, the front, and a stand-in for a guest, whose disk freezes."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ssl import DER_cert_to_PEM_cert
from typing import Any

import pytest
from pyVmomi import vim

from tests.unit.guests.component.private_guest import PrivateGuest, private_guest
from tests.vsphere.client import connected
from tests.vsphere.front import Front, front
from tests.vsphere.guest_operations import StandIn
from tests.vsphere.simulator import Inventory, missing
from tests.vsphere.sourcing import AT_ONCE, Scene, session
from understudy.context import Context
from understudy.errors import Cancelled, GuestError
from understudy.guests.component import component_for
from understudy.guests.processing import GuestProcessing, Surroundings
from understudy.guests.program import prepare_program
from understudy.guests.transport import OUTPUT_LIMIT
from understudy.guests.vmtools import VmwareToolsTransport
from understudy.model.guest import GuestPolicy, GuestReport, GuestSettings, GuestSystem, GuestTransport
from understudy.model.guest_operations import GuestLogin
from understudy.platforms.vsphere.connection import Connection
from understudy.platforms.vsphere.guest_files import GuestFiles
from understudy.platforms.vsphere.guest_operations import VsphereGuestOperations
from understudy.platforms.vsphere.trust import ServerConnection

pytestmark = pytest.mark.timeout(600)

PASSWORD = "a guest's pass word"
LOGIN = GuestLogin("root", PASSWORD)
DISK = "/tmp/disk"
KEY, PREFIX = "understudy-0123-4", "understudy-0123-"


@pytest.fixture(scope="module")
def vcenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    if reason := missing():
        pytest.skip(reason)
    with front(Inventory(vms=1), tmp_path_factory.mktemp("front")) as running:
        yield running


@pytest.fixture(scope="module")
def connection(vcenter: Front) -> Iterator[Connection]:
    with session(vcenter) as opened:
        yield opened


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateGuest]:
    """With one file system of its own, on a loop device."""
    if os.geteuid() != 0:
        pytest.skip("a guest's program is run as root, in namespaces of its own")
    with private_guest(tmp_path_factory.mktemp("guest"), ("dash",), b"") as made:
        made.sh(f"truncate -s 32M /tmp/image && mkfs.ext4 -q -F /tmp/image && mkdir {DISK} &&"
                f"mount -o loop /tmp/image {DISK}")  # fmt: skip
        try:
            yield made
        finally:
            made.sh(f"fsfreeze -u {DISK} 2>/dev/null; umount {DISK}")


@dataclass
class World:
    """A VM, and the stand-in for its guest."""

    scene: Scene
    guest: StandIn

    @property
    def vcenter(self) -> Front:
        return self.scene.vcenter

    def operations(self, login: GuestLogin = LOGIN) -> VsphereGuestOperations:
        found = self.scene.source(AT_ONCE).guest_operations(self.scene.vm.uuid, login)
        assert isinstance(found, VsphereGuestOperations)
        return found

    def set_family(self, family: str) -> None:
        """What Tools say of the guest."""
        option = vim.option.OptionValue(key="SET.guest.guestFamily", value=family)
        with connected(self.vcenter.url, self.vcenter.user, self.vcenter.password) as client:
            vm = client.named(vim.VirtualMachine, self.scene.name)
            client.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[option])))

    @property
    def left(self) -> list[str]:
        """Files and directories of ours in the guest."""
        return self.guest.machine.sh("find /dev/shm /run/understudy-guest /tmp -name 'understudy*' -type f,d"
                                     " ! -path /run/understudy-guest 2>/dev/null || :").split()  # fmt: skip


@pytest.fixture
def world(vcenter: Front, connection: Connection, machine: PrivateGuest) -> Iterator[World]:
    made = World(Scene(vcenter, connection, "DC0_C0_RP0_VM0"), StandIn(machine, {"root": PASSWORD}))
    vcenter.place_guest(made.scene.name, made.guest)
    vcenter.guests.address = "*"
    yield made
    vcenter.guests.close()
    assert made.left == []


@pytest.fixture
def transport(world: World) -> Iterator[VmwareToolsTransport]:
    made = VmwareToolsTransport(world.operations())
    yield made
    made.close()


def blocked(machine: PrivateGuest) -> subprocess.Popen[bytes]:
    """A writer on the disk, which waits for the thaw."""
    writer = subprocess.Popen(machine.entering("/bin/sh", "-c", f"echo x >{DISK}/x"))
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(timeout=0.7)
    return writer


# --- programs ---------------------------------------------------------------------------------------------------------


def test_a_program_has_its_words_its_input_its_streams_and_its_status(transport: VmwareToolsTransport) -> None:
    script = 'cat; printf "%s|" "$@"; echo bad >&2; exit 7'
    words = ["it's", 'a "word"', "$HOME `id` ;&|", "two\nlines", ""]
    done = transport.run(["/bin/sh", "-c", script, "sh", *words], 60, b"in\0put\n")
    assert (done.status, done.stderr) == (7, b"bad\n")
    assert done.stdout == b"in\0put\n" + b"".join(word.encode() + b"|" for word in words)
    assert transport.run(["/bin/sh", "-c", "cat; exit 0"], 60).stdout == b""


def test_of_more_output_than_the_limit_the_beginning_is_kept(transport: VmwareToolsTransport) -> None:
    done = transport.run(["/bin/sh", "-c", f"head -c {OUTPUT_LIMIT + 5} /dev/zero"], 60)
    assert (done.status, len(done.stdout)) == (0, OUTPUT_LIMIT)


def test_nobody_else_can_enter_where_the_streams_lie_and_the_last_ones_go(
    world: World, transport: VmwareToolsTransport
) -> None:
    transport.run(["/bin/echo", "one"], 60, b"secret")
    (directory,) = [path for path in world.left if path.count("/") == 3]
    assert world.guest.machine.sh(f"stat -c %a {directory}; stat -c %a {directory}/1.in").split() == ["700", "600"]
    transport.run(["/bin/echo", "two"], 60)
    assert not [name for name in world.guest.machine.sh(f"ls {directory}").split() if name.startswith("1.")]


def test_what_a_dead_session_left_goes_a_week_later(world: World) -> None:
    dead = "/dev/shm/understudy-vmtoolsdead"
    world.guest.machine.sh(f"mkdir -m 700 {dead} && touch -d '8 days ago' {dead}")
    transport = VmwareToolsTransport(world.operations())
    transport.run(["/bin/true"], 60)
    assert dead not in world.left
    transport.close()


def test_a_program_that_takes_too_long_is_killed(world: World, transport: VmwareToolsTransport) -> None:
    with pytest.raises(GuestError, match="it did not end within 1 s"):
        transport.run(["sleep", "1234"], 1)
    world.guest.machine.eventually("! pgrep -f '[s]leep 1234'")


def test_the_operator_can_stop_a_program(world: World, transport: VmwareToolsTransport) -> None:
    def stop() -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        transport.run(["sleep", "1235"], 60, check=stop)
    world.guest.machine.eventually("! pgrep -f '[s]leep 1235'")


def test_a_file_is_put_with_its_mode(world: World, transport: VmwareToolsTransport) -> None:
    transport.put("/tmp/a file", b"\0\xff" * 1000, 0o750, 60)
    assert world.guest.machine.sh("stat -c '%a %s' '/tmp/a file'; rm '/tmp/a file'") == "750 2000"
    with pytest.raises(GuestError, match="write /nowhere/x in the guest"):
        transport.put("/nowhere/x", b"", 0o600, 60)


# --- the freeze -------------------------------------------------------------------------------------------------------


def test_the_whole_program_discovers_freezes_thaws_and_leaves(world: World, transport: VmwareToolsTransport) -> None:
    machine = world.guest.machine
    hook = b"#!/bin/sh\necho $1 >>/tmp/calls\n"
    machine.write("/etc/understudy/hooks.d/10-a", hook, 0o755)
    program = prepare_program(transport, KEY, PREFIX, component_for)
    assert program.cleanup(PREFIX) == []
    assert [kind for kind, _, _ in program.discover()] == ["hooks"]
    settings = GuestSettings(freeze_deadline_s=30, applications_percent=40)
    begun = program.begin(settings, 60, file_systems=True, applications=True)
    assert (begun.file_systems, [item.kind for item in begun.applications]) == (1, ["hooks"])
    writer = blocked(machine)
    ended = program.end(60)
    assert (ended.file_systems, ended.expired_s) == (1, None)
    assert writer.wait(timeout=10) == 0
    program.commit(60)
    program.remove()
    calls = machine.sh("cat /tmp/calls; rm /tmp/calls /etc/understudy/hooks.d/10-a").split()
    assert calls == ["freeze", "thaw", "commit"]
    assert transport.kind is GuestTransport.VMTOOLS


def test_if_tools_wait_for_the_thaw_the_guest_thaws_itself_and_says_so(
    world: World, transport: VmwareToolsTransport
) -> None:
    """Each login writes to a log on the frozen disk, so the first question after the freeze has no answer."""
    program = prepare_program(transport, KEY, PREFIX, component_for)
    world.guest.log = f"{DISK}/log"
    settings = GuestSettings(freeze_deadline_s=3, applications_percent=40)
    program.begin(settings, 60, file_systems=True, applications=False)
    ended = program.end(60)
    assert ended.expired_s is not None
    assert world.guest.machine.sh(f"echo x >{DISK}/y && echo written") == "written"
    world.guest.log = ""
    program.remove()


@pytest.mark.parametrize("stuck", [False, True], ids=["Tools answer", "Tools wait for the thaw"])
def test_a_point_counts_as_frozen_only_if_the_guest_was_held_all_the_time(world: World, stuck: bool) -> None:
    reports: list[GuestReport] = []
    warnings: list[str] = []
    writer: subprocess.Popen[bytes] | None = None
    settings = GuestSettings("", GuestPolicy.TRY, (GuestTransport.VMTOOLS,), script_timeout_s=60, applications=True,
                             freeze_deadline_s=4 if stuck else 60, applications_percent=40)  # fmt: skip
    processing = GuestProcessing(Context(), Surroundings(
        settings=settings, ways=(lambda: VmwareToolsTransport(world.operations()),), agent=None, watchdog=None,
        record=lambda _: None, report=reports.append, warn=warnings.append, key=KEY, prefix=PREFIX,
    ))  # fmt: skip
    with processing.quiesced() as quiescing:
        if stuck:
            # Meanwhile Tools log in to say anything, on the file system that is frozen.
            world.guest.log = f"{DISK}/log"
        else:
            assert quiescing.frozen
            writer = blocked(world.guest.machine)
    assert quiescing.frozen is not stuck
    assert (writer is None) is stuck
    assert writer is None or writer.wait(timeout=60) == 0
    assert any("was not kept frozen" in text for text in quiescing.warnings) is stuck
    world.guest.log = ""
    processing.close()
    assert (reports[-1].transport, warnings) == ("vmtools", [])
    assert world.guest.machine.sh(f"echo x >{DISK}/z && echo written") == "written"


def test_what_thaws_runs_though_nobody_asks_for_it_any_more(world: World) -> None:
    transport = VmwareToolsTransport(world.operations())
    transport.run_pair(["/bin/echo", "first"], ["/bin/sh", "-c", "echo second >/tmp/second"], 60)
    transport.close()
    world.guest.machine.eventually("[ -s /tmp/second ]")
    world.guest.machine.sh("rm /tmp/second")


def test_of_a_pair_both_have_their_streams_and_status(world: World, transport: VmwareToolsTransport) -> None:
    done, finish = transport.run_pair(["/bin/sh", "-c", "echo a; echo b >&2; exit 3"],
                                      ["/bin/sh", "-c", "echo c; echo d >&2; exit 4"], 60)  # fmt: skip
    assert (done.status, done.stdout, done.stderr) == (3, b"a\n", b"b\n")
    assert world.guest.machine.sh("pgrep -f '[e]cho c' || :")
    done = finish(60)
    assert (done.status, done.stdout, done.stderr) == (4, b"c\n", b"d\n")


def test_a_first_program_that_takes_too_long_is_followed_by_the_second(
    world: World, transport: VmwareToolsTransport
) -> None:
    with pytest.raises(GuestError, match="it did not end within 1 s"):
        transport.run_pair(["sleep", "4"], ["/bin/sh", "-c", "echo second >/tmp/second"], 1)
    world.guest.machine.eventually("[ -s /tmp/second ]", timeout_s=60)
    world.guest.machine.sh("rm /tmp/second")


def test_without_a_place_in_memory_programs_run_and_nothing_is_frozen(world: World) -> None:
    world.vcenter.faults.fail("CreateTemporaryDirectoryInGuest", vim.fault.FileNotFound(file="/dev/shm"))
    transport = VmwareToolsTransport(world.operations())
    assert transport.run(["/bin/echo", "x"], 60).stdout == b"x\n"
    with pytest.raises(GuestError, match="it has no place in memory"):
        transport.run_pair(["true"], ["true"], 60)
    transport.close()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "said"), [
    (vim.fault.GuestPermissionDenied(), "does not permit this to the user"),
    (vim.fault.OperationNotSupportedByGuest(), "cannot do this"),
    (vim.fault.OperationDisabledByGuest(), "switched off in the guest's VMware Tools"),
    (vim.fault.TooManyGuestLogons(), "too many users are logged on"),
    (vim.fault.GuestComponentsOutOfDate(), "are too old"),
    (vim.fault.GuestOperationsUnavailable(), "do not answer, or are not ready"),
    (vim.fault.FileNotFound(file="x"), "the guest has no such file"),
    (vim.fault.NoPermission(object=None, privilegeId="VirtualMachine.GuestOperations.Execute"),
     "lacks VirtualMachine.GuestOperations.Execute"),
], ids=lambda item: "" if isinstance(item, str) else type(item).__name__.rpartition(".")[2])  # fmt: skip
def test_every_fault_is_told_in_words_of_ours(
    world: World, transport: VmwareToolsTransport, fault: Any, said: str
) -> None:
    if isinstance(fault, vim.fault.NoPermission):
        fault.object = world.scene.ref
    world.vcenter.faults.fail("StartProgramInGuest", fault)
    with pytest.raises(GuestError, match=said):
        transport.run(["/bin/true"], 60)


def test_a_wrong_password_is_refused_and_no_password_is_told_to_anybody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(GuestError, match="the guest refuses user and password") as refused:
        VmwareToolsTransport(world.operations(GuestLogin("root", "another pass word")))
    VmwareToolsTransport(world.operations()).close()
    told = f"{refused.value} {refused.value.__cause__!r} {caplog.text} {LOGIN!r}"
    assert "pass word" not in told


def test_without_tools_there_is_no_way_in(world: World) -> None:
    world.vcenter.set_tools(world.scene.name, running=False)
    with pytest.raises(GuestError, match="VMware Tools do not run in the guest"):
        world.operations()


def test_a_windows_guest_is_left_to_its_tools(world: World) -> None:
    try:
        world.set_family("windowsGuest")
        operations = world.operations()
        assert operations.system is GuestSystem.WINDOWS
        with pytest.raises(GuestError, match="VMware Tools quiesce with the snapshot"):
            VmwareToolsTransport(operations)
    finally:
        world.set_family("linuxGuest")


# --- files ------------------------------------------------------------------------------------------------------------


def shown_by(connection: Connection) -> bytes:
    """The certificate of the server, in DER."""
    opened: ServerConnection = connection.another()
    opened.connect()
    try:
        return opened.sock.getpeercert(True) or b""
    finally:
        opened.close()


@pytest.mark.parametrize(("told", "works"), [
    (lambda shown: DER_cert_to_PEM_cert(shown).encode(), True),
    (lambda shown: shown, True),
    # As pyVmomi may give bytes.
    (lambda shown: [number - 256 if number > 127 else number for number in shown], True),
    (lambda shown: shown[:-1] + bytes([shown[-1] ^ 1]), False),
    (lambda _: b"\n", False),
], ids=["PEM", "DER", "signed numbers", "another", "none"])  # fmt: skip
def test_an_esxi_host_must_show_the_certificate_that_the_vcenter_tells(
    world: World, connection: Connection, told: Callable[[bytes], Any], works: bool
) -> None:
    world.vcenter.guests.address = "localhost"
    operations = world.operations()
    operations._files = GuestFiles(connection, lambda: told(shown_by(connection)))
    try:
        if works:
            operations.put("/tmp/sent", b"content")
            assert operations.get("/tmp/sent", 100) == b"content"
            assert operations.get("/tmp/sent", 4) == b"cont"
        else:
            with pytest.raises(GuestError, match="certificate"):
                operations.put("/tmp/sent", b"content")
            assert not world.guest.test("-e", "/tmp/sent")
    finally:
        world.guest.machine.sh("rm -f /tmp/sent")


def test_no_file_goes_by_plain_http_and_no_address_is_good_twice(world: World, connection: Connection) -> None:
    files = GuestFiles(connection, list)
    with pytest.raises(GuestError, match="by another way than HTTPS"):
        files.send("write x", "http://127.0.0.1/guestFile?token=secret", b"content")
    guests = world.vcenter.guests
    with pytest.raises(GuestError, match="answers 403 to the transfer") as refused:
        files.fetch("read x", f"https://*:{guests.port}/guestFile?id=1&token=secret", 10)
    assert "secret" not in str(refused.value)


def test_a_session_that_expires_meanwhile_is_renewed(world: World, transport: VmwareToolsTransport) -> None:
    world.vcenter.faults.expire_sessions(after=1)
    assert transport.run(["/bin/echo", "x"], 60).stdout == b"x\n"


