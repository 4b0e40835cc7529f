"""The one form of time in the configuration database and in reports: ISO 8601 in UTC, with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime


def now_iso() -> str:
    """This instant, e.g. ``2026-01-31T23:59:59.123+00:00``; sortable as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def seconds_since(started_at: str) -> float:
    """Seconds from a time of this form until now; never negative, whatever was done to the clock."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(started_at)).total_seconds())
