"""The form of a thumbprint that is pinned."""

from __future__ import annotations

import ssl

import pytest

from understudy.errors import UsageError
from understudy.platforms.vsphere.trust import pinned, thumbprint, tls_context


def test_a_pin_is_compared_in_one_form() -> None:
    shown = thumbprint(b"a certificate", "sha256")
    assert len(shown) == 95
    assert pinned(shown) == pinned(shown.lower()) == pinned(shown.replace(":", "")) == shown
    assert pinned("") == ""


@pytest.mark.parametrize("text", [thumbprint(b"x", "sha1"), "AB", "0" * 63, "g" * 64, " ", "0" * 66])
def test_what_is_no_pin_never_counts_as_none(text: str) -> None:
    with pytest.raises(UsageError, match="no SHA-256 digest"):
        pinned(text)


def test_without_a_pin_the_name_and_the_authority_are_checked() -> None:
    context = tls_context("")
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
