"""The border where the faults of vSphere become our errors: what each means, and what helps.

pyVmomi raises a fault as an exception of the fault's own type, whether a call or a task failed with it; its ``msg`` is
the server's text in the language of the session.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from understudy.errors import HostUnreachable, NotFound, PlatformError, Refused, UnderstudyError, UsageError


class ConnectionLost(Exception):
    """No answer to a call.

    :ivar sent: the server may have got the call, and may have done it.
    """

    def __init__(self, why: str, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class AnswerNotUnderstood(Exception):
    """The server answered something that pyVmomi does not understand."""


#: What a call of pyVmomi through our stub raises.
VSPHERE_ERRORS = (vmodl.MethodFault, ConnectionLost, AnswerNotUnderstood)


class Remedy(enum.Enum):
    """What may help after an error."""

    RETRY = "retry"
    LOGIN = "login"
    WAIT = "wait"
    PERMANENT = "permanent"


# The first entry that fits counts: NotAuthenticated is a kind of NoPermission, and many are kinds of InvalidState.
_REMEDIES: tuple[tuple[Any, Remedy], ...] = (
    (vim.fault.NotAuthenticated, Remedy.LOGIN),
    (vim.fault.TaskInProgress, Remedy.WAIT),
    (vim.fault.ConcurrentAccess, Remedy.WAIT),
    (vim.fault.FileLocked, Remedy.WAIT),
    (vim.fault.HostConnectFault, Remedy.RETRY),
    (vmodl.fault.HostCommunication, Remedy.RETRY),
    (vim.fault.Timedout, Remedy.RETRY),
    (ConnectionLost, Remedy.RETRY),
)


def remedy(error: BaseException) -> Remedy:
    """What may help after ``error``, one of :data:`VSPHERE_ERRORS`."""
    return next((found for kind, found in _REMEDIES if isinstance(error, kind)), Remedy.PERMANENT)


def converted(what: str, error: BaseException, name_of: Callable[[Any], str] | None = None) -> UnderstudyError:
    """Our error for ``error``, one of :data:`VSPHERE_ERRORS`, that ended the act ``what``.

    :param name_of: an object's name, for messages; without it they have its reference.
    """
    if isinstance(error, ConnectionLost):
        maybe = "; whether it was done is not known" if error.sent else ""
        return HostUnreachable(what, f"{error}{maybe}", "check the server and the network")
    if isinstance(error, AnswerNotUnderstood):
        return PlatformError(what, f"the server's answer is not understood: {error}")
    for kind, convert in _CONVERSIONS:
        if isinstance(error, kind):
            return convert(what, error, name_of or reference)
    if remedy(error) is Remedy.RETRY:
        return HostUnreachable(what, fault_text(error), "check the ESXi host, and its connection to the vCenter")
    if remedy(error) is Remedy.WAIT:
        return PlatformError(what, fault_text(error), "try again when the other task has ended")
    return PlatformError(what, fault_text(error))


def fault_text(fault: Any) -> str:
    """The server's own words: the type of the fault, its message, and what it says of the causes."""
    words = [_type_name(fault), _sentence(getattr(fault, "msg", None))]
    words += [_sentence(message.message) for message in getattr(fault, "faultMessage", None) or ()]
    cause = getattr(fault, "faultCause", None)
    if cause is not None:
        words.append(f"because of {fault_text(getattr(cause, 'fault', None) or cause)}")
    return ": ".join(dict.fromkeys(word for word in words if word))


def reference(item: Any) -> str:
    """An object as ``VirtualMachine vm-42``."""
    return "an object" if item is None else f"{item._wsdlName} {item._moId}"


def _type_name(fault: Any) -> str:
    return str(type(fault).__name__).rsplit(".", 1)[-1]


def _sentence(text: str | None) -> str:
    return (text or "").strip().rstrip(".")


def _no_permission(what: str, fault: Any, name_of: Callable[[Any], str]) -> UnderstudyError:
    missing = [(entry.entity, privilege) for entry in fault.missingPrivileges or () for privilege in entry.privilegeIds]
    missing = missing or [(fault.object, fault.privilegeId)]
    wanted = ", ".join(dict.fromkeys(f"{privilege or 'a privilege'} on {name_of(item)}" for item, privilege in missing))
    return PlatformError(what, f"the user lacks {wanted}", "give the user's role this privilege")


def _login_refused(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return PlatformError(what, f"user and password are refused ({fault_text(fault)})", "give the right credential")


def _logged_out(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return HostUnreachable(what, f"the session does not hold ({fault_text(fault)})", "check who ends sessions there")


def _restricted(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return PlatformError(
        what, f"the host's licence forbids it: a free ESXi cannot be changed by its API ({fault_text(fault)})",
        "give the host a licence that includes the vSphere API",
    )  # fmt: skip


def _unlicensed(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return PlatformError(what, f"a licence is missing ({fault_text(fault)})", "check the licences in the vCenter")


def _gone(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return NotFound(what, f"the server has {reference(fault.obj)} no more", "see 'understudy host vms'")


def _missing(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return NotFound(what, fault_text(fault))


def _wrong_state(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return Refused(what, fault_text(fault))


def _unsupported(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return PlatformError(what, f"the server does not offer this ({fault_text(fault)})", "check the server's version")


def _no_space(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    store = getattr(fault, "datastore", "") or getattr(fault, "file", "")
    return PlatformError(what, f"no space is left{f' on {store}' if store else ''} ({fault_text(fault)})",
                         "free space on the datastore")  # fmt: skip


def _invalid_argument(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    name = getattr(fault, "invalidProperty", None)
    return PlatformError(what, f"the server does not accept {name or 'an argument'} ({fault_text(fault)})")


def _invalid_name(what: str, fault: Any, _name_of: Callable[[Any], str]) -> UnderstudyError:
    return UsageError(what, f"the server does not accept the name {fault.name!r}", "choose another name")


# The first entry that fits counts. What is not here is told by the server's own words.
_CONVERSIONS: tuple[tuple[Any, Callable[[str, Any, Callable[[Any], str]], UnderstudyError]], ...] = (
    (vim.fault.NotAuthenticated, _logged_out),
    (vim.fault.InvalidLogin, _login_refused),
    (vim.fault.NoPermission, _no_permission),
    (vim.fault.RestrictedVersion, _restricted),
    (vmodl.fault.NotEnoughLicenses, _unlicensed),
    (vim.fault.InvalidLicense, _unlicensed),
    (vim.fault.LicenseEntityNotFound, _unlicensed),
    (vmodl.fault.ManagedObjectNotFound, _gone),
    (vim.fault.FileNotFound, _missing),
    (vim.fault.NotFound, _missing),
    (vim.fault.NoDiskSpace, _no_space),
    (vim.fault.InsufficientStorageSpace, _no_space),
    (vim.fault.InvalidName, _invalid_name),
    (vim.fault.InvalidPowerState, _wrong_state),
    (vmodl.fault.MethodNotFound, _unsupported),
    (vmodl.fault.NotSupported, _unsupported),
    (vmodl.fault.InvalidArgument, _invalid_argument),
)
