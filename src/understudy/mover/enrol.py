"""Enrolling this host: become the proxy that a controller invited, by its one-time token."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from understudy import signing
from understudy.certificates import CONTROLLERS_CA, IDENTITY, PROXIES_CA, make_directory, write_private
from understudy.errors import HostUnreachable, MoverError, Refused, UsageError, from_fields
from understudy.model.address import Address, parse_address
from understudy.mover.api import Enrolled, EnrolmentRequest, ErrorFields
from understudy.mover.protocol import decode, encode
from understudy.mover.settings import CONTROL_PORT, DATA_PORT, ServiceSettings, StateDir
from understudy.mover.token import Token

PATH = "/v1/enrol"
LONGEST_BODY = 64 << 10
TIMEOUT_S = 30.0
_WHAT = "enrol this host"


@dataclass(frozen=True)
class Place:
    """Where a new proxy shall be: its state directory, and its addresses as others reach it, if they must be said.

    :ivar control_address: ``HOST[:PORT]``; empty for the address from which the controller sees this host come.
    """

    state_dir: Path
    control_address: str = ""
    data_address: str = ""


def enrol(token: Token, place: Place) -> ServiceSettings:
    """Make a key here, have the controller sign it, and keep what the service needs.

    :raises Refused: if this host is enrolled already, its proxy runs, or the controller does not accept the token.
    :raises HostUnreachable: if the controller does not answer.
    :raises UsageError: if an address is none, or a proxy of that name exists meanwhile.
    """
    control = _advertised(place.control_address, CONTROL_PORT)
    data = _advertised(place.data_address, DATA_PORT)
    state_dir = StateDir(place.state_dir)
    with state_dir.alone(_WHAT):
        name = state_dir.enrolled_as()
        if name is not None:
            raise Refused(_WHAT, f"it is the proxy {name!r} already", f"run 'understudy proxy remove {name}' on the"
                          f" controller, or delete {place.state_dir}/proxy.json")
        key = signing.new_key()
        request = EnrolmentRequest(
            token.invitation, token.secret, signing.signing_request(key).decode(), socket.gethostname(),
            os.cpu_count() or 1, str(control), str(data),
        )  # fmt: skip
        answer = _ask(token, request)
        return _keep(state_dir, key, answer, control, data)


def _advertised(text: str, port: int) -> Address:
    return parse_address(_WHAT, text, port) if text else Address("", port)


def _listen_address(advertised: Address) -> str:
    """Every address, so that the service starts before the network is up; but never more than this machine."""
    return str(advertised) if advertised.is_loopback else f":{advertised.port}"


def _ask(token: Token, request: EnrolmentRequest) -> Enrolled:
    what = f"{_WHAT} at controller {token.address}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The token says which certificate it must be; nothing is sent before that is known.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        token.address.host, token.address.port, timeout=TIMEOUT_S, context=context
    )
    try:
        connection.connect()
        _check_fingerprint(what, connection.sock, token.fingerprint)
        connection.request("POST", PATH, encode(request), {"Content-Type": "application/json"})
        response = connection.getresponse()
        status, content = response.status, response.read(LONGEST_BODY)
    except (OSError, http.client.HTTPException) as exc:
        raise HostUnreachable(what, str(exc) or type(exc).__name__,
                              "check that this host reaches the controller and that the token is still valid") from exc
    finally:
        connection.close()
    try:
        if status == http.HTTPStatus.OK:
            return decode(Enrolled, content)
        fields = decode(ErrorFields, content)
    except UsageError as exc:
        raise MoverError(what, f"its answer (status {status}) is not understood", "use the same version there") from exc
    raise from_fields(fields.code, fields.what, fields.why, fields.todo)


def _check_fingerprint(what: str, sock: ssl.SSLSocket, fingerprint: str) -> None:
    certificate = sock.getpeercert(binary_form=True) or b""
    if not hmac.compare_digest(hashlib.sha256(certificate).hexdigest(), fingerprint):
        raise Refused(what, "who answers there is not the controller that made the token",
                      "check the address; if it is right, somebody is in between")


def _keep(state_dir: StateDir, key: bytes, answer: Enrolled, control: Address, data: Address) -> ServiceSettings:
    """Write the credentials, and last of all the settings that make this host an enrolled one."""
    certificate, directory = answer.certificate.encode(), state_dir.credentials.directory
    signing.check_issued(_WHAT, certificate, key, answer.identity, answer.proxies_ca.encode())
    settings = ServiceSettings(answer.name, answer.identity, _listen_address(control), _listen_address(data))
    try:
        make_directory(directory)
        write_private(directory / PROXIES_CA, answer.proxies_ca.encode())
        write_private(directory / CONTROLLERS_CA, answer.controllers_ca.encode())
        write_private(directory / IDENTITY, key + certificate)
        state_dir.save(settings)
    except OSError as exc:
        raise MoverError(_WHAT, f"{exc.filename}: {exc.strerror}", "make room, and invite it again") from exc
    return settings
