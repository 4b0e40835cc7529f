"""Tokens: what an operator carries from the controller to a host that shall become a proxy."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from understudy.errors import UsageError
from understudy.model.address import Address, parse_address
from understudy.mover.protocol import decode, encode

PREFIX = "ust1."
_LONGEST = 2000
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Token:
    """A one-time token.

    :ivar controller: ``HOST:PORT`` of the enrolment server.
    :ivar fingerprint: SHA-256 of that server's certificate, in hexadecimal digits.
    """

    controller: str
    invitation: str
    secret: str
    fingerprint: str

    @property
    def address(self) -> Address:
        """Where the controller waits."""
        return parse_address("enrol this host", self.controller)

    def text(self) -> str:
        """The token as one word."""
        return PREFIX + base64.urlsafe_b64encode(encode(self)).rstrip(b"=").decode()


def parse_token(text: str) -> Token:
    """The token that ``text`` is. The text itself is never repeated: it is a secret.

    :raises UsageError: if it is none.
    """
    refused = UsageError("enrol this host", "this is no enrolment token", "copy the whole token from 'proxy invite'")
    body = text.strip().removeprefix(PREFIX)
    if not text.strip().startswith(PREFIX) or len(body) > _LONGEST:
        raise refused
    try:
        content = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        token = decode(Token, content)
        parse_address("enrol this host", token.controller)
    except (binascii.Error, ValueError, UsageError):
        # Without the cause: it repeats what was parsed.
        raise refused from None
    if not _FINGERPRINT.fullmatch(token.fingerprint):
        raise refused
    return token
