"""The control side of vSphere, against the simulated vCenter and its front: real pyVmomi, real TLS."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.vsphere.front import Front, front
from tests.vsphere.paging import page_answers
from tests.vsphere.simulator import Inventory, missing
from understudy.context import Context
from understudy.errors import (
    Cancelled,
    HostUnreachable,
    NotFound,
    PlatformError,
    TaskUnfinished,
    UnderstudyError,
    UsageError,
)
from understudy.model.access import HostAccess
from understudy.platforms.vsphere import properties, tasks, trees
from understudy.platforms.vsphere.connection import Connection, Limits
from understudy.platforms.vsphere.stub import TimeLimits
from understudy.platforms.vsphere.trust import fetch_certificate

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

VM = "DC0_C0_RP0_VM0"
VMS = 5
QUICK = tasks.Patience(deadline_s=60, busy_s=60, first_s=0.01, longest_s=0.05)


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Front]:
    with front(Inventory(vms=VMS), tmp_path) as running:
        page_answers(running)
        yield running


def access(vcenter: Front, **changes: Any) -> HostAccess:
    """The right way to reach it, with changes."""
    right = HostAccess(
        f"vpx://127.0.0.1:{vcenter.port}/", vcenter.user, vcenter.password,
        fetch_certificate("127.0.0.1", vcenter.port).thumbprint,
    )  # fmt: skip
    return replace(right, **changes)


@pytest.fixture
def connection(vcenter: Front) -> Iterator[Connection]:
    with closing(Connection(access(vcenter))) as opened:
        yield opened


@pytest.fixture
def vm(connection: Connection) -> Any:
    return named(connection, VM)


def named(connection: Connection, name: str) -> Any:
    for entry in properties.collect(connection, "VirtualMachine", ["name"]):
        if entry.get("name") == name:
            return connection.managed("VirtualMachine", entry.moref)
    raise LookupError(name)


def count(connection: Connection) -> int:
    return len(properties.collect(connection, "VirtualMachine", ["name"], page=2))


class Asked:
    """Counts the calls that reach the front, by method."""

    def __init__(self, vcenter: Front, monkeypatch: pytest.MonkeyPatch) -> None:
        self._calls: list[str] = []
        admitted = vcenter._gateway.admitted

        def counted(request: Any, session: str) -> bool:
            self._calls.append(request.method)
            return admitted(request, session)

        monkeypatch.setattr(vcenter._gateway, "admitted", counted)

    def times(self, method: str) -> int:
        return self._calls.count(method)


# --- who is there -----------------------------------------------------------------------------------------------------


def test_the_server_and_its_certificate_are_told(vcenter: Front, connection: Connection) -> None:
    assert connection.product.name == "VMware vCenter Server"
    assert connection.is_vcenter
    login = connection.library_login()
    assert (login.server, login.user, login.password) == ("127.0.0.1", vcenter.user, vcenter.password)
    assert login.thumbprint == vcenter.thumbprint
    assert vcenter.password not in repr(login)


def test_the_user_may_stand_in_the_address(vcenter: Front) -> None:
    user = vcenter.user.replace("@", "%40")
    with closing(Connection(access(vcenter, uri=f"vpx://{user}@127.0.0.1:{vcenter.port}", user=""))) as opened:
        assert count(opened) == VMS
    with pytest.raises(UsageError, match="user is missing"):
        Connection(access(vcenter, user=""))


def test_a_wrong_password_is_refused_plainly(vcenter: Front) -> None:
    with pytest.raises(PlatformError, match=f"log in to .* as {vcenter.user}: user and password are refused") as caught:
        Connection(access(vcenter, password="wrong"))
    assert not caught.value.retryable
    assert "wrong" not in str(caught.value)


def test_the_wrong_kind_of_server_is_refused_before_the_login(vcenter: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(vcenter, monkeypatch)
    with pytest.raises(UsageError, match="it is a vCenter, not a single ESXi host; use vpx://"):
        Connection(access(vcenter, uri=f"esx://127.0.0.1:{vcenter.port}/"))
    assert asked.times("Login") == 0


def test_a_single_esxi_host_is_reached(tmp_path: Path) -> None:
    with front(Inventory(vms=2, esx=True), tmp_path) as host:
        with closing(Connection(access(host, uri=f"esx://127.0.0.1:{host.port}/"))) as opened:
            assert not opened.is_vcenter
            assert count(opened) == 2
        with pytest.raises(UsageError, match="it is a single ESXi host, not a vCenter; use esx://"):
            Connection(access(host))


# --- trust ------------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_to_a_server_with_another_certificate(
    vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(vcenter, monkeypatch)
    with pytest.raises(HostUnreachable, match=r"and .* was confirmed"):
        Connection(access(vcenter, thumbprint=":".join(["00"] * 32)))
    assert asked._calls == []


def test_a_server_that_no_authority_vouches_for_is_refused_without_a_thumbprint(
    vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(vcenter, monkeypatch)
    with pytest.raises(HostUnreachable, match="its certificate is not trusted"):
        Connection(access(vcenter, thumbprint=""))
    assert asked._calls == []


def test_a_certificate_of_a_trusted_authority_needs_no_thumbprint(
    vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(vcenter.directory / "vcenter.pem"))
    assert fetch_certificate("127.0.0.1", vcenter.port).trusted
    with closing(Connection(access(vcenter, thumbprint=""))) as opened:
        assert count(opened) == VMS


def test_an_authority_in_the_environment_does_not_weaken_a_thumbprint(
    vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(vcenter.directory / "vcenter.pem"))
    with pytest.raises(HostUnreachable, match="was confirmed"):
        Connection(access(vcenter, thumbprint=":".join(["00"] * 32)))


def test_a_certificate_that_changes_later_is_noticed_on_the_next_connection(
    vcenter: Front, connection: Connection, tmp_path: Path
) -> None:
    assert count(connection) == VMS
    (tmp_path / "other").mkdir()
    with front(Inventory(vms=1), tmp_path / "other") as impostor:
        connection._stub.DropConnections()
        connection._stub.port = impostor.port
        with pytest.raises(HostUnreachable, match="was confirmed"):
            count(connection)
        connection._stub.port = vcenter.port
    assert count(connection) == VMS


def test_the_first_contact_tells_the_certificate_and_that_nobody_vouches_for_it(vcenter: Front) -> None:
    shown = fetch_certificate("127.0.0.1", vcenter.port)
    expected = ssl.get_server_certificate(("127.0.0.1", vcenter.port))
    assert (vcenter.directory / "vcenter.pem").read_text() == expected
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(expected)).hexdigest()
    assert shown.thumbprint.replace(":", "") == digest.upper()
    assert shown.subject == shown.issuer == "CN=simulated vCenter"
    assert not shown.trusted


def test_a_port_where_nobody_answers_is_unreachable(free_port: int) -> None:
    with pytest.raises(HostUnreachable, match="no TLS connection"):
        fetch_certificate("127.0.0.1", free_port)
    with pytest.raises(HostUnreachable, match="Connection refused"):
        Connection(HostAccess(f"vpx://127.0.0.1:{free_port}/", "user", "password"))


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# --- sessions that end, connections that break ------------------------------------------------------------------------


def test_a_session_that_expires_in_the_middle_of_a_listing_is_renewed_and_the_listing_is_whole(
    vcenter: Front, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(vcenter, monkeypatch)
    vcenter.faults.expire_sessions(after=2)  # the view and the first page
    assert count(connection) == VMS
    assert asked.times("Login") == 1
    assert asked.times("RetrievePropertiesEx") == 2
    assert asked.times("ContinueRetrievePropertiesEx") == 3, "one that was refused, and two of the second time"


def test_the_same_holds_for_a_listing_of_trees(vcenter: Front, connection: Connection) -> None:
    vcenter.faults.expire_sessions(after=2)
    names = trees.each(connection, "VirtualMachine", ["name"], lambda tree: tree.text("name"), page=2)
    assert len(set(names)) == len(names) == VMS


def test_an_expired_session_does_not_keep_a_task_from_being_started_once(
    vcenter: Front, connection: Connection, vm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(vcenter, monkeypatch)
    vcenter.faults.expire_sessions()
    tasks.run(Context(), connection, "snapshot", lambda: vm.CreateSnapshot_Task("s", "", False, False), QUICK)
    assert asked.times("CreateSnapshot_Task") == 2, "the first was refused: the session was not known"
    assert len(properties.of(connection, vm, ["snapshot"]).get("snapshot").rootSnapshotList) == 1


def test_a_reading_call_is_made_again_when_its_connection_breaks(vcenter: Front, connection: Connection) -> None:
    vcenter.faults.drop("RetrievePropertiesEx")
    assert count(connection) == VMS
    vcenter.faults.drop("RetrievePropertiesEx", times=2)
    with pytest.raises(HostUnreachable):
        count(connection)
    assert count(connection) == VMS


def test_a_server_that_cuts_a_call_and_has_forgotten_the_session_is_asked_once_more(
    vcenter: Front, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, service = Asked(vcenter, monkeypatch), connection.managed("ServiceInstance", "ServiceInstance")
    vcenter.faults.drop("CurrentTime")
    vcenter.faults.expire_sessions(after=1)
    assert connection.read("ask for the time", service.CurrentTime)
    assert (asked.times("CurrentTime"), asked.times("Login")) == (3, 1)


def test_a_task_is_never_started_again_when_its_connection_breaks(
    vcenter: Front, connection: Connection, vm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(vcenter, monkeypatch)
    vcenter.faults.drop("CreateSnapshot_Task")
    with pytest.raises(HostUnreachable, match="whether it was done is not known"):
        tasks.run(Context(), connection, "snapshot", lambda: vm.CreateSnapshot_Task("s", "", False, False), QUICK)
    assert asked.times("CreateSnapshot_Task") == 1
    assert len(properties.of(connection, vm, ["snapshot"]).get("snapshot").rootSnapshotList) == 1


def test_connections_that_the_server_has_closed_are_not_used(
    vcenter: Front, connection: Connection, vm: Any
) -> None:
    assert count(connection) == VMS
    vcenter._gateway._server.end_connections()
    tasks.run(Context(), connection, "snapshot", lambda: vm.CreateSnapshot_Task("s", "", False, False), QUICK)


def test_a_server_whose_services_are_down_is_unreachable(vcenter: Front, connection: Connection) -> None:
    vcenter.faults.unavailable("RetrievePropertiesEx", times=2)
    with pytest.raises(HostUnreachable, match="the server answers 503") as caught:
        count(connection)
    assert caught.value.retryable


def test_threads_that_lose_the_session_together_log_in_once(
    vcenter: Front, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(vcenter, monkeypatch)
    together = threading.Barrier(4)

    def listing(_: int) -> int:
        found = count(connection)
        together.wait(60)
        vcenter.faults.expire_sessions()
        together.wait(60)
        return found + count(connection)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(listing, range(4))) == [2 * VMS] * 4
    assert asked.times("Login") == 1


def test_a_refused_password_is_not_tried_again_at_every_call(
    vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Connection(access(vcenter))) as opened:
        vcenter.faults.fail("Login", vim.fault.InvalidLogin(msg="The password has changed."), times=9)
        vcenter.faults.expire_sessions()
        asked = Asked(vcenter, monkeypatch)
        for _ in range(3):
            with pytest.raises(PlatformError, match="The password has changed"):
                count(opened)
        assert asked.times("Login") == 1


def test_an_idle_session_is_kept_and_ends_with_the_connection(
    vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(vcenter, monkeypatch)
    opened = Connection(access(vcenter), Limits(keepalive_s=0.02))
    assert Context().wait_until(lambda: asked.times("CurrentTime") >= 2, 60)
    assert len(vcenter._gateway.sessions) == 1
    opened.close()
    assert vcenter._gateway.sessions == set()
    with pytest.raises(PlatformError, match="the connection was closed"):
        count(opened)


def test_a_server_that_says_nothing_does_not_hold_a_call_up(
    vcenter: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = threading.Event()
    limits = Limits(TimeLimits(silence_s=2))
    with closing(Connection(access(vcenter), limits)) as opened:
        admitted = vcenter._gateway.admitted

        def slow(request: Any, session: str) -> bool:
            if request.method == "RetrievePropertiesEx":
                silent.wait(60)
            return admitted(request, session)

        monkeypatch.setattr(vcenter._gateway, "admitted", slow)
        try:
            with pytest.raises(HostUnreachable, match="timed out"):
                count(opened)
        finally:
            silent.set()
            monkeypatch.undo()


# --- tasks ------------------------------------------------------------------------------------------------------------


def take(vm: Any) -> Callable[[], Any]:
    return lambda: vm.CreateSnapshot_Task("s", "", False, False)


def test_a_task_returns_its_result(connection: Connection, vm: Any) -> None:
    snapshot = tasks.run(Context(), connection, "snapshot", take(vm), QUICK)
    assert properties.of(connection, vm, ["snapshot.currentSnapshot"]).get("snapshot.currentSnapshot") == snapshot


def test_a_slow_task_is_waited_for(vcenter: Front, connection: Connection, vm: Any) -> None:
    slow = vcenter.faults.slow_task("CreateSnapshot_Task")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tasks.run, Context(), connection, "snapshot", take(vm), QUICK)
        vcenter.faults.expire_sessions()
        assert not waiting.done()
        slow.release()
        assert waiting.result(60) is not None


def test_a_task_that_takes_too_long_is_said_to_run_on(vcenter: Front, connection: Connection, vm: Any) -> None:
    slow = vcenter.faults.slow_task("CreateSnapshot_Task")
    patience = tasks.Patience(deadline_s=0.2, first_s=0.01, longest_s=0.05)
    with pytest.raises(TaskUnfinished, match="did not end within 0 s, and may still run; look at the task"):
        tasks.run(Context(), connection, "snapshot of VM 'x'", take(vm), patience)
    slow.release()


def test_an_operator_can_stop_the_wait(vcenter: Front, connection: Connection, vm: Any) -> None:
    slow, ctx = vcenter.faults.slow_task("CreateSnapshot_Task"), Context()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tasks.run, ctx, connection, "snapshot", take(vm), QUICK)
        ctx.cancel.cancel()
        with pytest.raises(Cancelled):
            waiting.result(60)
    slow.release()


def test_the_fault_of_a_task_is_told_with_the_servers_words(vcenter: Front, connection: Connection, vm: Any) -> None:
    fault = vim.fault.ApplicationQuiesceFault(msg="Der Gast konnte nicht stillgelegt werden.")
    vcenter.faults.fail_task("CreateSnapshot_Task", fault)
    with pytest.raises(PlatformError) as caught:
        tasks.run(Context(), connection, "snapshot of VM 'x'", take(vm), QUICK)
    assert str(caught.value).startswith("snapshot of VM 'x': ApplicationQuiesceFault: Der Gast konnte nicht")


def test_a_start_waits_for_the_task_of_another(vcenter: Front, connection: Connection, vm: Any) -> None:
    busy = vim.fault.TaskInProgress(task=vim.Task("task-1"), msg="Busy.")
    vcenter.faults.fail("CreateSnapshot_Task", busy, times=2)
    vcenter.faults.fail_task("CreateSnapshot_Task", busy, times=1)
    assert tasks.run(Context(), connection, "snapshot", take(vm), QUICK) is not None
    vcenter.faults.fail("CreateSnapshot_Task", busy)
    with pytest.raises(PlatformError, match="try again when the other task has ended"):
        tasks.run(Context(), connection, "snapshot", take(vm), tasks.Patience(busy_s=0))


def test_a_missing_privilege_is_named_with_its_object(vcenter: Front, connection: Connection, vm: Any) -> None:
    lacking = vim.fault.NoPermission(object=vm, privilegeId="VirtualMachine.State.CreateSnapshot", msg="Denied.")
    vcenter.faults.fail("CreateSnapshot_Task", lacking)
    with pytest.raises(PlatformError) as caught:
        tasks.run(Context(), connection, "snapshot", take(vm), QUICK)
    assert f"lacks VirtualMachine.State.CreateSnapshot on VirtualMachine {vm._moId} ({VM})" in str(caught.value)


def test_an_object_that_is_gone_is_not_found(connection: Connection, vm: Any) -> None:
    gone = connection.managed("VirtualMachine", "vm-404")
    for read in (properties.of, trees.of):
        with pytest.raises(NotFound, match="VirtualMachine vm-404"):
            read(connection, gone, ["name"])
    with pytest.raises(NotFound, match="no more"):
        connection.act("x", gone.PowerOffVM_Task)


def test_properties_that_are_not_set_are_not_there(connection: Connection, vm: Any) -> None:
    found = properties.of(connection, vm, ["name", "snapshot"])
    assert found.get("name") == VM
    assert "snapshot" not in found.values
    tree = trees.of(connection, vm, ["name", "snapshot", "config.hardware.memoryMB", "config.template"])
    assert (tree.text("name"), tree.text("snapshot"), tree.number("config.hardware.memoryMB")) == (VM, "", 32)
    assert not tree.flag("config.template")


def test_a_method_that_the_server_does_not_know_is_said_so(connection: Connection, vm: Any) -> None:
    with pytest.raises(UnderstudyError, match="does not offer this"):
        connection.act("export", vm.ExportVm)
