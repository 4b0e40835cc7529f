"""Enrolment over real TLS: one token makes one proxy, once, and nobody gets anywhere without it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.controller.service_lab import free_port
from understudy import signing
from understudy.certificates import Credentials
from understudy.context import Context
from understudy.controller import catalog, enrolment_server, invite
from understudy.controller.database import Database, open_database
from understudy.controller.enrolment_server import serve_enrolment
from understudy.controller.invitations import make_invitation, open_addresses
from understudy.controller.records import InvitedProxy, ProxyWish
from understudy.controller.schema import MAX_WRONG_TRIES, InvitationRow
from understudy.errors import HostUnreachable, MoverError, NotFound, Refused, UsageError
from understudy.model.address import Address
from understudy.model.job import Host, Proxy, ProxyKind
from understudy.mover.enrol import PATH, Place, enrol
from understudy.mover.settings import StateDir
from understudy.mover.token import PREFIX, Token, parse_token

WISH = ProxyWish("far", "", 0, 3600, "")


@dataclass
class Office:
    """A controller that invites: its enrolment server runs in threads of this process."""

    home: Path
    database: Database
    servers: list[threading.Thread]

    def invite(self, name: str = "far", **wish: Any) -> Token:
        """A token for the proxy ``name``."""
        return parse_token(self.invited(name, **wish).token)

    def invited(self, name: str = "far", **wish: Any) -> InvitedProxy:
        """An invitation; the server is on a port of its own unless ``controller`` is given."""
        wish = {"controller": f"127.0.0.1:{free_port()}"} | wish
        return invite.invite(self.home, self.database, replace(WISH, name=name, **wish), self._start)

    def _start(self) -> None:
        thread = threading.Thread(target=serve_enrolment, args=(self.home, self.database))
        thread.start()
        self.servers.append(thread)

    def end(self) -> None:
        """Withdraw what is open, which ends the servers."""
        with self.database.transaction() as session:
            session.query(InvitationRow).delete()
        for thread in self.servers:
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def office_of(database: Database, home: Path) -> Iterator[Office]:
    office = Office(home, database, [])
    try:
        yield office
    finally:
        office.end()


@pytest.fixture
def office(database: Database, tmp_path: Path) -> Iterator[Office]:
    with office_of(database, tmp_path) as made:
        yield made


@pytest.fixture
def lite(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Office]:
    """The same on SQLite only, for what has nothing to do with the database."""
    shutil.copy(migrated_sqlite, tmp_path / "understudy.db")
    opened = open_database(tmp_path, f"sqlite:///{tmp_path}/understudy.db")
    with office_of(opened, tmp_path) as made:
        yield made
    opened.close()


def place(tmp_path: Path, name: str = "host") -> Place:
    return Place(tmp_path / name, "", "kvm2.example")


def posted(token: Token, body: bytes, path: str = PATH) -> tuple[int, str]:
    """Status and text of the answer to a body of one's own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(token.address.host, token.address.port, context=context, timeout=30)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def body_of(token: Token, **changes: Any) -> bytes:
    """A good request, or one with ``changes``."""
    request = signing.signing_request(signing.new_key()).decode()
    fields = {"invitation": token.invitation, "secret": token.secret, "request": request, "host_name": "kvm2",
              "cores": 4, "control_address": ":7342", "data_address": ":7343"}  # fmt: skip
    return json.dumps(fields | changes).encode()


# --- it works, once ---------------------------------------------------------------------------------------------------


def test_a_host_enrols_with_its_token(office: Office, tmp_path: Path) -> None:
    catalog.add_host(office.database, Host("prod", "qemu:///system", "/s"))
    settings = enrol(office.invite(host="prod"), place(tmp_path))
    found = catalog.get_proxy(office.database, "far")
    assert found == Proxy(
        "far", "prod", os.cpu_count() or 1, ProxyKind.SERVICE, settings.identity, "127.0.0.1:7342",
        "kvm2.example:7343", found.certificate_expires,
    )  # fmt: skip
    credentials = Credentials(tmp_path / "host" / "credentials")
    assert credentials.identity() == settings.identity
    assert credentials.validity().ends.isoformat(timespec="seconds") == found.certificate_expires
    assert StateDir(tmp_path / "host").settings("x") == settings
    assert (settings.name, settings.control_listen, settings.data_listen) == ("far", ":7342", ":7343")


def test_nobody_else_can_read_what_enrolment_left(lite: Office, tmp_path: Path) -> None:
    enrol(lite.invite(), place(tmp_path))
    for path in [tmp_path / "host", *(tmp_path / "host").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    with lite.database.reading() as session:
        stored = session.query(InvitationRow).one()
        assert len(stored.secret_digest) == 64  # the digest, not the secret


def test_the_server_ends_with_the_last_open_invitation(office: Office, tmp_path: Path) -> None:
    token = office.invite()
    office.invite("other")  # on another port: the one server serves both
    enrol(token, place(tmp_path))
    assert open_addresses(office.database) != frozenset()
    assert posted(office.invite("other"), b"{}")[0] == 400
    office.end()
    with pytest.raises(HostUnreachable, match=r"enrol this host at controller 127\.0\.0\.1:\d+: .*refused"):
        enrol(token, place(tmp_path, "again"))


def test_a_second_use_is_refused(office: Office, tmp_path: Path) -> None:
    token = office.invite()
    office.invite("other", controller=token.controller)  # so that the server stays
    enrol(token, place(tmp_path))
    with pytest.raises(Refused, match="the invitation was used already; make a new one"):
        enrol(token, place(tmp_path, "again"))
    assert not (tmp_path / "again" / "proxy.json").exists()


def test_of_many_hosts_with_one_token_exactly_one_wins(office: Office, tmp_path: Path) -> None:
    token = office.invite()
    office.invite("other", controller=token.controller)
    outcomes: list[str] = []

    def attempt(number: int) -> None:
        try:
            outcomes.append(enrol(token, place(tmp_path, f"host{number}")).identity)
        except Refused as exc:
            outcomes.append(exc.why)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = catalog.get_proxy(office.database, "far").identity
    assert sorted(outcomes) == sorted([winner, *["the invitation was used already"] * 5])


def test_a_host_is_enrolled_once(lite: Office, tmp_path: Path) -> None:
    enrol(lite.invite(), place(tmp_path))
    with pytest.raises(Refused, match="it is the proxy 'far' already; run 'understudy proxy remove far'"):
        enrol(lite.invite("other"), place(tmp_path))
    StateDir(tmp_path / "host").forget()
    assert enrol(lite.invite("other"), place(tmp_path)).name == "other"


# --- it does not work -------------------------------------------------------------------------------------------------


def test_an_expired_token_is_refused(lite: Office, tmp_path: Path) -> None:
    token = lite.invite(valid_s=1)
    lite.invite("other", controller=token.controller)
    assert Context().wait_until(lambda: len(open_addresses(lite.database)) == 1, 10)
    with lite.database.transaction() as session:
        session.get_one(InvitationRow, token.invitation).expires_at = "2020-01-01T00:00:00.000+00:00"
    with pytest.raises(Refused, match="the invitation has expired"):
        enrol(token, place(tmp_path))
    with pytest.raises(NotFound):
        catalog.get_proxy(lite.database, "far")


def test_ten_wrong_secrets_make_an_invitation_void(office: Office, tmp_path: Path) -> None:
    token = office.invite()
    office.invite("other", controller=token.controller)
    wrong = replace(token, secret="x" * 43)
    for _ in range(MAX_WRONG_TRIES):
        with pytest.raises(Refused, match="the secret is wrong; copy the whole token"):
            enrol(wrong, place(tmp_path))
    for attempt in (wrong, token):
        with pytest.raises(Refused, match="the invitation is void"):
            enrol(attempt, place(tmp_path))


def test_a_few_wrong_secrets_do_no_harm(lite: Office, tmp_path: Path) -> None:
    token = lite.invite()
    for _ in range(MAX_WRONG_TRIES - 1):
        with pytest.raises(Refused, match="the secret is wrong"):
            enrol(replace(token, secret=token.secret[:-1]), place(tmp_path))
    enrol(token, place(tmp_path))


def test_a_token_of_another_controller_is_refused(lite: Office, tmp_path: Path, migrated_sqlite: Path) -> None:
    token = lite.invite()
    home = tmp_path / "elsewhere"
    home.mkdir()
    shutil.copy(migrated_sqlite, home / "understudy.db")
    other = open_database(home, f"sqlite:///{home}/understudy.db")
    with office_of(other, home) as office:
        foreign = office.invite()
        # Its fingerprint is not the one of who answers there: nothing is sent.
        with pytest.raises(Refused, match="is not the controller that made the token"):
            enrol(replace(foreign, controller=token.controller), place(tmp_path))
        # Even with the right fingerprint the invitation is unknown there.
        with pytest.raises(Refused, match="the controller knows no such invitation"):
            enrol(replace(token, invitation=foreign.invitation, secret=foreign.secret), place(tmp_path))
    other.close()


def test_a_name_that_was_taken_meanwhile_is_told_and_the_token_stays_good(office: Office, tmp_path: Path) -> None:
    token = office.invite()
    catalog.add_proxy(office.database, Proxy("far", "", 1))
    with pytest.raises(Refused, match="enrol a proxy: the name is taken"):
        enrol(token, place(tmp_path))
    catalog.remove_proxy(office.database, "far")
    enrol(token, place(tmp_path))


def test_rubbish_is_answered_in_one_line_and_changes_nothing(
    lite: Office, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = lite.invite()
    rubbish = [b"", b"{", b"null", b"\xff\xfe", b"[" * 60_000, body_of(token, secret=None), body_of(token, request=5),
               body_of(token, request="rubbish"), body_of(token, cores=0), body_of(token, cores=10**30),
               body_of(token, control_address=":0"), body_of(token, control_address="a b:1"),
               body_of(token, data_address="x" * 400 + ":1"), body_of(token, secret="\ud800")]  # fmt: skip
    for body in rubbish:
        status, text = posted(token, body)
        assert status == 400, (body[:80], status, text)
        assert "\n" not in text.strip()
    status, text = posted(token, body_of(token, request="x" * (64 << 10)))
    assert (status, "longer than 65536 bytes" in text) == (400, True)
    assert posted(token, b"{}", "/v1/about")[0] == 404
    assert [proxy.name for proxy in catalog.list_proxies(lite.database)] == ["local"]
    assert "Traceback" not in caplog.text
    enrol(token, place(tmp_path))


def test_what_a_signing_request_asks_for_is_not_what_it_gets(lite: Office) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    token = lite.invite()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, signing.CONTROLLER_IDENTITY)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(signing.CONTROLLER_IDENTITY)]), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    status, text = posted(token, body_of(token, request=greedy.decode()))
    assert status == 200
    certificate = x509.load_pem_x509_certificate(json.loads(text)["certificate"].encode())
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [catalog.get_proxy(lite.database, "far").identity]


def test_clients_that_hold_their_connection_hold_nobody_up(
    lite: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment_server, "CONNECTION_S", 2.0)
    token = lite.invite()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    silent = [socket.create_connection(("127.0.0.1", token.address.port), 20) for _ in range(30)]
    slow = context.wrap_socket(socket.create_connection(("127.0.0.1", token.address.port), 20))
    slow.sendall(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    enrol(token, place(tmp_path))
    assert slow.recv(4096) == b""  # ended after its time, without an answer
    for sock in (*silent, slow):
        sock.close()


def test_old_tls_and_plain_http_are_not_served(lite: Office, tmp_path: Path) -> None:
    token = lite.invite()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", token.address.port), 20) as sock,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(sock)
    connection = http.client.HTTPConnection("127.0.0.1", token.address.port, timeout=20)
    connection.request("POST", PATH, body_of(token))
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        connection.getresponse()
    connection.close()
    enrol(token, place(tmp_path))


# --- inviting ---------------------------------------------------------------------------------------------------------


def test_an_invitation_is_refused_before_anything_is_started(lite: Office) -> None:
    for wish, error in (
        ({"name": "a/b"}, UsageError), ({"host": "mars"}, NotFound), ({"name": "local"}, Refused),
        ({"valid_s": 0}, UsageError), ({"valid_s": 31 * 86400}, UsageError), ({"slots": 1001}, UsageError),
        ({"controller": "a b"}, UsageError), ({"controller": "[::1"}, UsageError),
    ):  # fmt: skip
        with pytest.raises(error):
            lite.invited(**wish)
    assert not lite.servers
    assert not open_addresses(lite.database)


def test_a_port_that_is_taken_is_told_and_the_invitation_withdrawn(lite: Office) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(30)
        port = taken.getsockname()[1]

        def hang_up() -> None:
            taken.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(MoverError, match=f"invite proxy 'far': port {port} of this machine is taken by another"):
            lite.invite(controller=f"127.0.0.1:{port}")
        thread.join()
    assert not open_addresses(lite.database)


def test_a_server_that_does_not_come_is_told(lite: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invite, "START_TIMEOUT_S", 0.2)
    wish = replace(WISH, controller=f"127.0.0.1:{free_port()}")
    with pytest.raises(MoverError, match=r"does not answer on port \d+ of this machine; see .*enrolment\.log"):
        invite.invite(lite.home, lite.database, wish, lambda: None)
    assert not open_addresses(lite.database)


def test_a_new_invitation_for_a_name_ends_the_older_one(lite: Office, tmp_path: Path) -> None:
    old = lite.invite()
    new = lite.invite(controller=old.controller)
    with pytest.raises(Refused, match="no such invitation"):
        enrol(old, place(tmp_path))
    enrol(new, place(tmp_path))


def test_an_open_invitation_holds_its_host_and_a_closed_one_does_not(lite: Office) -> None:
    catalog.add_host(lite.database, Host("prod", "qemu:///system", "/s"))
    made = make_invitation(lite.database, "far", "prod", 1, 60, Address("h", 1))
    with pytest.raises(Refused, match="it is used by invitation of proxy 'far'"):
        catalog.remove_host(lite.database, "prod")
    with lite.database.transaction() as session:
        session.get_one(InvitationRow, made.id).expires_at = "2020-01-01T00:00:00.000+00:00"
    catalog.remove_host(lite.database, "prod")


def test_the_primary_address_is_one_of_this_machine() -> None:
    address = invite.primary_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_one_word_and_says_no_more_than_it_must() -> None:
    token = Token("10.0.0.1:7341", "id", "secret", "0" * 64)
    assert re.fullmatch(r"ust1\.[A-Za-z0-9_-]+", token.text())
    assert parse_token(f"  {token.text()}\n") == token
    assert token.address == Address("10.0.0.1", 7341)


@pytest.mark.parametrize(
    "text",
    ["", "x", PREFIX, PREFIX + "!!!!", PREFIX + "e30", PREFIX + "A" * 3000, "ust2.e30",
     Token("no address:x", "i", "s", "0" * 64).text(), Token("h:1", "i", "s", "00").text(),
     Token("h:1", "i", "s", "0" * 64).text()[:-9]],
)  # fmt: skip
def test_what_is_no_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError, match="this is no enrolment token; copy the whole token") as caught:
        parse_token(text)
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 150


# --- the commands -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "understudy", *arguments], capture_output=True, text=True, check=False)


def test_one_command_on_each_side_makes_a_proxy(tmp_path: Path) -> None:
    home, host = ["--home", str(tmp_path / "home"), "--json"], tmp_path / "host"
    control, data = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    invited = command(*home, "proxy", "invite", "far", "--controller", f"127.0.0.1:{free_port()}", "--slots", "3")
    assert invited.returncode == 0, invited.stderr
    done = command("--json", "proxy", "enrol", json.loads(invited.stdout)["token"], "--state-dir", str(host),
                   "--control-address", control, "--data-address", data, "--no-start")  # fmt: skip
    assert done.returncode == 0, done.stderr
    serve = [sys.executable, "-m", "understudy", "proxy", "serve", "--state-dir", str(host)]
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(serve, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        # The service may still be starting: what a command says then is an error, not a wrong answer.
        assert Context().wait_until(lambda: command(*home, "proxy", "check", "far").returncode == 0, 60, 0.5)
        checked = json.loads(command(*home, "proxy", "check", "far").stdout)
        listed = json.loads(command(*home, "proxy", "list").stdout)[0]
        assert (checked["kind"], checked["identity"], checked["pid"]) == ("service", listed["identity"], service.pid)
        assert (listed["slots"], listed["control_address"], listed["data_address"]) == (3, control, data)
        assert checked["warnings"] == []
        removed = json.loads(command(*home, "proxy", "remove", "far").stdout)
        assert removed == {"name": "far", "removed": True, "told": True}
        assert service.wait(30) == 0
    finally:
        service.kill()
        service.wait()


def test_enrolling_fails_with_one_line(tmp_path: Path) -> None:
    unreachable = Token(f"127.0.0.1:{free_port()}", "id", "geheim", "0" * 64).text()
    for token, status in (("rubbish", 2), (unreachable, 1)):
        done = command("proxy", "enrol", token, "--state-dir", str(tmp_path / "host"), "--no-start")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
        assert done.stderr.startswith("error: enrol this host")
