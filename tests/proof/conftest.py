"""One lab, as for the system tests."""

from __future__ import annotations

from tests.system.conftest import lab

__all__ = ["lab"]
