"""Disks of another host: read by TLS with certificates on both sides, or not at all."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.mover.mover_lab import add_bitmap, io, make_image
from understudy import nbd
from understudy.certificates import Credentials
from understudy.controller.authority import Authorities
from understudy.errors import TransferError
from understudy.model.extent import Extent
from understudy.mover.api import NbdSource
from understudy.mover.reader import Source
from understudy.nbd import ALLOCATION, NbdClient
from understudy.units import MIB

pytestmark = pytest.mark.timeout(120)
SIZE = 8 * MIB


class Place:
    """An image, the certificates of its host, and those of a proxy."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authorities = Authorities(directory / "home")
        self.credentials = self.authorities.issue_proxy(directory / "proxy", "proxy-1.understudy.internal")
        self.image = make_image(directory / "disk.qcow2", SIZE)
        io(self.image, "write -P 7 0 3M")
        add_bitmap(self.image, "changes")
        io(self.image, "write -P 8 1M 1M")

    @contextmanager
    def served(self, address: str = "localhost", *, verify: bool = True, tls: bool = True) -> Iterator[str]:
        """The image, served by qemu-nbd on a free port with a certificate for ``address``; ``localhost:PORT``."""
        self.authorities.issue_host(self.directory / "host", address)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        creds = f"tls-creds-x509,id=tls0,endpoint=server,dir={self.directory / 'host'},"
        secure = ["--object", creds + f"verify-peer={'on' if verify else 'off'}", "--tls-creds", "tls0"] if tls else []
        command = ["qemu-nbd", "-r", "--persistent", "-e", "8", "-b", "127.0.0.1", "-p", str(port), "-f", "qcow2",
                   "-x", "disk", "-B", "changes", *secure, str(self.image)]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            wait_listening(process, port)
            yield f"localhost:{port}"
        finally:
            process.terminate()
            process.wait(10)

    def source(self, address: str, dirty: str = "") -> NbdSource:
        return NbdSource("", "disk", dirty, address)


def wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert process.poll() is None, "qemu-nbd ended"
            assert time.monotonic() < deadline, "qemu-nbd does not listen"
            time.sleep(0.02)
        else:
            return


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_disk_is_read_with_its_dirty_map_over_several_connections(place: Place) -> None:
    dirty = "qemu:dirty-bitmap:changes"
    with place.served() as address:
        source = Source(place.source(address, dirty), SIZE, tracked=True, credentials=place.credentials)
        readers = source.readers(3)
        assert len(readers) > 1
        _, known = source.statuses(0, SIZE, SIZE)
        changed = [(item.start, item.length) for item in known[dirty] if item.flags & nbd.DIRTY_FLAG]
        assert changed == [(MIB, MIB)]
        assert ALLOCATION not in known  # it would have to be looked up for every answer
        whole = source.allocation(Extent(0, SIZE))
        assert {item.start for item in whole if item.flags & nbd.ZERO_FLAG} == {3 * MIB}
        buffers = [bytearray(MIB) for _ in readers]
        cookies = [reader.start_read(memoryview(buffer), MIB) for reader, buffer in zip(readers, buffers, strict=True)]
        for reader, cookie in zip(readers, cookies, strict=True):
            while not reader.finished(cookie):
                reader.poll(1)
            reader.close()
        source.close()
    assert set(map(bytes, buffers)) == {b"\x08" * MIB}


def test_an_address_can_be_in_the_certificate(place: Place) -> None:
    tls = nbd.tls_directory(place.credentials)
    with place.served("127.0.0.1") as address:
        NbdClient(address.replace("localhost", "127.0.0.1"), "disk", tls_dir=tls).close()


def refused(place: Place, address: str, credentials: Credentials | None) -> str:
    with pytest.raises(TransferError) as caught:
        Source(place.source(address), SIZE, credentials=credentials)
    return str(caught.value)


def test_a_server_with_a_certificate_of_another_authority_is_refused(place: Place) -> None:
    stranger = Authorities(place.directory / "other").issue_proxy(place.directory / "stranger", "p.understudy.internal")
    with place.served() as address:
        assert "certificate" in refused(place, address, stranger)


def test_a_server_with_a_certificate_for_another_host_is_refused(place: Place) -> None:
    with place.served("elsewhere.example") as address:
        assert "certificate verification" in refused(place, address, place.credentials)


def test_a_server_without_tls_is_refused(place: Place) -> None:
    with place.served(tls=False) as address:
        assert "TLS" in refused(place, address, place.credentials)


def test_a_server_that_asks_nobody_for_a_certificate_is_refused(place: Place) -> None:
    with place.served(verify=False) as address:
        assert "asks nobody for a certificate; set backup_tls_x509_verify" in refused(place, address, place.credentials)


def test_the_server_refuses_who_has_no_certificate(place: Place, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "ca-cert.pem").symlink_to(place.credentials.directory / "proxies-ca.pem")
    with place.served() as address, pytest.raises(TransferError):
        NbdClient(address, "disk", tls_dir=bare)


def test_a_proxy_without_credentials_says_so(place: Place) -> None:
    assert "this proxy has no certificate" in refused(place, "localhost:1", None)


def test_a_renewed_certificate_is_used_for_the_next_connection(place: Place) -> None:
    with place.served() as address:
        Source(place.source(address), SIZE, credentials=place.credentials).close()
        other = Authorities(place.directory / "other").issue_proxy(place.directory / "s", "p.understudy.internal")
        (place.credentials.directory / "identity.pem").write_bytes((other.directory / "identity.pem").read_bytes())
        refused(place, address, place.credentials)
        place.authorities.issue_proxy(place.credentials.directory, "proxy-1.understudy.internal")
        Source(place.source(address), SIZE, credentials=place.credentials).close()

