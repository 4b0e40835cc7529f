"""The two authorities: who trusts whom, who may read what, and what a renewal changes."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from understudy import signing
from understudy.certificates import CONTROLLERS_CA, IDENTITY, NEXT_KEY, PROXIES_CA, Credentials, peer_identity
from understudy.controller.authority import Authorities
from understudy.errors import DatabaseError, UsageError
from understudy.signing import CONTROLLER_IDENTITY, Validity, new_proxy_identity

DAY = timedelta(days=1)


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    return Authorities(tmp_path / "home")


@pytest.fixture
def proxy(authorities: Authorities, tmp_path: Path) -> Credentials:
    return authorities.issue_proxy(tmp_path / "proxy", new_proxy_identity())


def meet(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[str, str, str]:
    """The TLS version and who the server and the client saw; raises what either end raised."""
    ends = socket.socketpair()
    seen: list[str | BaseException] = []

    def serve() -> None:
        try:
            with server.wrap_socket(ends[0], server_side=True) as sock:
                seen.append(peer_identity(sock))
                sock.sendall(b"!")
        except OSError as exc:
            seen.append(exc)
            ends[0].close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ends[1], server_hostname=name) as sock:
            answer = sock.recv(1)
            found = (sock.version() or "", peer_identity(sock))
    finally:
        ends[1].close()
        thread.join()
    if isinstance(seen[0], BaseException):
        raise seen[0]
    assert answer == b"!"
    return found[0], seen[0], found[1]


def refused(attempt: Callable[[], object]) -> str:
    with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
        attempt()
    return str(caught.value)


def test_proxies_and_the_controller_know_each_other_by_name(authorities: Authorities, proxy: Credentials) -> None:
    controller = authorities.controller()
    found = meet(proxy.server_context(CONTROLLERS_CA), controller.client_context(PROXIES_CA), proxy.identity())
    assert found == ("TLSv1.3", CONTROLLER_IDENTITY, proxy.identity())


def test_the_name_must_be_the_one_on_record(authorities: Authorities, proxy: Credentials, tmp_path: Path) -> None:
    other = authorities.issue_proxy(tmp_path / "other", new_proxy_identity())
    client = authorities.controller().client_context(PROXIES_CA)
    assert "Hostname mismatch" in refused(lambda: meet(other.server_context(CONTROLLERS_CA), client, proxy.identity()))


def test_a_proxy_is_no_controller_and_a_controller_no_proxy(
    authorities: Authorities, proxy: Credentials, tmp_path: Path
) -> None:
    other = authorities.issue_proxy(tmp_path / "other", new_proxy_identity())
    client = other.client_context(PROXIES_CA)
    assert refused(lambda: meet(proxy.server_context(CONTROLLERS_CA), client, proxy.identity()))
    controller = authorities.controller()
    assert refused(lambda: meet(proxy.server_context(PROXIES_CA), controller.client_context(PROXIES_CA),
                                proxy.identity()))  # fmt: skip


def test_authorities_of_another_home_sign_for_nobody_here(proxy: Credentials, tmp_path: Path) -> None:
    stranger = Authorities(tmp_path / "elsewhere").controller().client_context(PROXIES_CA)
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    assert refused(lambda: meet(proxy.server_context(CONTROLLERS_CA), stranger, proxy.identity()))


@pytest.mark.parametrize(("starts", "ends"), [(-2 * DAY, -DAY), (DAY, 2 * DAY)], ids=["expired", "not yet valid"])
def test_a_certificate_outside_its_time_is_refused_by_both_sides(
    authorities: Authorities, proxy: Credentials, tmp_path: Path, starts: timedelta, ends: timedelta
) -> None:
    now = datetime.now(UTC)
    validity = Validity(now + starts, now + ends)
    late = authorities.issue_controller(tmp_path / "late", validity).client_context(PROXIES_CA)
    assert refused(lambda: meet(proxy.server_context(CONTROLLERS_CA), late, proxy.identity()))
    old = authorities.issue_proxy(tmp_path / "old", proxy.identity(), validity)
    client = authorities.controller().client_context(PROXIES_CA)
    assert refused(lambda: meet(old.server_context(CONTROLLERS_CA), client, proxy.identity()))


def test_older_tls_is_refused(authorities: Authorities, proxy: Credentials) -> None:
    client = authorities.controller().client_context(PROXIES_CA)
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert refused(lambda: meet(proxy.server_context(CONTROLLERS_CA), client, proxy.identity()))


def test_nobody_else_can_read_the_keys(authorities: Authorities, proxy: Credentials, tmp_path: Path) -> None:
    authorities.controller()
    proxy.request()
    places = [tmp_path / "home" / "pki", *(tmp_path / "home" / "pki").rglob("*"), *(tmp_path / "proxy").iterdir()]
    for path in [*places, tmp_path / "proxy"]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_authorities_are_made_once_and_read_again(authorities: Authorities, tmp_path: Path) -> None:
    made: list[Authorities] = []
    threads = [threading.Thread(target=lambda: made.append(Authorities(tmp_path / "new"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({item.certificates()[PROXIES_CA] for item in made}) == 1
    assert Authorities(tmp_path / "home").certificates() == authorities.certificates()


def test_a_damaged_authority_is_told(tmp_path: Path) -> None:
    Authorities(tmp_path).controller()
    (tmp_path / "pki" / "controller" / IDENTITY).write_text("rubbish")
    with pytest.raises(DatabaseError, match="a file is damaged"):
        Authorities(tmp_path).controller()


def test_the_controller_renews_its_own_certificate(authorities: Authorities) -> None:
    directory = authorities.controller().directory
    first = (directory / IDENTITY).read_bytes()
    assert authorities.controller().directory.joinpath(IDENTITY).read_bytes() == first
    now = datetime.now(UTC)
    authorities.issue_controller(directory, Validity(now - 2 * DAY, now + 3 * DAY))
    due = (directory / IDENTITY).read_bytes()
    authorities.controller()
    assert (directory / IDENTITY).read_bytes() not in (first, due)


def test_a_renewed_certificate_is_used_by_contexts_that_are_in_use(
    authorities: Authorities, proxy: Credentials
) -> None:
    server = proxy.server_context(CONTROLLERS_CA)
    client = authorities.controller().client_context(PROXIES_CA)
    now = datetime.now(UTC)
    identity = proxy.identity()
    # A short life, then a new key: what the live context shows must be the second one.
    proxy.install(authorities.sign_proxy(proxy.request(), identity, Validity(now - DAY, now - DAY / 2)))
    assert "expired" in refused(lambda: meet(server, client, identity))
    before = (proxy.directory / IDENTITY).read_bytes()
    proxy.install(authorities.sign_proxy(proxy.request(), identity))
    assert meet(server, client, identity)[2] == identity
    assert (proxy.directory / IDENTITY).read_bytes() != before
    assert not (proxy.directory / NEXT_KEY).exists()


def test_only_the_certificate_that_was_asked_for_is_installed(
    authorities: Authorities, proxy: Credentials, tmp_path: Path
) -> None:
    before = (proxy.directory / IDENTITY).read_bytes()
    identity = proxy.identity()
    with pytest.raises(UsageError, match="no signing request is open"):
        proxy.install(before)
    request = proxy.request()
    wrong = {
        "this is no certificate": b"rubbish",
        "is for another key": before,
        "is for 'x', not for": authorities.sign_proxy(request, "x"),
        "from another authority": Authorities(tmp_path / "elsewhere").sign_proxy(request, identity),
    }
    for why, certificate in wrong.items():
        with pytest.raises(UsageError, match=why):
            proxy.install(certificate)
    assert (proxy.directory / IDENTITY).read_bytes() == before
    proxy.install(authorities.sign_proxy(request, identity))


def test_a_signing_request_decides_nothing_but_the_key(authorities: Authorities) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, CONTROLLER_IDENTITY)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(CONTROLLER_IDENTITY)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    signed = authorities.sign_proxy(greedy.public_bytes(serialization.Encoding.PEM), "mine")
    certificate = x509.load_pem_x509_certificate(signed)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert signing.identity_of(signed) == "mine"
    assert CONTROLLER_IDENTITY not in certificate.subject.rfc4514_string()
    assert certificate.public_key() == key.public_key()


def test_other_keys_and_other_texts_are_not_signed(authorities: Authorities) -> None:
    other = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(other, hashes.SHA256())
    with pytest.raises(UsageError, match="not EC P-256"):
        authorities.sign_proxy(request.public_bytes(serialization.Encoding.PEM), "mine")
    good = signing.signing_request(signing.new_key())
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # the signature
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    with pytest.raises(UsageError, match="not signed by its own key"):
        authorities.sign_proxy(forged, "mine")
    for rubbish in (b"", b"rubbish", good[:100], b"\xff" * 1000):
        with pytest.raises(UsageError, match="no signing request"):
            authorities.sign_proxy(rubbish, "mine")
