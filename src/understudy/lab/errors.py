"""What can go wrong in the lab; a branch of the tree in `understudy.errors`.

::

    UnderstudyError
    +-- LabError                code lab                something in the lab failed
        +-- LabUnavailable      code lab_unavailable    this machine cannot run a lab; says what to install
        +-- LabTimeout          code lab_timeout        something did not happen in the time given for it
        +-- LabNotClean         code lab_not_clean      something of the lab could not be removed; names each object
        +-- CommandFailed       code lab_command        a program of this machine ended with an error
        +-- HypervisorFailed    code lab_hypervisor     libvirt refused a call
        +-- GuestCommandFailed  code lab_guest_command  a command inside a guest ended with an error
"""

from __future__ import annotations

from understudy.errors import UnderstudyError


class LabError(UnderstudyError):
    """Something in the lab failed."""

    code = "lab"


class LabUnavailable(LabError):
    """This machine cannot run a lab."""

    code = "lab_unavailable"


class LabTimeout(LabError):
    """Something did not happen in the time given for it."""

    code = "lab_timeout"


class LabNotClean(LabError):
    """Something of the lab could not be removed; `why` names each object."""

    code = "lab_not_clean"


class CommandFailed(LabError):
    """A program of this machine ended with an error; `why` repeats its own words."""

    code = "lab_command"


class HypervisorFailed(LabError):
    """libvirt refused a call; `why` repeats its own words."""

    code = "lab_hypervisor"


class GuestCommandFailed(LabError):
    """A command inside a guest ended with an error.

    :param status: its exit status; the negative number of the signal that ended it.
    """

    code = "lab_guest_command"

    def __init__(  # fields after `todo` have defaults: another process may rebuild the error from the first three
        self, what: str, why: str, todo: str = "", *, status: int = 1, stdout: str = "", stderr: str = ""
    ) -> None:
        super().__init__(what, why, todo)
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
