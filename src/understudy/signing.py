"""Signing: how keys, signing requests and certificates are made and read. Bytes in, bytes out; files are elsewhere.

Keys are EC P-256. A certificate names its owner once, as a DNS name in the subject alternative names, and the signer
decides that name: a signing request contributes its public key and nothing else.
"""

from __future__ import annotations

import ipaddress
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from understudy.errors import UsageError

DOMAIN = "understudy.internal"
CONTROLLER_IDENTITY = f"controller.{DOMAIN}"
LIFETIME = timedelta(days=365)
AUTHORITY_LIFETIME = timedelta(days=365 * 20)
#: Certificates begin a little earlier than now, for hosts whose clock is behind.
CLOCK_TOLERANCE = timedelta(hours=1)

Usage = Literal["client", "server"]
_USAGES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


@dataclass(frozen=True)
class Validity:
    """When a certificate is valid, in UTC."""

    starts: datetime
    ends: datetime

    @classmethod
    def from_now(cls, lifetime: timedelta = LIFETIME) -> Validity:
        """From this instant, or a little earlier, until ``lifetime`` from now."""
        now = datetime.now(UTC)
        return cls(now - CLOCK_TOLERANCE, now + lifetime)

    def is_due(self, now: datetime) -> bool:
        """Whether a third of the time has passed: renewing so early leaves months to notice that it fails."""
        return now >= self.starts + (self.ends - self.starts) / 3


def new_proxy_identity() -> str:
    """A name that no proxy ever had."""
    return f"proxy-{uuid.uuid4().hex}.{DOMAIN}"


def new_key() -> bytes:
    """A new private key, PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def signing_request(key: bytes) -> bytes:
    """A request to sign the public half of ``key``, PEM. It asks for no name: the signer decides it."""
    private = _private(key)
    return (
        x509.CertificateSigningRequestBuilder(x509.Name([])).sign(private, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip


def make_authority(name: str, lifetime: timedelta = AUTHORITY_LIFETIME) -> bytes:
    """A new certificate authority: its private key and its certificate, PEM, one after the other."""
    return _self_signed(name, lifetime, x509.BasicConstraints(ca=True, path_length=0))


def make_pinned(name: str, lifetime: timedelta = AUTHORITY_LIFETIME) -> bytes:
    """A new private key and a certificate that is known by its fingerprint, PEM, one after the other."""
    return _self_signed(name, lifetime, x509.BasicConstraints(ca=False, path_length=None))


def sign(
    authority: bytes, request: bytes, identity: str, usages: tuple[Usage, ...], validity: Validity, *,
    enciphers: bool = False,
) -> bytes:  # fmt: skip
    """A certificate for the key in ``request``, PEM. Whatever else the request asks for is ignored.

    :param authority: what :func:`make_authority` made.
    :param identity: a name, or the address of a host.
    :param enciphers: allow the key to encipher keys: TLS 1.3 has no use for that, but QEMU insists on it.
    :raises UsageError: if the request is none, is not signed by its own key, or its key is not EC P-256.
    """
    signer = _private(authority)
    issuer = x509.load_pem_x509_certificate(authority)
    public = _requested_key(request)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity)])
    certificate = (
        _builder(subject, issuer.subject, public, signer.public_key(), validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False, enciphers=enciphers), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGES[usage] for usage in usages]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(identity)]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def certificate_of(pem: bytes) -> bytes:
    """The first certificate in ``pem``, alone, PEM."""
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.PEM)


def fingerprint(pem: bytes) -> str:
    """SHA-256 of the first certificate in ``pem``, in hexadecimal digits."""
    return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()


def validity_of(pem: bytes) -> Validity:
    """When the first certificate in ``pem`` is valid."""
    certificate = x509.load_pem_x509_certificate(pem)
    return Validity(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def identity_of(pem: bytes) -> str:
    """The name in the first certificate in ``pem``; empty if it has none."""
    try:
        names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ""
    return next(iter(names.value.get_values_for_type(x509.DNSName)), "")


def check_issued(what: str, pem: bytes, key: bytes, identity: str, authority: bytes) -> None:
    """Accept ``pem`` as a certificate for ``key`` and ``identity`` that ``authority``, a certificate, signed.

    :raises UsageError: if it is something else.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(what, "this is no certificate") from exc
    if certificate.public_key() != _private(key).public_key():
        raise UsageError(what, "the certificate is for another key", "ask for a new signing request")
    if identity_of(pem) != identity:
        raise UsageError(what, f"the certificate is for {identity_of(pem)!r}, not for {identity!r}")
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise UsageError(what, "the certificate is from another authority") from exc


def _self_signed(name: str, lifetime: timedelta, constraints: x509.BasicConstraints) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, subject, key.public_key(), key.public_key(), Validity.from_now(lifetime))
        .add_extension(constraints, critical=True)
        .add_extension(_key_usage(signs=constraints.ca), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    what = "sign a certificate"
    try:
        parsed = x509.load_pem_x509_csr(request)
        public = parsed.public_key()
        signed = parsed.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise UsageError(what, "this is no signing request") from exc
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise UsageError(what, "its key is not EC P-256")
    if not signed:
        raise UsageError(what, "the signing request is not signed by its own key")
    return public


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePublicKey,
    validity: Validity,
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.starts).not_valid_after(validity.ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )  # fmt: skip


def _general_name(identity: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(identity))
    except ValueError:
        return x509.DNSName(identity)


def _key_usage(signs: bool, enciphers: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=enciphers, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an EC key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
