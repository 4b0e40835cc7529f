"""Who has a stolen certificate, another home's, an old one, or none at all gets nothing from a proxy at work.

Everything is tried on the hosts, against a transfer under way, which must not notice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from tests.system.site_lab import LINE_BITS, MBIT, Run, SiteLab, disk_of, fill, site_lab
from understudy.certificates import PROXIES_CA
from understudy.controller import catalog, interrupted
from understudy.controller.authority import Authorities
from understudy.lab.errors import CommandFailed
from understudy.lab.vm import LabVm
from understudy.mover.settings import CONTROL_PORT, DATA_PORT
from understudy.signing import Validity
from understudy.units import MIB

DATA_MIB = 24
# Long enough for all attempts; the last test lets the rest pass quickly.
SLOW_BITS = 3 * MBIT

# Arguments: credentials, address, identity of the other side, ticket, disk. Says "welcome" or why not.
_BRING_DATA = """
import sys
from pathlib import Path
from understudy.certificates import Credentials
from understudy.errors import UnderstudyError
from understudy.mover.api import TargetAddress
from understudy.mover.frames import FrameType
from understudy.mover.link import dial
directory, address, identity, ticket, disk = sys.argv[1:]
try:
    connection = dial(TargetAddress(address, identity, ticket), Credentials(Path(directory)))
    connection.send_text(FrameType.HELLO, {"ticket": ticket, "version": 2, "role": "answers", "disk": disk})
    print("welcome", connection.receive_text(FrameType.WELCOME))
except UnderstudyError as exc:
    print(type(exc).__name__, exc)
"""

# Arguments: credentials, host, port, identity of the other side. Says who answers, or why nobody does.
_COMMAND = """
import sys
from pathlib import Path
from understudy.certificates import Credentials
from understudy.errors import UnderstudyError
from understudy.model.address import Address
from understudy.mover import api
from understudy.mover.client import MoverClient
from understudy.mover.endpoints import TlsEndpoint
directory, host, port, identity = sys.argv[1:]
try:
    with MoverClient(TlsEndpoint(Address(host, int(port)), identity, Credentials(Path(directory)))) as client:
        print("answered", client.call(api.About(), api.MoverInfo))
except UnderstudyError as exc:
    print(type(exc).__name__, exc)
"""

# Arguments: credentials or an empty text, host, port, highest version of TLS. Says what the other side answers.
_TLS = """
import socket, ssl, sys
directory, host, port, version = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.maximum_version = ssl.TLSVersion[version]
if directory:
    context.load_cert_chain(directory + "/identity.pem")
try:
    with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as tls:
        tls.sendall(b"x" * 100)
        # Who is refused may be told so, or be left with a closed connection.
        print("answered" if tls.recv(100) else "refused without a word")
except OSError as exc:
    print("refused", exc)
"""


@dataclass
class Scene:
    """A transfer under way, of which an intruder knows everything.

    :ivar tickets: of the transfers, by disk.
    """

    sites: SiteLab
    vm: LabVm
    run: Run
    far: str
    tickets: dict[str, str]
    stolen: Path

    def bring_data(self, credentials: Path, ticket: str, disk: str = "vdb") -> str:
        """Come to the data port of the target proxy, from the other host."""
        address = f"{self.sites.lab.link.beta_address}:{DATA_PORT}"
        return self._python(_BRING_DATA, str(credentials), address, self.far, ticket, disk)

    def command(self, credentials: Path) -> str:
        """Come to the control port of the target proxy."""
        return self._python(_COMMAND, str(credentials), self.sites.lab.link.beta_address, str(CONTROL_PORT), self.far)

    def tls(self, credentials: Path | None, port: int, version: str = "TLSv1_3") -> str:
        """Speak TLS to a port of the target proxy without checking whom."""
        beta = self.sites.lab.link.beta_address
        return self._python(_TLS, str(credentials or ""), beta, str(port), version)

    def _python(self, script: str, *arguments: str) -> str:
        return self.sites.lab.alpha.run([sys.executable, "-c", script, *arguments]).strip()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with site_lab("watched") as (sites, vm):
        sites.job("nightly", vm.name, points=3)
        sites.replicate("nightly", vm)
        _enrol_third(sites)
        stolen = sites.place / "stolen"
        credentials = sites.pair.state_dir("near") / "credentials"
        stolen.mkdir()
        for path in credentials.iterdir():
            (stolen / path.name).write_bytes(path.read_bytes())
        fill(vm, DATA_MIB)
        sites.lab.link.set_rate(SLOW_BITS)
        run = sites.begin("nightly", vm)
        run.await_sent(MIB)
        (held,) = [task.held for session in interrupted.held_sessions(sites.database) for task in session.resumed]
        tickets = {name: works.ticket for name, works in held.works.items()}
        yield Scene(sites, vm, run, catalog.get_proxy(sites.database, "far").identity, tickets, stolen)


def _enrol_third(sites: SiteLab) -> None:
    """One more proxy of the same controller, which takes part in nothing."""
    beta = sites.lab.link.beta_address
    token = sites.pair.json("proxy", "invite", "third", "--host", "beta", "--controller", beta)["token"]
    sites.lab.beta.run([
        sys.executable, "-m", "understudy", "proxy", "enrol", token, "--state-dir", str(sites.pair.state_dir("third")),
        "--no-start", "--control-address", f"{beta}:7352", "--data-address", f"{beta}:7353",
    ])  # fmt: skip


def _third(scene: Scene) -> Path:
    return scene.sites.pair.state_dir("third") / "credentials"


def test_a_stolen_certificate_and_a_guessed_ticket_bring_no_data(scene: Scene) -> None:
    assert "this proxy has none for this ticket" in scene.bring_data(scene.stolen, "0" * 64)


def test_a_ticket_is_worth_nothing_with_the_certificate_of_another_proxy(scene: Scene) -> None:
    assert "this proxy has none for this ticket" in scene.bring_data(_third(scene), scene.tickets["vdb"])


def test_a_ticket_of_a_removed_proxy_is_worth_nothing_and_it_gets_no_other(scene: Scene) -> None:
    scene.sites.pair.run("proxy", "remove", "third")
    assert "this proxy has none for this ticket" in scene.bring_data(_third(scene), scene.tickets["vdb"])
    with pytest.raises(CommandFailed, match="no such proxy"):
        scene.sites.pair.run("proxy", "check", "third")


def test_an_expired_certificate_is_refused(scene: Scene) -> None:
    near = catalog.get_proxy(scene.sites.database, "near").identity
    expired = Validity.from_now(timedelta(minutes=-1))
    old = Authorities(scene.sites.pair.home).issue_proxy(scene.sites.place / "expired", near, expired)
    assert "LinkLost" in scene.bring_data(old.directory, scene.tickets["vdb"])


def test_a_certificate_of_another_home_is_refused(scene: Scene) -> None:
    near = catalog.get_proxy(scene.sites.database, "near").identity
    other = Authorities(scene.sites.place / "other").issue_proxy(scene.sites.place / "foreign", near)
    # It would refuse the target itself if it did not trust its authority.
    (other.directory / PROXIES_CA).write_bytes((scene.stolen / PROXIES_CA).read_bytes())
    assert "LinkLost" in scene.bring_data(other.directory, scene.tickets["vdb"])


@pytest.mark.parametrize("port", [CONTROL_PORT, DATA_PORT])
def test_who_has_no_certificate_or_only_an_older_tls_gets_no_answer(scene: Scene, port: int) -> None:
    assert scene.tls(None, port).startswith("refused")
    assert scene.tls(scene.stolen, port, "TLSv1_2").startswith("refused")


def test_a_proxy_cannot_command_another_proxy(scene: Scene) -> None:
    assert scene.command(scene.stolen).startswith("MoverError")
    assert scene.command(scene.sites.pair.home / "pki" / "controller").startswith("answered")


def test_the_transfer_noticed_nothing_and_its_tickets_end_with_it(scene: Scene) -> None:
    sites = scene.sites
    assert not scene.run.report.state.ended
    sites.lab.link.set_rate(LINE_BITS)
    disk = disk_of(scene.run.succeed())
    assert (disk.reconnects, disk.sent_bytes) == (0, DATA_MIB * MIB)
    assert "this proxy has none for this ticket" in scene.bring_data(scene.stolen, scene.tickets["vdb"])


def test_a_job_whose_proxy_was_removed_says_so(scene: Scene) -> None:
    sites, vm = scene.sites, scene.vm
    sites.job("fixed", vm.name, suffix="_fixed", target_proxy="far")
    with pytest.raises(CommandFailed, match="fixed"):
        sites.pair.run("proxy", "remove", "far")
    sites.pair.run("job", "delete", "fixed")
    near = sites.pair.proxies["near"]
    assert sites.pair.json("proxy", "remove", "near")["told"]
    assert near.wait(30) == 0, near.log.read_text()[-3000:]
    assert not list((sites.pair.state_dir("near") / "credentials").iterdir())
    assert "this proxy has none for this ticket" in scene.bring_data(scene.stolen, scene.tickets["vdb"])
    near_again = [sys.executable, "-m", "understudy", "proxy", "serve", "--state-dir",
                  str(sites.pair.state_dir("near"))]  # fmt: skip
    with pytest.raises(CommandFailed, match="enrol"):
        sites.lab.alpha.run(near_again)
