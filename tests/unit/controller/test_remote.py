"""Proxies on other hosts, as real services over TLS: who may talk to them, and what they survive."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.unit.controller.service_lab import Service, enrolled, running, serve_command
from understudy.certificates import IDENTITY, PROXIES_CA, Credentials
from understudy.controller import catalog
from understudy.controller.authority import Authorities
from understudy.controller.database import Database, open_database
from understudy.controller.movers import MoverPool
from understudy.controller.remote import RemoteProxy, make_forget
from understudy.errors import MoverError, Refused, UsageError
from understudy.model.address import Address
from understudy.mover import api
from understudy.mover.client import RESTART_S, MoverClient
from understudy.mover.endpoints import TlsEndpoint
from understudy.signing import Validity, new_proxy_identity

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    return Authorities(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, authorities: Authorities) -> Iterator[Service]:
    """A running service for tests that leave it as it is."""
    with running(enrolled(tmp_path_factory.mktemp("host") / "proxy", authorities)) as service:
        yield service
        assert who(service.client()).identity == service.proxy.identity


@pytest.fixture
def records(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated_sqlite, tmp_path / "understudy.db")
    opened = open_database(tmp_path, f"sqlite:///{tmp_path}/understudy.db")
    yield opened
    opened.close()


def who(client: MoverClient) -> api.MoverInfo:
    with client:
        return client.call(api.About(), api.MoverInfo)


def asked_with(service: Service, credentials: Credentials, identity: str = "") -> str:
    """The error of somebody who asks with these credentials; empty if there is none."""
    address = Address("127.0.0.1", service.port)
    try:
        who(MoverClient(TlsEndpoint(address, identity or service.proxy.identity, credentials)))
    except MoverError as exc:
        return str(exc)
    return ""


def answer_to(service: Service, context: ssl.SSLContext) -> int | None:
    """The status of the answer to a client with this TLS context, which believes every server; None without one."""
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", service.port, context=context, timeout=20)
    try:
        connection.request("POST", "/v1/about", b"{}")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


# --- who may talk to it -----------------------------------------------------------------------------------------------


def test_the_controller_is_answered(shared: Service) -> None:
    info = who(shared.client())
    assert (info.name, info.identity) == ("far", shared.proxy.identity)
    assert info.cores >= 1
    assert asked_with(shared, shared.authorities.controller()) == ""


def strangers(authorities: Authorities, place: Path) -> dict[str, ssl.SSLContext]:
    """TLS clients that are not this controller, or not now, or not as they should be."""
    now = datetime.now(UTC)
    other = Authorities(place / "elsewhere")
    old, early = Validity(now - 2 * DAY, now - DAY), Validity(now + DAY, now + 2 * DAY)
    found = {
        "no certificate": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        "another controller": other.controller().client_context(PROXIES_CA),
        "a proxy": authorities.issue_proxy(place / "a", new_proxy_identity()).client_context(PROXIES_CA),
        "expired": authorities.issue_controller(place / "b", old).client_context(PROXIES_CA),
        "not yet valid": authorities.issue_controller(place / "c", early).client_context(PROXIES_CA),
        "TLS 1.2": authorities.controller().client_context(PROXIES_CA),
    }
    found["TLS 1.2"].minimum_version = found["TLS 1.2"].maximum_version = ssl.TLSVersion.TLSv1_2
    return found


def test_strangers_end_their_own_connection_and_nothing_else(shared: Service, tmp_path: Path) -> None:
    for name, context in strangers(shared.authorities, tmp_path).items():
        assert answer_to(shared, context) is None, name
    # The same way with the right certificate is answered: it is the certificates that were refused.
    assert answer_to(shared, shared.authorities.controller().client_context(PROXIES_CA)) == 200


def test_plain_http_and_rubbish_are_not_answered(shared: Service) -> None:
    plain = b"POST /v1/about HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    for content in (plain, b"\x00" * 5000, b"\x16\x03\x01"):
        with socket.create_connection(("127.0.0.1", shared.port), 20) as sock:
            sock.sendall(content)
            sock.shutdown(socket.SHUT_WR)
            assert b"HTTP" not in sock.recv(4096)
    assert who(shared.client()).identity == shared.proxy.identity


def test_connections_that_say_nothing_hold_nobody_up(shared: Service) -> None:
    silent = [socket.create_connection(("127.0.0.1", shared.port), 20) for _ in range(60)]
    began = time.monotonic()
    assert who(shared.client()).identity == shared.proxy.identity
    assert time.monotonic() - began < 20
    for sock in silent:
        sock.close()


def test_the_controller_tells_what_is_wrong_with_a_proxy(
    shared: Service, authorities: Authorities, tmp_path: Path
) -> None:
    assert "its certificate is that of another proxy" in asked_with(shared, authorities.controller(), "proxy-2.x")
    stranger = Authorities(tmp_path / "elsewhere").controller()
    assert "its certificate is of another authority" in asked_with(shared, stranger)
    # It trusts the proxy, but the proxy does not trust it.
    shutil.copy(authorities.controller().directory / PROXIES_CA, stranger.directory / PROXIES_CA)
    assert "does not accept this controller's certificate" in asked_with(shared, stranger)


@pytest.mark.parametrize(
    ("starts", "ends", "why"), [(-2 * DAY, -DAY, "has expired"), (DAY, 2 * DAY, "is not valid yet")]
)
def test_a_proxy_whose_certificate_is_not_valid_now_is_refused(
    authorities: Authorities, tmp_path: Path, starts: timedelta, ends: timedelta, why: str
) -> None:
    now = datetime.now(UTC)
    service = enrolled(tmp_path / "proxy", authorities, validity=Validity(now + starts, now + ends))
    context = Credentials(tmp_path / "proxy" / "credentials").server_context("controllers-ca.pem")
    with socket.create_server(("127.0.0.1", service.port)) as listener:
        serving = one_handshake(listener, context)
        assert f"its certificate {why}; remove the proxy" in asked_with(service, authorities.controller())
        serving()


def one_handshake(listener: socket.socket, context: ssl.SSLContext) -> Callable[[], None]:
    """Take one connection in a thread, as a server does; the returned function waits for its end."""
    def serve() -> None:
        sock, _ = listener.accept()
        try:
            context.wrap_socket(sock, server_side=True).close()
        except OSError:
            sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread.join


def test_a_proxy_that_is_not_there_is_told(authorities: Authorities, tmp_path: Path) -> None:
    service = enrolled(tmp_path / "proxy", authorities)
    with pytest.raises(MoverError, match=r"127\.0\.0\.1:\d+: /v1/about: .*Connection refused; check that"):
        who(service.client())
    lost = replace(service, proxy=replace(service.proxy, control_address="nowhere.invalid:7342"))
    with pytest.raises(MoverError, match=r"no address of 'nowhere\.invalid' is known"):
        who(lost.client())


# --- its life ---------------------------------------------------------------------------------------------------------


def test_calls_survive_a_restart_of_the_service(authorities: Authorities, tmp_path: Path) -> None:
    with running(enrolled(tmp_path / "proxy", authorities)) as service, service.client() as client:
        first = client.call(api.About(), api.MoverInfo).pid
        assert service.end() == 0
        service.start()
        assert client.call(api.About(), api.MoverInfo).pid != first
        # Something that changes state is not sent twice, but a new connection is made for it.
        service.end(signal.SIGKILL)
        service.start()
        assert client.call(api.CancelWork("none"), api.Nothing) == api.Nothing()
        assert service.end() == 0
    assert "Traceback" not in service.said()


def test_a_call_while_the_service_restarts_is_sent_when_it_is_back(
    authorities: Authorities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(enrolled(tmp_path / "proxy", authorities)) as service, service.client() as client:
        assert client.call(api.About(), api.MoverInfo).name == "far"
        service.end()
        waited: list[float] = []

        def start_meanwhile(seconds: float) -> None:
            monkeypatch.undo()
            waited.append(seconds)
            service.start()

        monkeypatch.setattr(time, "sleep", start_meanwhile)
        assert client.call(api.CancelWork("none"), api.Nothing) == api.Nothing()
        assert waited == [RESTART_S]


@pytest.mark.parametrize(("request_", "times"), [(api.WorkQuery("w"), 2), (api.CancelWork("w"), 1)])
def test_only_a_query_is_sent_again_when_no_answer_comes(
    authorities: Authorities, tmp_path: Path, request_: object, times: int
) -> None:
    service = enrolled(tmp_path / "proxy", authorities)
    context = Credentials(service.path / "credentials").server_context("controllers-ca.pem")
    received: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for _ in range(times):
            with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
                received.append(sock.recv(4096))

    with socket.create_server(("127.0.0.1", service.port)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with service.client() as client, pytest.raises(MoverError, match="without an answer"):
            client.call(request_, api.Nothing)
        thread.join()
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert len(received) == times


def test_a_second_service_on_the_same_directory_is_refused(shared: Service) -> None:
    done = subprocess.run(serve_command(shared.path), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: start the proxy: a proxy runs with ")


def test_a_host_that_is_not_enrolled_has_no_service(tmp_path: Path) -> None:
    done = subprocess.run(serve_command(tmp_path / "none"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "this host is not enrolled" in done.stderr


def test_sighup_does_nothing_and_sigterm_leaves_nothing(authorities: Authorities, tmp_path: Path) -> None:
    with running(enrolled(tmp_path / "proxy", authorities)) as service:
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        assert who(service.client()).pid == service.process.pid
        assert service.end() == 0
    assert "proxy 'far' ended" in service.said()


# --- renewal, removal -------------------------------------------------------------------------------------------------


def test_a_certificate_older_than_a_third_of_its_life_is_renewed_and_used_at_once(
    authorities: Authorities, records: Database, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    old = Validity(now - 2 * DAY, now + 3 * DAY)
    with running(enrolled(tmp_path / "proxy", authorities, validity=old)) as service:
        catalog.add_proxy(records, service.proxy)
        before = (service.path / "credentials" / IDENTITY).read_bytes()
        remote = RemoteProxy(service.proxy, authorities, records)
        assert remote.serves(service.proxy)
        remote.close()
        assert (service.path / "credentials" / IDENTITY).read_bytes() != before
        with service.client() as client:  # a new connection: what it shows is the new certificate
            facts = client.call(api.IdentityQuery(), api.IdentityFacts)
        assert facts.identity == service.proxy.identity
        assert seen_serial(service) == serial(service.path / "credentials" / IDENTITY)
        expires = catalog.get_proxy(records, "far").certificate_expires
        assert expires == datetime.fromtimestamp(facts.ends_at, UTC).isoformat(timespec="seconds")
        assert expires > (now + 300 * DAY).isoformat()
        young = (service.path / "credentials" / IDENTITY).read_bytes()
        RemoteProxy(service.proxy, authorities, records).close()
        assert (service.path / "credentials" / IDENTITY).read_bytes() == young


def serial(path: Path) -> int:
    from cryptography import x509

    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def seen_serial(service: Service) -> int:
    """The serial number of the certificate that a new connection sees."""
    from cryptography import x509

    context = service.authorities.controller().client_context(PROXIES_CA)
    with (
        socket.create_connection(("127.0.0.1", service.port), 20) as plain,
        context.wrap_socket(plain, server_hostname=service.proxy.identity) as sock,
    ):
        return x509.load_der_x509_certificate(sock.getpeercert(binary_form=True) or b"").serial_number


def test_a_renewal_that_fails_does_not_stop_the_work(
    authorities: Authorities, records: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    now = datetime.now(UTC)
    with running(enrolled(tmp_path / "proxy", authorities, validity=Validity(now - 2 * DAY, now + DAY))) as service:
        catalog.add_proxy(records, service.proxy)
        monkeypatch.setattr(authorities, "sign_proxy", lambda *_: Authorities(tmp_path / "x").sign_proxy(*_))
        remote = RemoteProxy(service.proxy, authorities, records)
        assert remote.client.call(api.About(), api.MoverInfo).name == "far"
        assert not remote.serves(service.proxy)  # so that the next task tries again
        remote.close()
    assert "was not renewed: install a certificate: the certificate is from another authority" in caplog.text


def test_a_foreign_certificate_is_not_installed(shared: Service, tmp_path: Path) -> None:
    before = (shared.path / "credentials" / IDENTITY).read_bytes()
    with shared.client() as client:
        request = client.call(api.RequestCertificate(), api.CertificateRequest).pem.encode()
        foreign = Authorities(tmp_path / "x").sign_proxy(request, shared.proxy.identity)
        for pem in (foreign, shared.authorities.sign_proxy(request, "proxy-2.x"), before):
            with pytest.raises(UsageError, match="install a certificate: "):
                client.call(api.InstallCertificate(pem.decode()), api.Nothing)
    assert (shared.path / "credentials" / IDENTITY).read_bytes() == before


def test_a_removed_proxy_destroys_its_key_and_ends(authorities: Authorities, tmp_path: Path) -> None:
    with running(enrolled(tmp_path / "proxy", authorities)) as service:
        assert make_forget(service.proxy, authorities)
        assert service.process is not None
        assert service.process.wait(30) == 0
        assert not (service.path / "proxy.json").exists()
        assert not list((service.path / "credentials").iterdir())
        assert not make_forget(service.proxy, authorities)  # it cannot be told twice, and that is no error


def test_a_child_has_nothing_to_forget(records: Database, tmp_path: Path) -> None:
    pool = MoverPool(tmp_path, records)
    with pytest.raises(Refused, match="child process"):
        pool.get("local").call(api.ForgetController(), api.Nothing)
    facts = pool.get("local").call(api.IdentityQuery(), api.IdentityFacts)
    assert facts.identity == catalog.get_proxy(records, "local").identity
    pool.close()


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_the_pool_connects_to_a_service_and_notices_that_it_was_enrolled_anew(
    records: Database, tmp_path: Path
) -> None:
    authorities = Authorities(tmp_path)
    pool = MoverPool(tmp_path, records)
    with running(enrolled(tmp_path / "one", authorities)) as one:
        catalog.add_proxy(records, one.proxy)
        client = pool.get("far")
        assert client is pool.get("far")
        assert client.call(api.About(), api.MoverInfo).identity == one.proxy.identity
        catalog.remove_proxy(records, "far")
        other = enrolled(tmp_path / "two", authorities)
        # Another identity at the old address: it is not believed.
        catalog.add_proxy(records, replace(other.proxy, control_address=one.proxy.control_address))
        with pytest.raises(MoverError, match="its certificate is that of another proxy"):
            pool.get("far")
        catalog.remove_proxy(records, "far")
        with running(other):
            catalog.add_proxy(records, other.proxy)
            assert pool.get("far").call(api.About(), api.MoverInfo).identity == other.proxy.identity
    pool.close()
