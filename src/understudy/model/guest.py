"""Guest processing: how a guest is reached, what is done in it, and what came of that."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class GuestPolicy(enum.StrEnum):
    """Guest processing: not at all, if possible, or the task fails without it."""

    OFF = "off"
    TRY = "try"
    REQUIRE = "require"


class GuestTransport(enum.StrEnum):
    """How a guest is reached: by its QEMU guest agent, by SSH, or by the guest operations of VMware Tools."""

    QGA = "qga"
    SSH = "ssh"
    VMTOOLS = "vmtools"


class GuestSystem(enum.StrEnum):
    """What kind of programs a guest runs."""

    POSIX = "posix"
    WINDOWS = "windows"


class Component(enum.StrEnum):
    """What worked inside the guest: a program that was there only meanwhile, an installed one, or only fsfreeze."""

    RUNTIME = "runtime"
    AGENT = "agent"
    NONE = "none"


class ApplicationState(enum.StrEnum):
    """What was achieved with an application."""

    QUIESCED = "quiesced"
    FAILED = "failed"


DEFAULT_TRANSPORTS = (GuestTransport.QGA, GuestTransport.SSH, GuestTransport.VMTOOLS)
DEFAULT_SCRIPT_TIMEOUT_S = 60
DEFAULT_FREEZE_DEADLINE_S = 10
DEFAULT_APPLICATIONS_PERCENT = 40


@dataclass(frozen=True)
class GuestSettings:
    """How the guests of a job are processed; of one VM if ``vm`` is not empty.

    None, or empty, in those of one VM: as for the whole job.

    :ivar transports: in the order in which they are tried.
    :ivar address: ``HOST[:PORT]`` for SSH, which is not tried without.
    :ivar credential: name of the stored credential for SSH; one with a password serves VMware Tools as well.
    :ivar pre_freeze: files on the controller's host that run in the guest before the freeze, in this order.
    :ivar post_thaw: files that run in the guest after the thaw.
    :ivar script_timeout_s: how long one of them may take.
    :ivar freeze_deadline_s: how long the guest may be frozen; of Windows, VSS decides that.
    :ivar applications_percent: the share of it in which applications must come to rest.
    :ivar applications: whether applications are quiesced, or file systems only.
    """

    vm: str = ""
    policy: GuestPolicy | None = None
    transports: tuple[GuestTransport, ...] = ()
    address: str = ""
    credential: str = ""
    pre_freeze: tuple[str, ...] = ()
    post_thaw: tuple[str, ...] = ()
    script_timeout_s: int = 0
    applications: bool | None = None
    freeze_deadline_s: int = 0
    applications_percent: int = 0


@dataclass(frozen=True)
class ApplicationResult:
    """What came of quiescing one application.

    :ivar kind: ``postgresql``, ``mysql``, ``redis``, ``mongodb``, ``hooks``, ``vss``.
    :ivar name: which one of them in the guest, e.g. the cluster or port.
    :ivar detail: in words; why, if it failed.
    :ivar label: what the application says of this instant, e.g. PostgreSQL's backup label; empty for nothing.
    """

    kind: str
    name: str
    state: ApplicationState
    detail: str = ""
    label: str = ""


@dataclass(frozen=True)
class GuestStage:
    """A stage of guest processing and how long it took, in milliseconds."""

    name: str
    ms: float


@dataclass(frozen=True)
class GuestReport:
    """What guest processing did.

    :ivar transport: empty if the guest was not reached.
    :ivar version: of the component; empty if none worked.
    :ivar notes: what could not be done, and needs nobody's attention.
    """

    transport: str = ""
    component: Component = Component.NONE
    version: str = ""
    stages: tuple[GuestStage, ...] = ()
    applications: tuple[ApplicationResult, ...] = ()
    notes: tuple[str, ...] = ()
