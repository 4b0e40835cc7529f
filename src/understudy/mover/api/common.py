"""Values of the control protocol that both sides use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReplicaRef:
    """Where a replica lies: store kind, datastore directory, replica name."""

    kind: str
    datastore: str
    name: str


@dataclass(frozen=True)
class About:
    """Ask who answers; see :class:`MoverInfo`."""


@dataclass(frozen=True)
class MoverInfo:
    """Who answers: versions of everything that touches data, for the record of each point.

    :ivar identity: the name in its certificate; empty if it has none.
    :ivar cores: how many disks it moves at the same time unless its slots are set.
    """

    name: str
    pid: int
    versions: dict[str, str]
    identity: str = ""
    cores: int = 1


@dataclass(frozen=True)
class Nothing:
    """No values."""
