"""What is found about a host before VMs are replicated from it, where that is more than its versions."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Gravity(enum.StrEnum):
    """How much a finding matters: the host cannot be a source at all; something will not work; good to know."""

    BLOCKING = "blocking"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    :ivar subject: what it is about, in the operator's words: ``account``, ``VM web``, ``proxy local``.
    :ivar todo: what the operator can do, or empty.
    """

    gravity: Gravity
    subject: str
    why: str
    todo: str = ""


def by_gravity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first."""
    order = list(Gravity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.gravity)))


class Role(enum.StrEnum):
    """What a privilege is needed for: hosts as a source or as a target, or guest processing by VMware Tools."""

    SOURCE = "source"
    TARGET = "target"
    GUESTS = "guests"


@dataclass(frozen=True)
class PrivilegeCheck:
    """A privilege that the account should have.

    :ivar place: the kind of objects on which it counts: ``VMs``, ``datastores``, ``the whole server``.
    :ivar asked: on how many of them the server was asked; 0: it did not tell.
    :ivar missing_on: names of those where it is missing.
    """

    privilege: str
    role: Role
    purpose: str
    place: str
    asked: int = 0
    missing_on: tuple[str, ...] = ()

    @property
    def granted(self) -> bool | None:
        """Whether the account has it everywhere; None if that is not known."""
        return None if not self.asked else not self.missing_on


class Tracking(enum.StrEnum):
    """Changed block tracking of a VM: on; off, and switched on by the first session; or not possible."""

    ON = "on"
    OFF = "off"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class VmCheck:
    """A VM as a source.

    :ivar hardware: version of its virtual hardware, ``vmx-19``.
    :ivar snapshots: that it has; :ivar deepest: how many of them lie upon each other.
    :ivar unmerged: deltas of snapshots that are gone are still to be merged.
    :ivar obstacle: why it cannot be replicated, or empty.
    :ivar disks: ``(disk, why)`` of disks that cannot be replicated.
    """

    name: str
    uuid: str
    hardware: str
    tracking: Tracking
    snapshots: int = 0
    deepest: int = 0
    unmerged: bool = False
    obstacle: str = ""
    disks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DatastoreSpace:
    """A datastore of the host, with bytes; ``problem`` says why it cannot be used just now, or is empty."""

    name: str
    kind: str
    capacity: int
    free: int
    problem: str = ""


@dataclass(frozen=True)
class Preflight:
    """Everything that was found about a host itself; its proxies are looked at apart.

    :ivar kind: ``vcenter`` or ``esxi``.
    :ivar licences: names of licences, as far as the account may see them.
    :ivar read_only: whether the licence lets nobody change anything by the API; None if that cannot be told.
    """

    product: str
    version: str
    build: str
    api_version: str
    kind: str
    licences: tuple[str, ...]
    read_only: bool | None
    privileges: tuple[PrivilegeCheck, ...]
    vms: tuple[VmCheck, ...]
    datastores: tuple[DatastoreSpace, ...]
    findings: tuple[Finding, ...]
