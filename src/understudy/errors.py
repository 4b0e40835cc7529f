"""The errors of Understudy, one tree.

::

    UnderstudyError             code error
    +-- UsageError              code usage            exit 2   the command line or a value in it is wrong
    +-- NotFound                code not_found        exit 2   no object of that name
    +-- Refused                 code refused          exit 2   understood, but the present state does not allow it
    +-- DatabaseError           code database         exit 1   configuration database missing, newer, or damaged
    +-- HostUnreachable         code host_unreachable exit 1   retryable
    +-- PlatformError           code platform         exit 1   libvirt refused or failed
    |   +-- TaskUnfinished      code task_unfinished  exit 1   a task did not end in time, and may still run
    |   +-- TrackingLost        code tracking_lost    exit 1   a baseline cannot be used; a digest scan can
    |       +-- CbtMismatch     code cbt_mismatch     exit 1   a block that is called unchanged has changed
    +-- GuestError              code guest            exit 1   freeze, thaw or agent failed
    +-- DatastoreError          code datastore        exit 1   missing, read-only, full
    +-- ReplicaError            code replica          exit 1   replica files damaged, or of a newer format
    +-- TransferError           code transfer         exit 1   reading, sending or writing a disk failed
    |   +-- LinkLost            code link_lost        exit 1   retryable: a connection between two proxies broke
    +-- MoverError              code mover            exit 1   a proxy died or did not answer
    +-- Fenced                  code fenced           exit 1   a newer attempt owns this replica
    +-- Cancelled               code cancelled        exit 130 the operator stopped it

Every error says *what* was being done on which object, *why* it failed, and *what the operator can do*. On the screen
it is one line: ``error: <what>: <why>; <what to do>``.
"""

from __future__ import annotations

from typing import ClassVar


class UnderstudyError(Exception):
    """Base of all errors that an operator may see.

    :param what: the act and its object, e.g. ``replicate 'web 1'``.
    :param why: the cause, in the words of whoever refused.
    :param todo: what the operator can do; empty when there is nothing sensible to say.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, why: str, todo: str = "") -> None:
        super().__init__(what, why, todo)
        self.what = what
        self.why = why
        self.todo = todo

    def __str__(self) -> str:
        line = f"{self.what}: {self.why}"
        if self.todo:
            line += f"; {self.todo}"
        return " ".join(line.split())


class UsageError(UnderstudyError):
    """The command line, or a value in it, is wrong."""

    code = "usage"
    exit_status = 2


class NotFound(UnderstudyError):
    """No object of that name."""

    code = "not_found"
    exit_status = 2


class Refused(UnderstudyError):
    """Understood, but the present state does not allow it."""

    code = "refused"
    exit_status = 2


class DatabaseError(UnderstudyError):
    """The configuration database is missing, newer than this program, or damaged."""

    code = "database"


class HostUnreachable(UnderstudyError):
    """The platform of a host does not answer."""

    code = "host_unreachable"
    retryable = True


class PlatformError(UnderstudyError):
    """The platform refused or failed an act."""

    code = "platform"


class TaskUnfinished(PlatformError):
    """A task of the platform did not end in time, and may still run: what it was to do may yet happen."""

    code = "task_unfinished"


class TrackingLost(PlatformError):
    """Changed block tracking cannot be used since the baseline; the disk must be scanned.

    :param reason: the reason code that the operator sees.
    """

    code = "tracking_lost"

    def __init__(self, what: str, why: str, todo: str = "", reason: str = "bitmap_inconsistent") -> None:
        super().__init__(what, why, todo)
        self.reason = reason


class CbtMismatch(TrackingLost):
    """Blocks that changed block tracking calls unchanged have changed."""

    code = "cbt_mismatch"

    def __init__(self, what: str, why: str, todo: str = "") -> None:
        super().__init__(what, why, todo, reason="cbt_mismatch")


class GuestError(UnderstudyError):
    """Freezing, thawing or talking to the guest failed."""

    code = "guest"


class DatastoreError(UnderstudyError):
    """A datastore is missing, read-only or full."""

    code = "datastore"


class ReplicaError(UnderstudyError):
    """The files of a replica are damaged, or of a format newer than this program."""

    code = "replica"


class TransferError(UnderstudyError):
    """Reading, sending or writing a disk failed."""

    code = "transfer"
    retryable = True


class LinkLost(TransferError):
    """A connection between two proxies broke, or could not be made; trying again may help."""

    code = "link_lost"


class MoverError(UnderstudyError):
    """A proxy died, or did not answer."""

    code = "mover"
    retryable = True


class Fenced(UnderstudyError):
    """A newer attempt, or another process, owns this replica."""

    code = "fenced"


class Cancelled(UnderstudyError):
    """The operator stopped it."""

    code = "cancelled"
    exit_status = 130

    def __init__(self, what: str = "session", why: str = "cancelled by the operator", todo: str = "") -> None:
        super().__init__(what, why, todo)


def error_classes() -> dict[str, type[UnderstudyError]]:
    """All error classes by their stable code."""
    found: dict[str, type[UnderstudyError]] = {}
    pending: list[type[UnderstudyError]] = [UnderstudyError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found


def from_fields(code: str, what: str, why: str, todo: str) -> UnderstudyError:
    """The error that another process reported by its fields; an unknown code becomes the base class."""
    return error_classes().get(code, UnderstudyError)(what, why, todo)
